"""Whether a leader of the Kinesis Client Library 3.x assigns the leases, and the metrics that it assigns them by. Pure.

Until KCL 3.4, the rows of leader and migration are in a coordinator table, those of the workers in a table of worker
metrics. Since 3.5 all are in the lease table, distinguished by `entityType`; while they move, each table has some.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import LeaseRow

LEADING_VERSIONS: Final = frozenset({"CLIENT_VERSION_3X", "CLIENT_VERSION_3X_WITH_ROLLBACK"})
UPGRADING_VERSION: Final = "CLIENT_VERSION_UPGRADE_FROM_2X"

# Looks without a beat after which its owner is dead. Looks and beats are about as frequent: a beat that is late, for a
# pause of the process or a throttled request, must not let this worker take leases beside a live leader.
LOOKS: Final = 2

FOLLOWER: Final = "simpluFollower"  # marks the metrics of this worker: they are no sign of life of a KCL

Beats: TypeAlias = dict[tuple[str, str], str]

WORKER_ENTITY: Final = "WORKER_METRIC_STATS"
_KIND_BY_KEY: Final = {  # rows before KCL 3.4 have no entityType
    "Leader": "LEADER",
    "Migration3.0": "CLIENT_VERSION_MIGRATION",
    "TableMigration3.5": "TABLE_MIGRATION",
}


class KclState(msgspec.Struct, frozen=True):
    """The state of a KCL 3.x application at one look.

    Beats are owners by table with what changes at every sign of life: the record version of the leader's lock, the time
    of a worker's last metrics (each every 30 s); replicas of this worker are not among them. *table_states* are those
    of the move of all rows into the lease table, and *version_tables* have the mode of the application.
    """

    client_versions: set[str] = msgspec.field(default_factory=set)
    leader_beats: Beats = msgspec.field(default_factory=dict)
    worker_beats: Beats = msgspec.field(default_factory=dict)
    table_states: set[str] = msgspec.field(default_factory=set)
    version_tables: set[str] = msgspec.field(default_factory=set)

    @property
    def is_version_leading(self) -> bool:
        """Whether the application is in a mode in which its leader assigns the leases."""
        return not self.client_versions.isdisjoint(LEADING_VERSIONS)


def state_of(tables: Iterable[tuple[str, Iterable[LeaseRow]]]) -> KclState:
    """Return the state that the rows of *tables* (name, rows) contain."""
    state = KclState()
    for table, rows in tables:
        for row in rows:
            match _kind_of(row):
                case "LEADER" if version := _text(row, "recordVersionNumber"):
                    state.leader_beats[table, _text(row, "ownerName")] = version
                case "CLIENT_VERSION_MIGRATION":
                    state.client_versions.add(_text(row, "cv"))
                    state.version_tables.add(table)
                case "TABLE_MIGRATION":
                    state.table_states.add(_text(row, "tm"))
                case "WORKER_METRIC_STATS" if FOLLOWER not in row:
                    state.worker_beats[table, _text(row, "wid") or _text(row, "leaseKey")] = _text(row, "lut")
    return state


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
        return "the Kinesis Client Library 3.x assigns the leases as soon as it runs; this worker takes none then"
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


CPU: Final = "C"
CPU_LIMIT_PERCENT: Final = 80  # the KCL's operating range: above it the leader takes leases from a worker
VALUES_MAX: Final = 10  # of one metric in a row (KCL)
SINGLE_TABLE_SUPPORT: Final = 1  # "sup": this worker knows that the rows move into the lease table
MOVED_STATES: Final = frozenset({"TABLE_MIGRATION_STATUS_PENDING", "TABLE_MIGRATION_STATUS_COMPLETE"})


def cpu_percent(before: tuple[float, float], now: tuple[float, float]) -> float:
    """Return how much of a core was used, 0 to 100, between two readings of the processor's time and a clock."""
    passed_s = now[1] - before[1]
    return min(max(100 * (now[0] - before[0]) / passed_s, 0.0), 100.0) if passed_s > 0 else 0.0


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
