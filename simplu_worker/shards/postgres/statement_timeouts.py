"""The timeouts of all requests to a shard. Pure."""

from __future__ import annotations

import msgspec

# One round trip, in the simple protocol. Plans are made once: planning a batch takes as long as running it.
BEGIN = """
BEGIN;
SET LOCAL lock_timeout = {lock_ms};
SET LOCAL statement_timeout = {statement_ms};
SET LOCAL idle_in_transaction_session_timeout = {idle_ms};
SET LOCAL plan_cache_mode = force_generic_plan;
"""


class ShardTimeouts(msgspec.Struct, frozen=True):
    """The timeout of each kind of request to a shard, in seconds.

    The server's own are shorter than ours, and a lock wait is the shortest: so a waiter learns the cause of its
    failure, and only a silent server, such as a frozen one, runs into *reply_s*. *probe_s* bounds a whole probe. A
    cancelled use waits up to *cancel_s* for the server to stop its statement. An idle connection is kept for *idle_s*.
    """

    connect_s: float = 5.0
    acquire_s: float = 10.0
    lock_s: float = 5.0
    statement_s: float = 25.0
    idle_in_transaction_s: float = 30.0
    reply_s: float = 30.0
    cancel_s: float = 1.0
    close_s: float = 3.0
    idle_s: float = 60.0
    probe_s: float = 3.0

    @property
    def begin(self) -> str:
        """The statements that open a transaction with these timeouts."""
        seconds = {"lock_ms": self.lock_s, "statement_ms": self.statement_s, "idle_ms": self.idle_in_transaction_s}
        return BEGIN.format(**{name: round(value * 1000) for name, value in seconds.items()})


DEFAULT_TIMEOUTS = ShardTimeouts()
