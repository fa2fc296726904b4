"""The file with the rows that a restore overwrites: one JSON object a line, a header first, the counts last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.pool import Connection
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.settling.rows import RowKey
from simplu_worker.transfers.moving.copying import CopiedTable
from simplu_worker.transfers.sql_files import QUERIES

EXPORT_QUERIES: Final[Mapping[str, str]] = {"resources": "export_resources", "operations": "export_operations"}
# The text of a JSON value has no control characters, so with these COPY sends it as it is.
DELIMITER: Final = "\x02"
QUOTE: Final = "\x01"
MODE: Final = 0o600  # the content of a tenant


class ExportFile:
    """A new file, which is on disk once `finish` has returned; without that it is removed at the end."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path = path
        self._header = header
        self._is_finished = False
        self.counts = dict.fromkeys(EXPORT_QUERIES, 0)
        self.byte_count = 0

    def __repr__(self) -> str:
        return f"ExportFile({self._path}, {self.counts})"

    def __enter__(self) -> Self:
        """Make the file. Raises `PermanentError` if that is not possible, or if there is one."""
        try:
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb")
        except OSError as exc:
            raise PermanentError(f"--export: expected a new file at {self._path}, got: {exc.strerror}") from exc
        self._write(msgspec.json.encode(self._header) + b"\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # of a full disk once more: the error before it is the one to raise
            self._file.close()
        if not self._is_finished:
            self._path.unlink(missing_ok=True)

    async def add(
        self, connection: Connection, table: CopiedTable, tenant_id: str, after: RowKey, end: RowKey | None
    ) -> int:
        """Write the rows of a range of keys, and return their number. Raises the shard's errors, `PermanentError`."""

        async def write(part: bytes) -> None:
            self._write(part)

        status = await connection.copy_from_query(
            QUERIES[EXPORT_QUERIES[table.name]].removesuffix(";"),
            tenant_id,
            *after,
            *(end or (None, None)),
            output=write,
            format="csv",
            delimiter=DELIMITER,
            quote=QUOTE,
        )
        count = affected_count(status)
        self.counts[table.name] += count
        return count

    def cut(self, byte_count: int) -> None:
        """Keep the first *byte_count* bytes: what follows is a part of a chunk. Raises `PermanentError`."""
        try:
            self._file.seek(byte_count)
            self._file.truncate()
        except OSError as exc:
            raise self._write_error(exc) from exc
        self.byte_count = byte_count

    def finish(self) -> None:
        """Write the counts, and wait for the disk. Raises `PermanentError`."""
        self._write(msgspec.json.encode({"end": self.counts}) + b"\n")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise self._write_error(exc) from exc
        self._is_finished = True

    def _write(self, part: bytes) -> None:
        self.byte_count += len(part)
        try:
            self._file.write(part)
        except OSError as exc:
            raise self._write_error(exc) from exc

    def _write_error(self, exc: OSError) -> PermanentError:
        return PermanentError(f"--export: expected room for the tenant's rows at {self._path}, got: {exc.strerror}")
