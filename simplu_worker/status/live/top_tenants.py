"""The tenants that took most of the shards' time: for `/fleet`, for other replicas, and as metrics without names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from simplu_worker.consumers.kinesis.leases.lease_report import TOP_MAX, TopTenant
from simplu_worker.metrics import instruments
from simplu_worker.shards.tenant_usage import RANK_COUNT, TenantUsage, WindowUse
from simplu_worker.timing.clock import loop_time

INTERVAL_S: Final = 10.0
MINUTE_MIN_S: Final = 0.6  # that a tenant has to have taken to be shown: a hundredth of the last minute,
HOUR_MIN_S: Final = 36.0  # or of the last hour
ROWS_MAX: Final = 200


class TopTenants:
    """The tenants as of the last `note`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []  # as JSON members, those first that took most of the last minute

    def __repr__(self) -> str:
        return f"TopTenants({len(self.rows)} rows)"

    async def note(self, usages: Mapping[str, TenantUsage]) -> None:
        """Take over what tenants took of the shards that are in use, and set the metrics of these."""
        rows: list[dict[str, Any]] = []
        for shard_id, usage in usages.items():
            now = loop_time()
            minute, hour = usage.last_minute(now), usage.last_hour(now)
            seconds = [minute.by_tenant[tenant_id].took_s for tenant_id in minute.largest()]
            for rank in range(RANK_COUNT):
                gauge = instruments.SHARD_TENANT_SECONDS.labels(shard_id, str(rank + 1))
                gauge.set(seconds[rank] if rank < len(seconds) else 0.0)
            rows += tenant_rows(shard_id, minute, hour)
            await asyncio.sleep(0)  # there may be hundreds of shards
        self.rows = sorted(rows, key=lambda row: [-_seconds(row["lastMinute"]), -_seconds(row["lastHour"])])[:ROWS_MAX]

    def first(self) -> tuple[TopTenant, ...]:
        """Return those for the other replicas, which took most of the last minute."""
        rows = [row for row in self.rows[:TOP_MAX] if row["lastMinute"] is not None]
        return tuple(TopTenant(row["tenant"], row["shardId"], row["lastMinute"]["seconds"]) for row in rows)


def tenant_rows(shard_id: str, minute: WindowUse, hour: WindowUse) -> list[dict[str, Any]]:
    """Return as JSON members the tenants that took most of a shard's time in one of the windows, with both figures.

    None that took less than a hundredth of the window; null for a window that does not have the tenant.
    """
    shown = [one for one in minute.largest() if minute.by_tenant[one].took_s >= MINUTE_MIN_S]
    shown += [one for one in hour.largest() if hour.by_tenant[one].took_s >= HOUR_MIN_S and one not in shown]
    return [
        {"shardId": shard_id, "tenant": one, "lastMinute": _use_view(minute, one), "lastHour": _use_view(hour, one)}
        for one in shown
    ]


def _use_view(window: WindowUse, tenant_id: str) -> dict[str, Any] | None:
    use = window.by_tenant.get(tenant_id)
    if use is None:
        return None
    return {
        "seconds": round(use.took_s, 3),
        "share": round(use.took_s / window.total_s, 3) if window.total_s else 0.0,
        "operations": use.operation_count,
        "bytes": use.size_bytes,
        "waitedSeconds": round(use.waited_s, 3),
    }


def _seconds(view: dict[str, Any] | None) -> float:
    return 0.0 if view is None else float(view["seconds"])
