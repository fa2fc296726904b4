"""The isolation level, the timeouts and the settings of all requests to a shard. Pure.

Only two defaults of server, database and role count: `default_transaction_read_only`, which tells that a server is not
to be written to, and `synchronous_commit`, which its owner chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Final, NamedTuple

import msgspec

TRANSACTION_TIMEOUT_SINCE: Final = 17  # the version of PostgreSQL

# What texts mean, how values are written as text, and that policies, not errors, decide which rows a role sees.
FORMATS: Final = {
    "client_encoding": "'UTF8'",
    "standard_conforming_strings": "on",
    "TimeZone": "'UTC'",
    "DateStyle": "'ISO, YMD'",
    "IntervalStyle": "'postgres'",
    "bytea_output": "'hex'",
    "extra_float_digits": "3",  # before PostgreSQL 12 only 3 writes all digits
    "row_security": "on",
    "client_min_messages": "warning",  # that a wait for standbys was cut short is told by a warning alone
}
# Plans are made once: planning a batch takes as long as running it. And nothing is compiled: up to version 17 a plan in
# which a sequential scan is not allowed, and yet needed, seems so dear that the server compiles it, at each run, for
# half a second.
PLANNING: Final = {"plan_cache_mode": "force_generic_plan", "jit": "off"}
# What bounds the rows that it reads by an index in its order may get no other plan, whatever the statistics are: a
# sequential scan, or a bitmap of all rows of a tenant, reads the whole table (sql/queries/listing.sql); so does a join
# that is not of one row after the other.
BY_INDEX = """
SET LOCAL plan_cache_mode = force_custom_plan;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
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


class Isolation(StrEnum):
    """The isolation level of a transaction."""

    READ_COMMITTED = "READ COMMITTED"  # what waits for a lock and then reads sees the commit that it waited for
    ONE_MOMENT = "REPEATABLE READ, READ ONLY"  # all statements see the shard as of the first one


class StatementBudget(StrEnum):
    """How long each statement of a transaction may take."""

    USUAL = "usual"
    BATCH = "batch"  # of operations, from all the tenants that share the shard
    PART = "part"  # of a batch that took too long, or met a lock, to find the operation at fault
    PATIENT_BATCH = "patient batch"  # behind a lock that is of no tenant's rows
    SEARCH = "search"  # of the log, for people; it reads only
    KEY_RANGE = "key range"  # of a tenant's rows, in the order of their keys
    PAUSE = "pause"  # for the lock of one tenant's row: to wait for batches for longer would delay others as well


class Limits(NamedTuple):
    """How long one statement may take, and wait for a lock; *plans* are statements that restrict its plans."""

    statement_s: float
    lock_s: float
    plans: str = ""


class ShardTimeouts(msgspec.Struct, frozen=True):
    """The timeout of each kind of request to a shard, in seconds.

    The server's are shorter than ours, and a lock wait is the shortest: so only a silent server runs into *reply_s*.
    *probe_s* bounds a whole probe, *cancel_s* the wait for a server to stop a statement, *stop_s* that of a closing
    pool. A batch that runs into *batch_s* is taken apart into parts of *part_s*; it waits for rows of its tenants for
    *row_lock_s*, a part for *part_lock_s*. A control message, or a step of a move, waits for the tenant's row for
    *pause_lock_s*.
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
    stop_s: float = 0.2
    idle_s: float = 60.0
    probe_s: float = 3.0

    def limits_of(self, budget: StatementBudget) -> Limits:
        """Return what bounds the statements of a transaction with *budget*."""
        return {
            StatementBudget.USUAL: Limits(self.statement_s, self.lock_s),
            StatementBudget.BATCH: Limits(self.batch_s, min(self.lock_s, self.row_lock_s), BATCH),
            StatementBudget.PART: Limits(self.part_s, min(self.lock_s, self.part_lock_s), BATCH),
            StatementBudget.PATIENT_BATCH: Limits(self.batch_s, self.lock_s, BATCH),
            StatementBudget.SEARCH: Limits(self.search_s, min(self.lock_s, self.search_s / 2), SEARCH),
            StatementBudget.KEY_RANGE: Limits(self.statement_s, self.lock_s, KEY_RANGE),
            StatementBudget.PAUSE: Limits(self.statement_s, self.pause_lock_s),
        }[budget]

    def begin(
        self,
        budget: StatementBudget = StatementBudget.USUAL,
        isolation: Isolation = Isolation.READ_COMMITTED,
        *,
        settings: str = "",
    ) -> str:
        """Return the statements that open a transaction; *settings* are those that its session lacks."""
        return _begin(self, budget, isolation, settings)

    def settings(self, server_version: int, *, is_own_session: bool) -> str:
        """Return the statements that make all settings: of a session, or of a transaction in the session of others."""
        settings = FORMATS | PLANNING | {"idle_in_transaction_session_timeout": _ms(self.idle_in_transaction_s)}
        if server_version >= TRANSACTION_TIMEOUT_SINCE:
            settings |= {"transaction_timeout": "0"}
        if not is_own_session:
            return set_all("SET LOCAL", settings)
        settings |= {"lock_timeout": _ms(self.lock_s), "statement_timeout": _ms(self.statement_s)}
        return set_all("SET", settings | {"default_transaction_isolation": f"'{Isolation.READ_COMMITTED}'"})


def set_all(command: str, settings: Mapping[str, str]) -> str:
    """Return the statements that make *settings* by *command*, `SET` or `SET LOCAL`."""
    return "".join(f"{command} {name} = {value};\n" for name, value in settings.items())


@cache
def _begin(timeouts: ShardTimeouts, budget: StatementBudget, isolation: Isolation, settings: str) -> str:
    limits = timeouts.limits_of(budget)
    of_statement = {"lock_timeout": _ms(limits.lock_s), "statement_timeout": _ms(limits.statement_s)}
    # One round trip, in the simple protocol.
    return f"BEGIN ISOLATION LEVEL {isolation};\n{settings}{set_all('SET LOCAL', of_statement)}{limits.plans}"


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


DEFAULT_TIMEOUTS = ShardTimeouts()
