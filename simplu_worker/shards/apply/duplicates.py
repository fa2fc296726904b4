"""Whether the next batch is expected to have rows that exist, and so which form of insert it uses. Pure.

A plain `INSERT` costs Postgres about an eighth less than one with `ON CONFLICT`: one search of an index less for each
row, and one WAL record. It fails at a row that exists, and the whole batch is repeated in the other form. So it pays
where hardly any batch has such a row; after redeliveries, replays and repeated creates the other form is used from the
start for a while.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

CAREFUL_LEAST: Final = 4  # batches in the form with `ON CONFLICT` after a row that existed
CAREFUL_MAX: Final = 1024  # the same, where every short run of plain inserts has failed
SHORT_RUN: Final = 64  # plain batches between two failures; in fewer of them their gain is about that of a failure


class InsertedTable(StrEnum):
    """A table with both forms of insert."""

    LOG = "log"
    RESOURCES = "resources"


class DuplicateMemory:
    """The recent batches of one table on one shard: when they last had a row that existed.

    At first the form with `ON CONFLICT` is used: a replica that starts reads what another one may have applied.
    """

    def __init__(self, *, careful_least: int = CAREFUL_LEAST) -> None:
        """*careful_least* of 0 tries every batch by plain inserts first."""
        self._least = careful_least
        self._wait = careful_least  # batches in the form with `ON CONFLICT` from a row that existed on
        self._careful_left = careful_least
        self._plain_run = 0  # batches since the last such failure

    def __repr__(self) -> str:
        return f"DuplicateMemory({self._careful_left} careful of {self._wait}, {self._plain_run} plain)"

    @property
    def is_careful(self) -> bool:
        """Whether the next batch is to use the form with `ON CONFLICT`."""
        return self._careful_left > 0

    def expect_duplicates(self) -> None:
        """Use the form with `ON CONFLICT` for a while: a batch is repeated, and may have been committed."""
        self._careful_left = max(self._careful_left, self._wait)

    def note_applied(self, *, was_careful: bool, has_duplicates: bool) -> None:
        """Note a batch that was applied in the form with `ON CONFLICT` (*was_careful*) or by plain inserts."""
        if has_duplicates:
            self._careful_left = self._wait
        elif was_careful:
            self._careful_left = max(0, self._careful_left - 1)
        else:
            self._plain_run += 1
            if self._plain_run >= SHORT_RUN:
                self._wait = self._least

    def note_failed(self) -> None:
        """Note a plain insert that failed at a row that exists."""
        if self._plain_run < SHORT_RUN:
            self._wait = min(2 * self._wait, CAREFUL_MAX)
        self._plain_run = 0
        self._careful_left = self._wait


class InsertForms:
    """The memories of a shard's tables."""

    def __init__(self, *, careful_least: int = CAREFUL_LEAST) -> None:
        self._memories = {table: DuplicateMemory(careful_least=careful_least) for table in InsertedTable}

    def __repr__(self) -> str:
        return f"InsertForms({self._memories})"

    def __getitem__(self, table: InsertedTable) -> DuplicateMemory:
        return self._memories[table]

    def careful_tables(self) -> frozenset[InsertedTable]:
        """Return the tables for which the next batch is to use the form with `ON CONFLICT`."""
        return frozenset(table for table, memory in self._memories.items() if memory.is_careful)

    def expect_duplicates(self) -> None:
        """Use the form with `ON CONFLICT` for a while, for all tables."""
        for memory in self._memories.values():
            memory.expect_duplicates()
