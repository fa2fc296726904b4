"""Watch for a leader of the Kinesis Client Library 3.x, which assigns the leases of the table itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.leases.kcl_leader import (
    LEADER_KEY,
    LOOKS,
    MIGRATION_KEY,
    TABLES_KEY,
    KclState,
    leading_owners,
    new_leaders,
    outlook_of,
    state_of,
)
from simplu_worker.consumers.kinesis.leases.lease import LeaseRow
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.leases.table_requests import TableMissingError, TableRequests
from simplu_worker.errors import PermanentError

CHECK_INTERVAL_S: Final = 35.0  # a live leader writes a new version every 30 s, a live worker new metrics
OWNERS_NAMED: Final = 3

log = structlog.get_logger(__name__)


class KclTables(msgspec.Struct, frozen=True):
    """The names of the tables that the KCL 3.x has beside the lease table, until they are moved into it."""

    coordinator: str
    worker_metrics: str

    @classmethod
    def of(cls, lease_table: str, coordinator: str | None = None, worker_metrics: str | None = None) -> KclTables:
        """Return the names: those given, else those that the KCL derives from the application's name."""
        return cls(
            coordinator or f"{lease_table}-CoordinatorState", worker_metrics or f"{lease_table}-WorkerMetricStats"
        )


class KclLeaderWatch:
    """Knows whether a live leader assigns the leases. It would take back every lease that this replica takes."""

    def __init__(self, client: Client, table: LeaseTable, kcl_tables: KclTables, *, follows: bool = False) -> None:
        """With *follows* the replica takes what the leader assigns to it, so a leader is no trouble."""
        self._requests = TableRequests(client)
        self._table = table
        self._kcl_tables = kcl_tables
        self.follows = follows
        self._states: tuple[KclState, ...] = ()  # at the last looks, newest first
        self._owners: list[str] = []

    def __repr__(self) -> str:
        return f"KclLeaderWatch({self._table.name}, {self._owners}, {self._states[:1]})"

    @property
    def is_leading(self) -> bool:
        """Whether a live leader assigns the leases."""
        return bool(self._leading_owners())

    @property
    def state(self) -> KclState | None:
        """The state of the application at the last look, with the modes that the last scan shows; None before."""
        looked, scanned = next(iter(self._states), None), self._scanned()
        return looked and msgspec.structs.replace(
            looked,
            client_versions=scanned.client_versions or looked.client_versions,
            table_states=scanned.table_states | looked.table_states,
            version_tables=scanned.version_tables | looked.version_tables,
        )

    @property
    def lease_table(self) -> str:
        """The name of the lease table."""
        return self._table.name

    @property
    def metrics_table(self) -> str:
        """The name of the table of worker metrics, which need not exist."""
        return self._kcl_tables.worker_metrics

    @property
    def leaders(self) -> str | None:
        """The names of the leader, or of live workers while there is none; None when nothing assigns the leases."""
        owners = self._leading_owners()
        return ", ".join(owners[:OWNERS_NAMED]) + (", …" if len(owners) > OWNERS_NAMED else "") if owners else None

    @property
    def trouble(self) -> str | None:
        """Why this replica takes no leases; None when it may."""
        if self.follows or (names := self.leaders) is None:
            return None
        return (
            f"table {self._table.name}: the Kinesis Client Library 3.x at {names} assigns its leases; "
            "stop that application, set KINESIS_APPLICATION_NAME to another name, or KINESIS_KCL_FOLLOWER=true to be "
            "assigned leases by it"
        )

    @property
    def outlook(self) -> str | None:
        """What the KCL's application is about to do, by the last look; None when it is nothing, or leads already."""
        state = self.state
        text = None if state is None or self.is_leading or self.follows else outlook_of(state)
        return text and f"table {self._table.name}: {text}"

    async def check(self) -> None:
        """Look for a leader in the last scan of the lease table, and in the KCL's other tables.

        A table that may not be read counts as empty. Raises RetryableError, and keeps the result of the last look then.
        """
        coordinator, workers = self._kcl_tables.coordinator, self._kcl_tables.worker_metrics
        rows: list[tuple[str, Sequence[LeaseRow]]] = [
            (self._table.name, self._table.other_rows),
            (coordinator, await self._read(self._find_coordinator_rows, coordinator)),
        ]
        if state_of(rows).is_version_leading:  # else the workers do not matter
            rows.append((workers, await self._read(self._scan, workers)))
        state = state_of(rows)
        self._owners = leading_owners(state, self._states)
        self._states = (state, *self._states)[:LOOKS]

    def _leading_owners(self) -> list[str]:
        """Return those of the last look, or leaders that have come into the lease table since."""
        return self._owners or new_leaders(self._scanned(), next(iter(self._states), None))

    def _scanned(self) -> KclState:
        return state_of([(self._table.name, self._table.other_rows)])

    async def _read(self, read: Callable[[str], Awaitable[Sequence[LeaseRow]]], table: str) -> Sequence[LeaseRow]:
        """Return the rows that *read* finds; none without the table, or without the right to read it."""
        try:
            return await read(table)
        except TableMissingError:
            return ()
        except PermanentError as exc:
            log.warning("kcl_leader.unread", table=table, error=str(exc))
            return ()

    async def _find_coordinator_rows(self, table: str) -> Sequence[LeaseRow]:
        replies = [
            await self._requests.call(table, "get_item", Key={"key": {"S": key}}, ConsistentRead=True)
            for key in (LEADER_KEY, MIGRATION_KEY, TABLES_KEY)
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
