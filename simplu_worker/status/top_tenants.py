"""The tenants that take most time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.leases.lease import TOP_MAX, TopTenant
from simplu_worker.fairness import RANK_COUNT, TenantUsage, WindowUse
from simplu_worker.status import answers
from simplu_worker.timing.clock import loop_time

INTERVAL_S: Final = 10.0
MINUTE_MIN_S: Final = 0.6  # that a tenant has to have taken to be shown: a hundredth of the last minute,
HOUR_MIN_S: Final = 36.0  # or of the last hour
ROWS_MAX: Final = 200


class TopTenants:
    """The tenants that took most of the last minute."""

    def __init__(self) -> None:
        self.rows: list[answers.TopTenant] = []

    async def note(self, usages: Mapping[str, TenantUsage]) -> None:
        """Take over what tenants took of shards, and set the metrics."""
        rows: list[answers.TopTenant] = []
        for shard_id, usage in usages.items():
            now = loop_time()
            minute, hour = usage.last_minute(now), usage.last_hour(now)
            seconds = [minute.by_tenant[tenant_id].took_s for tenant_id in minute.largest()]
            for rank in range(RANK_COUNT):
                gauge = instruments.SHARD_TENANT_SECONDS.labels(shard_id, str(rank + 1))
                gauge.set(seconds[rank] if rank < len(seconds) else 0.0)
            rows += tenant_rows(shard_id, minute, hour)
            await asyncio.sleep(0)  # there may be hundreds of shards
        self.rows = sorted(rows, key=lambda row: [-_seconds(row.last_minute), -_seconds(row.last_hour)])[:ROWS_MAX]

    def first(self) -> tuple[TopTenant, ...]:
        """Return those for the other replicas."""
        return tuple(
            TopTenant(row.tenant, row.shard_id, row.last_minute.seconds)
            for row in self.rows[:TOP_MAX]
            if row.last_minute is not None
        )


def tenant_rows(shard_id: str, minute: WindowUse, hour: WindowUse) -> list[answers.TopTenant]:
    """Return the tenants that took a hundredth of a shard's time in a window, with the figures of both."""
    shown = [one for one in minute.largest() if minute.by_tenant[one].took_s >= MINUTE_MIN_S]
    shown += [one for one in hour.largest() if hour.by_tenant[one].took_s >= HOUR_MIN_S and one not in shown]
    return [answers.TopTenant(shard_id, one, _use_of(minute, one), _use_of(hour, one)) for one in shown]


def _use_of(window: WindowUse, tenant_id: str) -> answers.TenantUse | None:
    use = window.by_tenant.get(tenant_id)
    if use is None:
        return None
    return answers.TenantUse(
        seconds=round(use.took_s, 3),
        share=round(use.took_s / window.total_s, 3) if window.total_s else 0.0,
        operations=use.operation_count,
        bytes=use.size_bytes,
        waited_seconds=round(use.waited_s, 3),
    )


def _seconds(use: object) -> float:
    return use.seconds if isinstance(use, answers.TenantUse) else 0.0
