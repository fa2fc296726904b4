"""Whether a leader of the Kinesis Client Library 3.x assigns the leases, and the metrics that it assigns them by. Pure.

Until KCL 3.4, the rows of leader and migration are in a coordinator table, those of the workers in a table of worker
metrics. Since 3.5 all are in the lease table, distinguished by `entityType`; while they move, each table has some.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import structlog

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.leases.lease import LeaseRow
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable, TableMissingError, TableRequests
from simplu_worker.errors import PermanentError

LEADING_VERSIONS: Final = frozenset({"CLIENT_VERSION_3X", "CLIENT_VERSION_3X_WITH_ROLLBACK"})
UPGRADING_VERSION: Final = "CLIENT_VERSION_UPGRADE_FROM_2X"
LEADER_KEY: Final = "Leader"
MIGRATION_KEY: Final = "Migration3.0"
TABLES_KEY: Final = "TableMigration3.5"

# Looks without a beat after which its owner is dead. Looks and beats are about as frequent: a beat that is late, for a
# pause of the process or a throttled request, must not let this worker take leases beside a live leader.
LOOKS: Final = 2

FOLLOWER: Final = "simpluFollower"  # marks the metrics of this worker: they are no sign of life of a KCL

Beats: TypeAlias = Mapping[tuple[str, str], str]

WORKER_ENTITY: Final = "WORKER_METRIC_STATS"
_LEADER, _MIGRATION, _TABLES = "LEADER", "CLIENT_VERSION_MIGRATION", "TABLE_MIGRATION"
_KIND_BY_KEY: Final = {
    LEADER_KEY: _LEADER,
    MIGRATION_KEY: _MIGRATION,
    TABLES_KEY: _TABLES,
}  # rows before KCL 3.4 have no entityType


class KclState(msgspec.Struct, frozen=True):
    """The state of a KCL 3.x application at one look.

    Beats are owners by table with what changes at every sign of life: the record version of the leader's lock, the time
    of a worker's last metrics (each every 30 s); replicas of this worker are not among them. *table_states* are those
    of the move of all rows into the lease table, and *version_tables* have the mode of the application.
    """

    client_versions: frozenset[str] = frozenset()
    leader_beats: Beats = msgspec.field(default_factory=dict)
    worker_beats: Beats = msgspec.field(default_factory=dict)
    table_states: frozenset[str] = frozenset()
    version_tables: frozenset[str] = frozenset()

    @property
    def is_version_leading(self) -> bool:
        """Whether the application is in a mode in which its leader assigns the leases."""
        return not self.client_versions.isdisjoint(LEADING_VERSIONS)


def state_of(tables: Iterable[tuple[str, Iterable[LeaseRow]]]) -> KclState:
    """Return the state that the rows of *tables* (name, rows) contain."""
    versions: set[str] = set()
    table_states: set[str] = set()
    version_tables: set[str] = set()
    leader_beats: dict[tuple[str, str], str] = {}
    worker_beats: dict[tuple[str, str], str] = {}
    for table, rows in tables:
        for row in rows:
            match _kind_of(row):
                case "LEADER" if version := _text(row, "recordVersionNumber"):
                    leader_beats[table, _text(row, "ownerName")] = version
                case "CLIENT_VERSION_MIGRATION":
                    versions.add(_text(row, "cv"))
                    version_tables.add(table)
                case "TABLE_MIGRATION":
                    table_states.add(_text(row, "tm"))
                case "WORKER_METRIC_STATS" if FOLLOWER not in row:
                    worker_beats[table, _text(row, "wid") or _text(row, "leaseKey")] = _text(row, "lut")
    return KclState(frozenset(versions), leader_beats, worker_beats, frozenset(table_states), frozenset(version_tables))


def leading_owners(state: KclState, earlier: Sequence[KclState]) -> list[str]:
    """Return the workers that show that the application assigns the leases: its leader, else its live workers.

    *earlier* are the states at the last LOOKS looks; a live one had another beat at one of them. Workers count because
    one of them becomes the leader soon.
    """
    if not state.is_version_leading:
        return []
    if len(earlier) < LOOKS and state.leader_beats:
        return sorted({owner for _, owner in state.leader_beats})
    return _moved(state.leader_beats, [before.leader_beats for before in earlier]) or _moved(
        state.worker_beats, [before.worker_beats for before in earlier]
    )


def _moved(beats: Beats, earlier: Sequence[Beats]) -> list[str]:
    return sorted({key[1] for key, beat in beats.items() if any(before.get(key) != beat for before in earlier)})


def outlook_of(state: KclState) -> str | None:
    """Return what the application is about to do, for people; None when it will not assign leases."""
    if state.is_version_leading:
        versions = ", ".join(sorted(state.client_versions & LEADING_VERSIONS))
        return (
            f"the Kinesis Client Library 3.x ({versions}) assigns the leases as soon as it runs; "
            "this worker takes none then"
        )
    if UPGRADING_VERSION in state.client_versions:
        return (
            f"the Kinesis Client Library 3.x ({UPGRADING_VERSION}) works as 2.x, and does not begin to assign the "
            "leases while a worker without its metrics, such as this one, owns a lease; this worker takes none then"
        )
    return None


def new_leaders(state: KclState, before: KclState | None) -> list[str]:
    """Return the leaders of a leading application with locks that were not there at the last look."""
    if before is None or not state.is_version_leading:
        return []
    return sorted({owner for table, owner in state.leader_beats if (table, owner) not in before.leader_beats})


def _kind_of(row: LeaseRow) -> str | None:
    if "entityType" in row:
        return _text(row, "entityType")
    return WORKER_ENTITY if "wid" in row else _KIND_BY_KEY.get(_text(row, "key"))


def _text(row: LeaseRow, name: str) -> str:
    value = row.get(name, {})
    return str(value.get("S", value.get("N", "")))


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
        self._table = table
        self._kcl_tables = kcl_tables
        self.follows = follows
        self._states: tuple[KclState, ...] = ()  # at the last looks, newest first
        self._owners: list[str] = []

    @property
    def is_leading(self) -> bool:
        """Whether a live leader assigns the leases."""
        return bool(self._leading_owners())

    @property
    def state(self) -> KclState | None:
        """The state at the last look, with the modes of the last scan; None before."""
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
        """The names of the leader, or of live workers while there is none; None without any."""
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
        """What the KCL's application is about to do; None when that is nothing, or it leads already."""
        state = self.state
        text = None if state is None or self.is_leading or self.follows else outlook_of(state)
        return text and f"table {self._table.name}: {text}"

    async def check(self) -> None:
        """Look for a leader in the last scan of the lease table, and in the KCL's other tables.

        A table that may not be read counts as empty. Raises RetryableError, and keeps the last result then.
        """
        coordinator, workers = self._kcl_tables.coordinator, self._kcl_tables.worker_metrics
        rows: list[tuple[str, Sequence[LeaseRow]]] = [
            (self._table.name, self._table.other_rows),
            (coordinator, await self._unless_missing(coordinator, self._find_coordinator_rows(coordinator))),
        ]
        if state_of(rows).is_version_leading:  # else the workers do not matter
            rows.append((workers, await self._unless_missing(workers, self._scan(workers))))
        state = state_of(rows)
        self._owners = leading_owners(state, self._states)
        self._states = (state, *self._states)[:LOOKS]

    def _leading_owners(self) -> list[str]:
        return self._owners or new_leaders(self._scanned(), next(iter(self._states), None))

    def _scanned(self) -> KclState:
        return state_of([(self._table.name, self._table.other_rows)])

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


