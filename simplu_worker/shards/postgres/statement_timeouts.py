"""The timeouts of all requests to a shard. Pure."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Final, assert_never

import msgspec

# One round trip, in the simple protocol. Plans are made once: planning a batch takes as long as running it. And nothing
# is compiled: up to version 17 a plan in which a sequential scan is not allowed, and yet needed, seems so dear that the
# server compiles it, at each run, for half a second.
BEGIN = """
BEGIN;
SET LOCAL lock_timeout = {lock_ms};
SET LOCAL statement_timeout = {statement_ms};
SET LOCAL idle_in_transaction_session_timeout = {idle_ms};
SET LOCAL plan_cache_mode = force_generic_plan;
SET LOCAL jit = off;
"""
# What bounds the rows that it reads by an index in its order may get no other plan, whatever the statistics are: a
# sequential scan, or a bitmap of all rows of a tenant, reads the whole table (sql/queries/listing.sql).
BY_INDEX = """
SET LOCAL plan_cache_mode = force_custom_plan;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
"""
# A plan for the operations of a batch is used while the tables grow: a sequential scan, which suits a small one, would
# read it as a whole for each of them, until the next ANALYZE. And a statement keeps its batch, of up to 4 MiB of
# records, for several steps: with the default memory of 4 MB it would write it into a file.
BATCH = """
SET LOCAL enable_seqscan = off;
SET LOCAL work_mem = '16MB';
"""
SEARCH = f"""{BY_INDEX}SET TRANSACTION READ ONLY;
"""
# Another index that begins with the tenant would do with a sort: of all rows of the tenant, once for each range.
KEY_RANGE = f"""{BY_INDEX}SET LOCAL enable_sort = off;
"""


class StatementBudget(StrEnum):
    """How long each statement of a transaction may take."""

    USUAL = "usual"
    BATCH = "batch"  # of operations, from all the tenants that share the shard
    PART = "part"  # of a batch that took too long, or met a lock, to find the operation at fault
    PATIENT_BATCH = "patient batch"  # behind a lock that is of no tenant's rows
    SEARCH = "search"  # of the log, for people; it reads only
    KEY_RANGE = "key range"  # of a tenant's rows, in the order of their keys
    PAUSE = "pause"  # for the lock of one tenant's row: to wait for batches for longer would delay others as well


PLANS: Final = {
    StatementBudget.BATCH: BATCH,
    StatementBudget.PATIENT_BATCH: BATCH,
    StatementBudget.PART: BATCH,
    StatementBudget.SEARCH: SEARCH,
    StatementBudget.KEY_RANGE: KEY_RANGE,
}


class ShardTimeouts(msgspec.Struct, frozen=True):
    """The timeout of each kind of request to a shard, in seconds.

    The server's own are shorter than ours, and a lock wait is the shortest: so a waiter learns the cause of its
    failure, and only a silent server, such as a frozen one, runs into *reply_s*. *probe_s* bounds a whole probe. A
    cancelled use waits up to *cancel_s* for the server to stop its statement. An idle connection is kept for *idle_s*.
    A batch that runs into *batch_s* is taken apart, and each of its parts has *part_s*. Each statement of a search has
    *search_s*. A batch waits for the rows of its tenants for *row_lock_s*, and each part of it for *part_lock_s*; a
    step of a tenant's move, or a control message, waits for the tenant's row for *pause_lock_s*.
    """

    connect_s: float = 5.0
    acquire_s: float = 10.0
    lock_s: float = 5.0
    statement_s: float = 25.0
    batch_s: float = 10.0
    part_s: float = 2.0
    search_s: float = 3.0
    row_lock_s: float = 0.3
    part_lock_s: float = 0.1
    pause_lock_s: float = 0.3
    idle_in_transaction_s: float = 30.0
    reply_s: float = 30.0
    cancel_s: float = 1.0
    close_s: float = 3.0
    idle_s: float = 60.0
    probe_s: float = 3.0

    def seconds_of(self, budget: StatementBudget) -> float:
        """Return how long one statement of a transaction with *budget* may take."""
        match budget:
            case StatementBudget.USUAL | StatementBudget.PAUSE | StatementBudget.KEY_RANGE:
                return self.statement_s
            case StatementBudget.BATCH | StatementBudget.PATIENT_BATCH:
                return self.batch_s
            case StatementBudget.PART:
                return self.part_s
            case StatementBudget.SEARCH:
                return self.search_s
            case _:
                assert_never(budget)

    def lock_seconds_of(self, budget: StatementBudget) -> float:
        """Return how long a transaction with *budget* may wait for one lock."""
        match budget:
            case StatementBudget.USUAL | StatementBudget.KEY_RANGE | StatementBudget.PATIENT_BATCH:
                return self.lock_s
            case StatementBudget.BATCH:
                return min(self.lock_s, self.row_lock_s)
            case StatementBudget.PART:
                return min(self.lock_s, self.part_lock_s)
            case StatementBudget.SEARCH:
                return min(self.lock_s, self.search_s / 2)
            case StatementBudget.PAUSE:
                return self.pause_lock_s
            case _:
                assert_never(budget)

    def begin(self, budget: StatementBudget = StatementBudget.USUAL) -> str:
        """Return the statements that open a transaction with these timeouts."""
        return _begin(self, budget)


@cache
def _begin(timeouts: ShardTimeouts, budget: StatementBudget) -> str:
    statement_s = timeouts.seconds_of(budget)
    lock_s = timeouts.lock_seconds_of(budget)
    seconds = {"lock_ms": lock_s, "statement_ms": statement_s, "idle_ms": timeouts.idle_in_transaction_s}
    begin = BEGIN.format(**{name: round(value * 1000) for name, value in seconds.items()})
    return begin + PLANS.get(budget, "")


DEFAULT_TIMEOUTS = ShardTimeouts()
