"""How long what is done to a shard may take."""

from __future__ import annotations

import msgspec

# One round trip, in the simple protocol. A plan is made once: for a batch, making one takes as long as it does.
BEGIN = """
BEGIN;
SET LOCAL lock_timeout = {lock_ms};
SET LOCAL statement_timeout = {statement_ms};
SET LOCAL idle_in_transaction_session_timeout = {idle_ms};
SET LOCAL plan_cache_mode = force_generic_plan;
"""


class ShardTimeouts(msgspec.Struct, frozen=True):
    """How long each thing done to a shard may take, in seconds.

    The server's own are the shorter ones, a lock wait the shortest: a waiter learns why it failed, and a server that
    answers nothing at all, such as a frozen one, is given up by *reply_s*. A probe has *probe_s* for everything. A use
    that is cancelled waits up to *cancel_s* for the server to stop. A connection that nobody uses is kept for *idle_s*.
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
        """The statements that open a transaction in which they hold."""
        seconds = {"lock_ms": self.lock_s, "statement_ms": self.statement_s, "idle_ms": self.idle_in_transaction_s}
        return BEGIN.format(**{name: round(value * 1000) for name, value in seconds.items()})


DEFAULT_TIMEOUTS = ShardTimeouts()
