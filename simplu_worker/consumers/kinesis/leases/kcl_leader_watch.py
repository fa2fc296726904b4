"""Watches the tables of the Kinesis Client Library 3.x for a leader, and tells it this replica's metrics."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.leases import kcl_leader
from simplu_worker.consumers.kinesis.leases.lease import LeaseRow
from simplu_worker.consumers.kinesis.leases.lease_table import KEY, LeaseTable, TableMissingError, TableRequests
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.timing.clock import UtcClock

CHECK_INTERVAL_S: Final = 35.0  # a live leader writes a new version every 30 s, a live worker new metrics
OWNERS_NAMED: Final = 3

log = structlog.get_logger(__name__)


class KclTables(msgspec.Struct, frozen=True):
    """The names of the tables that the KCL 3.x has beside the lease table, until they are moved into it."""

    coordinator: str
    worker_metrics: str

    @classmethod
    def of(cls, lease_table: str, coordinator: str | None = None, worker_metrics: str | None = None) -> KclTables:
        """Return the names given, else those that the KCL derives."""
        return cls(
            coordinator or f"{lease_table}-CoordinatorState", worker_metrics or f"{lease_table}-WorkerMetricStats"
        )


class KclLeaderWatch:
    """Knows whether a live leader assigns the leases."""

    def __init__(self, client: Client, table: LeaseTable, kcl_tables: KclTables, *, follows: bool = False) -> None:
        """With *follows* the replica takes what the leader assigns to it."""
        self._requests = TableRequests(client)
        self.table = table
        self.kcl_tables = kcl_tables
        self.follows = follows
        self._states: tuple[kcl_leader.KclState, ...] = ()  # at the last looks, newest first
        self._owners: list[str] = []

    @property
    def is_leading(self) -> bool:
        """Whether a live leader assigns the leases."""
        return bool(self._leading_owners())

    @property
    def state(self) -> kcl_leader.KclState | None:
        """The state at the last look; None before."""
        return next(iter(self._states), None)

    @property
    def leaders(self) -> str | None:
        """The names of the leader, or of live workers while there is none; None without any."""
        owners = self._leading_owners()
        return ", ".join(owners[:OWNERS_NAMED]) + (", …" if len(owners) > OWNERS_NAMED else "") if owners else None

    @property
    def trouble(self) -> str | None:
        """Why this replica takes no leases; None when it may."""
        if self.follows or (names := self.leaders) is None:
            return None
        return (
            f"table {self.table.name}: the Kinesis Client Library 3.x at {names} assigns its leases; "
            "stop that application, set KINESIS_APPLICATION_NAME to another name, or KINESIS_KCL_FOLLOWER=true to be "
            "assigned leases by it"
        )

    @property
    def outlook(self) -> str | None:
        """What the KCL's application is about to do; None when that is nothing, or it leads already."""
        state = self.state
        text = None if state is None or self.is_leading or self.follows else kcl_leader.outlook_of(state)
        return text and f"table {self.table.name}: {text}"

    async def check(self) -> None:
        """Look for a leader in the last scan of the lease table, and in the KCL's other tables.

        A table that may not be read counts as empty. Raises RetryableError, and keeps the last result then.
        """
        coordinator, workers = self.kcl_tables.coordinator, self.kcl_tables.worker_metrics
        rows: list[tuple[str, Sequence[LeaseRow]]] = [
            (self.table.name, self.table.other_rows),
            (coordinator, await self._unless_missing(coordinator, self._find_coordinator_rows(coordinator))),
        ]
        if kcl_leader.state_of(rows).is_version_leading:  # else the workers do not matter
            rows.append((workers, await self._unless_missing(workers, self._scan(workers))))
        state = kcl_leader.state_of(rows)
        self._owners = kcl_leader.leading_owners(state, self._states)
        self._states = (state, *self._states)[: kcl_leader.LOOKS]

    def _leading_owners(self) -> list[str]:
        scanned = kcl_leader.state_of([(self.table.name, self.table.other_rows)])
        return self._owners or kcl_leader.new_leaders(scanned, self.state)

    async def _unless_missing(self, table: str, reading: Awaitable[Sequence[LeaseRow]]) -> Sequence[LeaseRow]:
        try:
            return await reading
        except TableMissingError:
            return ()
        except PermanentError as exc:
            log.warning("kcl_leader.unread", table=table, error=str(exc))
            return ()

    async def _find_coordinator_rows(self, table: str) -> Sequence[LeaseRow]:
        replies = [
            await self._requests.call(table, "get_item", Key={"key": {"S": key}}, ConsistentRead=True)
            for key in (kcl_leader.LEADER_KEY, kcl_leader.MIGRATION_KEY, kcl_leader.TABLES_KEY)
        ]
        return [reply["Item"] for reply in replies if reply.get("Item")]

    async def _scan(self, table: str) -> Sequence[LeaseRow]:
        rows: list[LeaseRow] = []
        page: dict[str, Any] = {}
        while True:
            reply = await self._requests.call(table, "scan", **page)
            rows += reply["Items"]
            if not reply.get("LastEvaluatedKey"):
                return rows
            page = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}


REPORT_INTERVAL_S: Final = 10.0  # the KCL reports every 30 s by default, and calls a worker dead after two intervals
METRICS_KEY: Final = "wid"  # of the table that only has worker metrics


class KclFollower:
    """The row of this replica's metrics: a leader of the KCL 3.x gives leases to workers with a fresh one only."""

    def __init__(self, requests: TableRequests, watch: KclLeaderWatch, *, me: str, utc: UtcClock) -> None:
        self._requests = requests
        self._watch = watch
        self._me = me
        self._utc = utc
        self._measured = time.process_time(), time.monotonic()
        self._percents: deque[float] = deque(maxlen=kcl_leader.VALUES_MAX)
        self._written: tuple[str, str] | None = None  # the table with the row, and its key
        self.trouble: str | None = None

    async def report(self) -> None:
        """Write the metrics where the KCL reads them. A failure is `trouble`."""
        before, self._measured = self._measured, (time.process_time(), time.monotonic())
        self._percents.append(kcl_leader.cpu_percent(before, self._measured))
        state = self._watch.state
        if state is None or not kcl_leader.is_reporting_wanted(state):
            self.trouble = None
            return
        try:
            await self._write(state)
        except (RetryableError, PermanentError) as exc:
            self.trouble = f"the metrics for the Kinesis Client Library 3.x could not be written: {exc}"
            log.warning("kcl_follower.unreported", error=str(exc))
        else:
            self.trouble = None

    async def leave(self) -> None:
        """Delete the row; if that fails, it expires."""
        if self._written is None:
            return
        table, key_name = self._written
        with contextlib.suppress(RetryableError, PermanentError):
            await self._requests.call(table, "delete_item", Key={key_name: {"S": self._me}})
        self._written = None

    async def _write(self, state: kcl_leader.KclState) -> None:
        # A KCL before 3.5 expects no such rows among the leases; an application that began with 3.5 has no other table.
        lease_table = self._watch.table.name
        if not kcl_leader.has_moved_metrics(state):
            try:
                return await self._put(self._watch.kcl_tables.worker_metrics, METRICS_KEY)
            except TableMissingError:
                if lease_table not in state.version_tables:
                    raise
        return await self._put(lease_table, KEY)

    async def _put(self, table: str, key_name: str) -> None:
        row = kcl_leader.metrics_row(key_name, self._me, list(self._percents), at_s=int(self._utc().timestamp()))
        await self._requests.call(table, "put_item", Item=row)
        self._written = table, key_name
