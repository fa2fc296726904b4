"""Print a list that may not fit in memory: as JSON item by item, or as a table of the first rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from simplu_worker.commands.output.display import print_note, print_table

TABLE_MAX: Final = 1000  # rows for a person

T = TypeVar("T")


class StreamedList(Generic[T]):
    """A list that is the member *name* of a JSON object, or a table of *columns*; *row* returns an item's cells."""

    def __init__(
        self,
        name: str,
        columns: Sequence[str],
        row: Callable[[T], Sequence[object]],
        *,
        as_json: bool,
        table_max: int = TABLE_MAX,
    ) -> None:
        self._name = name
        self._columns = columns
        self._row = row
        self._as_json = as_json
        self._table_max = table_max
        self._shown: list[T] = []
        self.count = 0

    def add(self, items: Iterable[T]) -> None:
        """Print *items* as JSON, or keep them for the table."""
        for item in items:
            if self._as_json:
                before = f'{{\n  "{self._name}": [\n    ' if not self.count else ",\n    "
                _write(before.encode() + msgspec.json.encode(item))
            elif len(self._shown) < self._table_max:
                self._shown.append(item)
            self.count += 1

    def finish(self, rest: dict[str, Any]) -> None:
        """Print the table, or *rest*: the other members of the JSON object."""
        if self._as_json:
            beginning = f'{{\n  "{self._name}": [' if not self.count else "\n  "
            members = [f'  "{name}": '.encode() + msgspec.json.encode(value) for name, value in rest.items()]
            _write(beginning.encode() + b",\n".join([b"]", *members]) + b"\n}\n")
            sys.stdout.buffer.flush()
            return
        if self._shown:
            print_table(self._columns, map(self._row, self._shown))
        if self.count > len(self._shown):
            print_note(f"and {self.count - len(self._shown)} more; --json prints all")


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