CPU: Final = "C"
CPU_LIMIT_PERCENT: Final = 80  # the KCL's operating range: above it the leader takes leases from a worker
VALUES_MAX: Final = 10  # of one metric in a row (KCL)
SINGLE_TABLE_SUPPORT: Final = 1  # "sup": this worker knows that the rows move into the lease table
MOVED_STATES: Final = frozenset({"TABLE_MIGRATION_STATUS_PENDING", "TABLE_MIGRATION_STATUS_COMPLETE"})


def is_reporting_wanted(state: KclState) -> bool:
    """Return whether the leader assigns leases, or waits for the metrics of all."""
    return state.is_version_leading or UPGRADING_VERSION in state.client_versions


def has_moved_metrics(state: KclState) -> bool:
    """Return whether the metrics are in the lease table, and no longer in one of their own (KCL 3.5)."""
    return not state.table_states.isdisjoint(MOVED_STATES)


def metrics_row(key_name: str, worker: str, cpu_percents: Sequence[float], *, at_s: int) -> dict[str, dict[str, Any]]:
    """Return the row of *worker* at *at_s* (seconds since 1970): the last values of its CPU share, newest last."""
    last = [{"N": f"{percent:.2f}"} for percent in cpu_percents[-VALUES_MAX:]]
    return {
        key_name: {"S": worker},
        "entityType": {"S": WORKER_ENTITY},
        "lut": {"N": str(at_s)},
        "sts": {"M": {CPU: {"L": last}}},
        "opr": {"M": {CPU: {"L": [{"N": str(CPU_LIMIT_PERCENT)}]}}},
        "sup": {"N": str(SINGLE_TABLE_SUPPORT)},
        "slu": {"N": str(at_s)},
        FOLLOWER: {"BOOL": True},
    }
