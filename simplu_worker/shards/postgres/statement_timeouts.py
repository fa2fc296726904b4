"""The timeouts of all requests to a shard. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

import msgspec

# One round trip, in the simple protocol. Plans are made once: planning a batch takes as long as running it.
BEGIN = """
BEGIN;
SET LOCAL lock_timeout = {lock_ms};
SET LOCAL statement_timeout = {statement_ms};
SET LOCAL idle_in_transaction_session_timeout = {idle_ms};
SET LOCAL plan_cache_mode = force_generic_plan;
"""


class StatementBudget(StrEnum):
    """How long each statement of a transaction may take."""

    USUAL = "usual"
    BATCH = "batch"  # of operations, from all the tenants that share the shard
    PART = "part"  # of a batch that took too long, to find the operation at fault


class ShardTimeouts(msgspec.Struct, frozen=True):
    """The timeout of each kind of request to a shard, in seconds.

    The server's own are shorter than ours, and a lock wait is the shortest: so a waiter learns the cause of its
    failure, and only a silent server, such as a frozen one, runs into *reply_s*. *probe_s* bounds a whole probe. A
    cancelled use waits up to *cancel_s* for the server to stop its statement. An idle connection is kept for *idle_s*.
    A batch that runs into *batch_s* is taken apart, and each of its parts has *part_s*.
    """

    connect_s: float = 5.0
    acquire_s: float = 10.0
    lock_s: float = 5.0
    statement_s: float = 25.0
    batch_s: float = 10.0
    part_s: float = 2.0
    idle_in_transaction_s: float = 30.0
    reply_s: float = 30.0
    cancel_s: float = 1.0
    close_s: float = 3.0
    idle_s: float = 60.0
    probe_s: float = 3.0

    def seconds_of(self, budget: StatementBudget) -> float:
        """Return how long one statement of a transaction with *budget* may take."""
        match budget:
            case StatementBudget.USUAL:
                return self.statement_s
            case StatementBudget.BATCH:
                return self.batch_s
            case StatementBudget.PART:
                return self.part_s
            case _:
                assert_never(budget)

    def begin(self, budget: StatementBudget = StatementBudget.USUAL) -> str:
        """Return the statements that open a transaction with these timeouts."""
        lock_s = min(self.lock_s, self.part_s / 2) if budget is StatementBudget.PART else self.lock_s
        seconds = {"lock_ms": lock_s, "statement_ms": self.seconds_of(budget), "idle_ms": self.idle_in_transaction_s}
        return BEGIN.format(**{name: round(value * 1000) for name, value in seconds.items()})


DEFAULT_TIMEOUTS = ShardTimeouts()
