"""How `shards query` prints the rows of many shards: as a table, as CSV or as JSON Lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from operator import itemgetter
from typing import Final, Protocol

import msgspec

from simplu_worker.commands.output.display import print_note, print_table, shorten
from simplu_worker.errors import PermanentError
from simplu_worker.shards.questions.asking import ShardAnswer

TABLE_MAX: Final = 1000  # rows for a person
CELL_MAX: Final = 200  # characters of a cell in a table


class RowFormat(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


class RowPrinter(Protocol):
    """Prints rows on stdout, each with its shard."""

    def add(self, shard_id: str, answer: ShardAnswer) -> None:
        """Print or keep the rows of a shard. Raises `PermanentError` for other columns than before."""

    def finish(self) -> bool:
        """Print what was kept; return whether all rows are printed."""


class _Columns:
    """The columns of the first answer, which every other one must have."""

    def __init__(self) -> None:
        self.names: list[str] | None = None
        self._first = ""

    def check(self, shard_id: str, columns: list[str]) -> None:
        if self.names is None:
            self.names, self._first = columns, shard_id
        elif self.names != columns:
            raise PermanentError(
                f"expected the columns of shard {self._first}, {', '.join(self.names)}, "
                f"got {', '.join(columns)}; name the columns in place of *"
            )


class TablePrinter:
    """Keeps the first rows for one table, in order of the shards' ids."""

    def __init__(self) -> None:
        self._columns = _Columns()
        self._rows: list[tuple[str, list[str]]] = []
        self._count = 0

    def add(self, shard_id: str, answer: ShardAnswer) -> None:
        """Keep the rows that have room."""
        self._columns.check(shard_id, answer.columns)
        self._count += len(answer.rows)
        for row in answer.rows[: TABLE_MAX - len(self._rows)]:
            self._rows.append((shard_id, [shorten(cell or "", CELL_MAX) for cell in row]))

    def finish(self) -> bool:
        """Print the table, and how many rows it has no room for."""
        if self._columns.names is not None:
            rows = sorted(self._rows, key=itemgetter(0))
            print_table(["shard", *self._columns.names], [[shard_id, *cells] for shard_id, cells in rows])
        if self._count > len(self._rows):
            print_note(f"and {self._count - len(self._rows)} more; --format csv and jsonl print all")
        return self._count == len(self._rows)


class CsvPrinter:
    """Prints CSV as COPY does: null is empty, an empty text is quoted."""

    def __init__(self) -> None:
        self._columns = _Columns()

    def add(self, shard_id: str, answer: ShardAnswer) -> None:
        """Print the rows, the first time below the names of the columns."""
        is_first = self._columns.names is None
        self._columns.check(shard_id, answer.columns)
        header = csv_line(["shard", *answer.columns]) if is_first else ""
        _write(header + "".join(csv_line([shard_id, *row]) for row in answer.rows))

    def finish(self) -> bool:
        """Do nothing: all is printed."""
        return True


class JsonLinesPrinter:
    """Prints one JSON object a line, in which the row is one as well."""

    def add(self, shard_id: str, answer: ShardAnswer) -> None:
        """Print the rows."""
        shard = msgspec.json.encode(shard_id).decode()
        # A value of the type json may have line breaks.
        rows = (msgspec.json.format(row[0] or "", indent=-1) for row in answer.rows)
        _write("".join(f'{{"shardId":{shard},"row":{row}}}\n' for row in rows))

    def finish(self) -> bool:
        """Do nothing: all is printed."""
        return True


def open_printer(row_format: RowFormat) -> RowPrinter:
    """Return what prints rows in a format."""
    printers: dict[RowFormat, type[RowPrinter]] = {
        RowFormat.TABLE: TablePrinter,
        RowFormat.CSV: CsvPrinter,
        RowFormat.JSONL: JsonLinesPrinter,
    }
    return printers[row_format]()


def csv_line(cells: Sequence[str | None]) -> str:
    """Return a line of CSV (RFC 4180, but with a line feed alone)."""
    return ",".join(map(_csv_cell, cells)) + "\n"


def _csv_cell(text: str | None) -> str:
    if text is None:
        return ""
    if text and not any(char in text for char in ',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
