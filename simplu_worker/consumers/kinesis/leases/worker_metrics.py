"""The row by which a worker of the KCL 3.x reports its metrics to the leader: its form and its table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from simplu_worker.consumers.kinesis.leases.kcl_leader import FOLLOWER, UPGRADING_VERSION, WORKER_ENTITY, KclState

CPU: Final = "C"
CPU_LIMIT_PERCENT: Final = 80  # the KCL's operating range: above it the leader takes leases from a worker
VALUES_MAX: Final = 10  # of one metric in a row (KCL)
SINGLE_TABLE_SUPPORT: Final = 1  # "sup": this worker knows that the rows move into the lease table
MOVED_STATES: Final = frozenset({"TABLE_MIGRATION_STATUS_PENDING", "TABLE_MIGRATION_STATUS_COMPLETE"})


def is_reporting_wanted(state: KclState) -> bool:
    """Return whether the application reads metrics: its leader assigns leases, or waits for the metrics of all."""
    return state.is_version_leading or UPGRADING_VERSION in state.client_versions


def has_moved_metrics(state: KclState) -> bool:
    """Return whether the metrics are in the lease table, and no longer in a table of their own (KCL 3.5)."""
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
