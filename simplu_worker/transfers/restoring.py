"""Put one tenant back to a backup on its shard while workers run (docs/adr/0008-restoring-one-tenant.md).

All state is in rows, and each transaction checks the tenant's token, the run and the number of the write. A restorer
that is killed, or loses the shard for a moment, begins again by these rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import msgspec
import structlog

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import BulkChange, BulkOrigin, mark_bulk_change, name_change
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.following import find_addresses
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.settling import (
    CarriedPosition,
    MovingTenant,
    RowKey,
    SupersededError,
    Transfer,
    TransferRefusedError,
    lower_positions,
    read_positions,
    read_tenant,
    read_transfer,
    take_token,
)
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import (
    Chunk,
    ChunkPace,
    Journal,
    TransferEngine,
    TransferStatus,
    Walker,
    run_in_pages,
    run_until_won,
)
from simplu_worker.transfers.moving.copying import (
    OPERATIONS,
    PAGE_ROWS,
    RESOURCES,
    Changes,
    CopiedTable,
    copy_chunk,
    find_end,
    write_changes,
)
from simplu_worker.transfers.moving.sides import DROP_ROWS
from simplu_worker.vocabulary import TenantState, TransferKind, TransferStep


class RestoreMode(StrEnum):
    """What becomes of the operations since the backup."""

    CATCH_UP = "catch-up"  # they are read again from the stream, and applied
    AS_OF_BACKUP = "as-of-backup"  # they stay undone


class Beginning(StrEnum):
    """How a restorer begins."""

    NEW = "new"  # with the fence
    GO_ON = "go on"  # where one has begun to overwrite rows
    ENDED = "ended"  # it has released the tenant, and got no answer


def beginning_of(
    tenant: MovingTenant | None,
    journal: Transfer | None,
    mode: RestoreMode,
    own_runs: Collection[str] = (),
    earlier_run: str | None = None,
) -> Beginning:
    """Return how a restorer begins, by the tenant's row and the journal.

    *own_runs* are those of this command, *earlier_run* that of the journal when it began. Raises
    `TransferRefusedError` if the tenant cannot be restored, `RetryableError` during a move.
    """
    if tenant is None:
        raise TransferRefusedError("the shard has no row of the tenant; run: simplu-worker tenants show")
    if journal is not None and journal.token not in {*own_runs, earlier_run}:
        raise SupersededError(f"{tenant.id}: another restore has started since; it continues, and this one has ended")
    if tenant.state is TenantState.ACTIVE:
        is_own = journal is not None and journal.token in own_runs and journal.step == TransferStep.DONE
        return Beginning.ENDED if is_own else Beginning.NEW
    if tenant.state is not TenantState.FENCED:
        raise TransferRefusedError(f"{tenant.id}: the tenant is {tenant.state}; only an active one can be restored")
    if journal is None or journal.step == TransferStep.DONE or journal.move_token != tenant.move_token:
        raise RetryableError(f"{tenant.id}: the tenant is being moved")
    if journal.step == TransferStep.OPEN:
        return Beginning.NEW
    if (begun := journal.detail["mode"]) != mode:
        raise TransferRefusedError(
            f"{tenant.id}: expected --{begun}, which an earlier command has started with, got --{mode}"
        )
    return Beginning.GO_ON


EXPORT_QUERIES: Final[Mapping[str, str]] = {"resources": "export_resources", "operations": "export_operations"}
# The text of a JSON value has no control characters, so with these COPY sends it as it is.
DELIMITER: Final = "\x02"
QUOTE: Final = "\x01"
MODE: Final = 0o600  # the content of a tenant


class ExportFile:
    """A new file of JSON lines with the rows that a restore overwrites; removed unless finished."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path = path
        self._header = header
        self._is_finished = False
        self.counts = dict.fromkeys(EXPORT_QUERIES, 0)

    def __enter__(self) -> Self:
        with self._errors_told("a new file"):
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb")
        self._write(msgspec.json.encode(self._header) + b"\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # of a full disk once more: the error before it is the one to raise
            self._file.close()
        if not self._is_finished:
            self._path.unlink(missing_ok=True)

    def add(self, table: CopiedTable, parts: Iterable[bytes], count: int) -> None:
        """Write *count* rows of a table. Raises `PermanentError`."""
        for part in parts:
            self._write(part)
        self.counts[table.name] += count

    def finish(self) -> None:
        """Write the counts, and wait for the disk. Raises `PermanentError`."""
        self._write(msgspec.json.encode({"end": self.counts}) + b"\n")
        with self._errors_told("room for the tenant's rows"):
            self._file.flush()
            os.fsync(self._file.fileno())
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self._is_finished = True

    def _write(self, part: bytes) -> None:
        with self._errors_told("room for the tenant's rows"):
            self._file.write(part)

    @contextlib.contextmanager
    def _errors_told(self, expected: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise PermanentError(f"--export: expected {expected} at {self._path}, got: {exc.strerror}") from exc


async def _read_rows(
    connection: Connection, table: CopiedTable, tenant_id: str, after: RowKey, end: RowKey | None
) -> tuple[list[bytes], int]:
    """Return the rows of a range of keys as lines of JSON, in parts, and their number."""
    parts: list[bytes] = []

    async def add(part: bytes) -> None:
        parts.append(part)

    status = await connection.copy_from_query(
        QUERIES[EXPORT_QUERIES[table.name]].removesuffix(";"),
        tenant_id,
        *after,
        *(end or (None, None)),
        output=add,
        format="csv",
        delimiter=DELIMITER,
        quote=QUOTE,
    )
    return parts, affected_count(status)


FENCE_S: Final = 30.0  # until any worker may end it, while nothing is overwritten; set again with each chunk
COMPARED_ROWS: Final = 10_000  # of the log, at a time
RELEASE_TRIES: Final = 10  # for a moment in which no batch has the positions; a new beginning would copy all again

log = structlog.get_logger(__name__)


class Restore(msgspec.Struct, frozen=True):
    """A tenant, the shard with its home, the mode, and the new file. *log_kept*: workers keep rows of the log."""

    tenant_id: str
    shard_id: str
    mode: RestoreMode
    export: Path
    log_kept: timedelta


class RestoreCertificate(msgspec.Struct, frozen=True, rename="camel"):
    """What a restore did. *paused_s* is from the fence of this command on."""

    tenant: str
    shard: str
    mode: RestoreMode
    epoch: int
    export: str | None
    resources_before: int
    operations_before: int
    rows_restored: int
    paused_s: float


class Restorer(TransferEngine[RestoreCertificate]):
    """Restores one tenant from the database of *backup*; *show* is called as it goes on."""

    def __init__(
        self,
        locator: Locator,
        pools: Pools,
        backup: ShardPool,
        commits: ReplicationWaiter,
        restore: Restore,
        *,
        show: Callable[[TransferStatus], None],
    ) -> None:
        super().__init__(pools.pool_of(restore.shard_id), restore.tenant_id, show)
        self._restore = restore
        self._backup = backup
        self._commits = commits
        self._locator = locator
        self._pools = pools
        self._earlier_run: str | None = None
        self._own_runs: set[str] = set()
        self._exports = 0
        self._token = 0
        self._journal = Journal(restore.tenant_id, TransferKind.RESTORE, "")
        self._writes = 0
        self._step = TransferStep.OPEN
        self._detail: dict[str, Any] = {}
        self._walker = Walker(ChunkPace(rest_share=0.0))  # the tenant waits for the whole time
        self._fenced_at = 0.0
        self._row_count = 0

    @property
    def journal(self) -> Journal:
        """The row of this restorer."""
        return self._journal

    @property
    def progress(self) -> object:
        """The step in the journal."""
        return self._step

    @property
    def is_released(self) -> bool:
        """Whether the tenant goes on with the rows of the backup."""
        return self._step is TransferStep.DONE

    def describe_state(self) -> str:
        """Return in which state the tenant is, and which command comes next."""
        if self._step is TransferStep.OPEN:
            return "nothing was overwritten, and the tenant continues within seconds; run the same command again"
        if self.is_released:
            return (
                "the tenant was released and continues, but the shard's standbys have not confirmed that: do not "
                "restore it again, which would undo what it has applied since. After a failover, the same command "
                "without --apply tells whether the restore has to continue"
            )
        return "the tenant's operations wait until the same command has ended: run it again"

    async def prepare_again(self) -> None:
        """Look whether the shard has another address now."""
        await find_addresses(self._locator, self._pools)

    async def go_on(self) -> RestoreCertificate:
        """Go on by the tenant's row and the journal."""
        beginning = await self._begin()
        if beginning is Beginning.NEW:
            await self._export()
        if beginning is not Beginning.ENDED:
            await self._replace()
            await run_until_won(self._release, tries=RELEASE_TRIES)
        epoch, server = await self._read_end()
        paused_s = loop_time() - self._fenced_at
        await self._commits.wait_for_transaction(self._shard.address.shard_id, server)
        log.info("restore.done", tenant_id=self._tenant_id, shard_id=self._shard.address.shard_id)
        return RestoreCertificate(
            tenant=self._tenant_id,
            shard=self._shard.address.shard_id,
            mode=self._restore.mode,
            epoch=epoch,
            export=self._detail.get("export"),
            resources_before=self._detail.get("resources", 0),
            operations_before=self._detail.get("operations", 0),
            rows_restored=self._row_count,
            paused_s=paused_s,
        )

    # Fence, export

    async def _begin(self) -> Beginning:
        """Take a token, with a fence unless there is one; waits for the batches in flight."""
        restore = self._restore
        async with self._shard.transaction(budget=StatementBudget.PAUSE) as connection:
            tenant = await read_tenant(connection, restore.tenant_id, locked=True)
            found = await read_transfer(connection, restore.tenant_id, TransferKind.RESTORE)
            if found is not None and not self._own_runs:
                self._earlier_run = found.token
            beginning = beginning_of(tenant, found, restore.mode, self._own_runs, self._earlier_run)
            if beginning is Beginning.ENDED or tenant is None:
                self._step = TransferStep.DONE
                return beginning
            token = tenant.move_token + 1
            opened = Journal(restore.tenant_id, TransferKind.RESTORE, f"{token}/{uuid4()}")
            self._own_runs.add(opened.token)  # before the commit, which may have no answer
            if beginning is Beginning.GO_ON and found is not None:
                await self._set_fence(connection, None, token=token, former=tenant.move_token)
                step, detail = TransferStep.REPLACING, found.detail
            else:
                await take_token(connection, restore.tenant_id, token)
                await connection.fetchrow(QUERIES["fence_tenant"], restore.tenant_id, token, FENCE_S)
                step, detail = TransferStep.OPEN, {"mode": restore.mode}
            kept = None if beginning is Beginning.GO_ON else detail
            await opened.open(connection, step, place=self._backup.address.place, detail=kept)
        self._journal, self._token, self._writes, self._step, self._detail = opened, token, 0, step, detail
        self._fenced_at = loop_time()
        return beginning

    async def _export(self) -> None:
        """Write the tenant's rows to the file, then take the deadline from the fence, which ends if this fails."""
        restore = self._restore
        header = {"tenant": restore.tenant_id, "shard": restore.shard_id, "mode": restore.mode}
        path = restore.export
        if self._exports:  # what the shard had before it lost the fence stays in the first file
            path = path.with_name(f"{path.name}.{self._exports + 1}")
        try:
            with ExportFile(path, header) as file:
                for table in (RESOURCES, OPERATIONS):
                    await self._export_table(file, table)
                file.finish()
                self._exports += 1
                self._detail = {"mode": restore.mode, "export": str(path.absolute()), **file.counts}
                async with self._writing(TransferStep.REPLACING, self._detail) as connection:
                    await self._set_fence(connection, None)
        except BaseException:
            with contextlib.suppress(RetryableError, PermanentError):
                await asyncio.shield(self._end_fence())
            raise
        self._step = TransferStep.REPLACING

    async def _export_table(self, file: ExportFile, table: CopiedTable) -> None:
        async def export(after: RowKey, row_count: int) -> Chunk:
            began_at = loop_time()
            async with self._writing(TransferStep.OPEN, budget=StatementBudget.KEY_RANGE) as connection:
                await self._set_fence(connection, FENCE_S)
                answer_s = loop_time() - began_at
                end = await find_end(connection, table, self._tenant_id, after, row_count)
                parts, count = await _read_rows(connection, table, self._tenant_id, after, end)
            file.add(table, parts, count)
            self._tell("export", sum(file.counts.values()))
            return Chunk(end, count, answer_s)

        await self._walker.walk(export)

    async def _set_fence(
        self, connection: Connection, seconds: float | None, *, token: int | None = None, former: int | None = None
    ) -> None:
        tokens = former or self._token, token or self._token
        status = await connection.execute(QUERIES["set_restore_fence"], self._tenant_id, seconds, *tokens)
        if affected_count(status) != 1:
            raise LostRaceError("a worker has ended the fence")

    async def _end_fence(self) -> None:
        if self._step is TransferStep.OPEN:
            async with self._shard.transaction() as connection:
                await connection.execute(QUERIES["end_own_fence"], self._tenant_id, self._token)

    # Replace

    async def _replace(self) -> None:
        self._row_count = 0
        if self._restore.mode is RestoreMode.CATCH_UP:
            await self._drop("drop_operations")
            await self._drop("drop_batches")
            await self._drop("drop_resources")
            await self._copy(OPERATIONS)
        else:
            await self._add_log()
            await self._drop("drop_resources")
        await self._copy(RESOURCES)
        async with self._writing(TransferStep.COPIED):
            pass
        self._step = TransferStep.COPIED

    async def _drop(self, name: str) -> None:
        dropped = 0

        async def drop(limit: int) -> int:
            nonlocal dropped
            async with self._writing(TransferStep.REPLACING, budget=StatementBudget.KEY_RANGE) as connection:
                count = affected_count(await connection.execute(QUERIES[name], self._tenant_id, limit))
                if name == "drop_resources":
                    await mark_bulk_change(connection, BulkChange.COPIED, self._tenant_id, BulkOrigin.RESTORE)
            dropped += count
            self._tell("delete", dropped)
            return count

        await run_in_pages(drop, limit=DROP_ROWS)

    async def _copy(self, table: CopiedTable) -> None:
        async def copy(after: RowKey, row_count: int) -> Chunk:
            async with self._backup.transaction(budget=StatementBudget.KEY_RANGE) as connection:
                end = await find_end(connection, table, self._tenant_id, after, row_count)
            found_at = loop_time()
            async with self._writing(TransferStep.REPLACING) as connection:
                answer_s = loop_time() - found_at
                chunk = await copy_chunk(self._backup, connection, table, self._tenant_id, after, end)
            self._row_count += chunk.row_count
            self._tell("copy", self._row_count)
            return Chunk(end, chunk.row_count, answer_s)

        await self._walker.walk(copy)

    async def _add_log(self) -> None:
        """Add the rows of the log that only the backup has, as the stream may not have them.

        Not those from before the log is kept: the shard's own have been deleted.
        """
        last, seen = "", 0
        async with self._shard.connection() as connection:
            since: datetime = await connection.fetchval(QUERIES["read_clock"]) - self._restore.log_kept

        async def compare(limit: int) -> int:
            nonlocal last, seen
            pages = []
            for pool in (self._backup, self._shard):
                async with pool.transaction(budget=StatementBudget.KEY_RANGE) as connection:
                    rows = await connection.fetch(QUERIES["list_logged_requests"], self._tenant_id, last, limit)
                pages.append([row["key"] for row in rows])
            there, here = pages
            if not there:
                return 0
            end = min(there[-1], here[-1]) if len(here) == limit else there[-1]  # behind it not all of `here` is known
            compared = {key for key in there if key <= end}
            await self._add_logged(sorted(compared.difference(here)), since)
            last, seen = end, seen + len(compared)  # only now: after a timeout the page is compared again
            self._tell("compare the logs", seen)
            return limit if end < there[-1] else len(there)

        await run_in_pages(compare, limit=COMPARED_ROWS)

    async def _add_logged(self, keys: list[str], since: datetime) -> None:
        async def add(limit: int) -> int:
            page = keys[:limit]
            async with self._backup.connection() as connection:
                rows = await connection.fetch(QUERIES["read_logged_requests"], self._tenant_id, page, since)
            if rows:
                async with self._writing(TransferStep.REPLACING) as connection:
                    await write_changes(connection, self._tenant_id, Changes(rows))
            del keys[:limit]
            return len(page)

        if keys:
            await run_in_pages(add, limit=PAGE_ROWS)

    # Release

    async def _release(self) -> None:
        restore = self._restore
        carried = await self._read_positions()
        async with self._shard.transaction(budget=StatementBudget.PAUSE) as connection:
            if carried is not None:
                # In the order in which batches lock: first the positions, then the tenant.
                await connection.execute(QUERIES["lock_positions"])
            await self._note(connection, TransferStep.DONE, None)
            status = await connection.execute(QUERIES["release_restored"], restore.tenant_id, self._token)
            if affected_count(status) != 1:
                raise LostRaceError("the tenant's row has changed")
            if carried is not None:
                await lower_positions(connection, carried)
            # The rows on the shard that the tenant has left do not compare with these any more.
            await connection.execute(QUERIES["drop_transfer"], restore.tenant_id, TransferKind.ARRIVAL)
        self._step = TransferStep.DONE

    async def _read_end(self) -> tuple[int, Server]:
        async with self._shard.transaction() as connection:
            tenant = await read_tenant(connection, self._tenant_id)
            journal = await read_transfer(connection, self._tenant_id, TransferKind.RESTORE)
            server = await note_server(connection)
        if (
            tenant is None
            or journal is None
            or journal.token != self._journal.token
            or journal.step != TransferStep.DONE
        ):
            raise LostRaceError("the shard has lost the end of the restore")
        return tenant.epoch, server

    async def _read_positions(self) -> tuple[CarriedPosition, ...] | None:
        if self._restore.mode is not RestoreMode.CATCH_UP:
            return None
        async with self._backup.connection() as connection:
            return await read_positions(connection)

    # Transactions

    @asynccontextmanager
    async def _writing(
        self,
        step: TransferStep,
        detail: dict[str, Any] | None = None,
        *,
        budget: StatementBudget = StatementBudget.USUAL,
    ) -> AsyncIterator[Connection]:
        """Open a transaction on the live shard, which counts only as the next one of this run."""
        async with self._shard.transaction(budget=budget) as connection:
            await self._note(connection, step, detail)
            await name_change(connection, BulkOrigin.RESTORE)
            yield connection
        self._writes += 1

    async def _note(self, connection: Connection, step: TransferStep, detail: dict[str, Any] | None) -> None:
        tenant = await connection.fetchrow(QUERIES["lock_tenant_for"], self._tenant_id, TenantState.FENCED, self._token)
        if tenant is None or not await self._journal.note(connection, step, detail, writes=self._writes):
            raise LostRaceError("the journal on the shard is not as this command has left it")
