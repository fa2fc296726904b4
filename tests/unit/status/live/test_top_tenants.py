from __future__ import annotations

from prometheus_client import REGISTRY

from simplu_worker import instruments
from simplu_worker.consumers.kinesis.leases.lease import TOP_MAX, TopTenant
from simplu_worker.fairness import RANK_COUNT, TenantUsage, TenantUse, WindowUse
from simplu_worker.status.replica import HOUR_MIN_S, MINUTE_MIN_S, TopTenants, tenant_rows
from simplu_worker.timing.clock import loop_time

LOUD = TenantUse(12.0, 100, 5000, 3.25)
FIGURES = {"seconds": 12.0, "share": 0.75, "operations": 100, "bytes": 5000, "waitedSeconds": 3.25}


def usage_of(**seconds: float) -> TenantUsage:
    usage = TenantUsage()
    usage.note({tenant_id: TenantUse(took_s, 1, 1) for tenant_id, took_s in seconds.items()}, loop_time())
    return usage


def metric(shard_id: str, rank: int) -> float | None:
    return REGISTRY.get_sample_value("simplu_shard_tenant_seconds", {"shard_id": shard_id, "rank": str(rank)})


def test_tenant_has_the_figures_of_both_windows() -> None:
    minute = WindowUse({"a": LOUD, "small": TenantUse(MINUTE_MIN_S - 0.1)}, 16.0)
    hour = WindowUse({"a": LOUD, "before": TenantUse(HOUR_MIN_S, 2, 3)}, 72.0)

    assert [one.json() for one in tenant_rows("shard-1", minute, hour)] == [
        {"shardId": "shard-1", "tenant": "a", "lastMinute": FIGURES, "lastHour": FIGURES | {"share": 0.167}},
        {
            "shardId": "shard-1",
            "tenant": "before",
            "lastMinute": None,
            "lastHour": {"seconds": HOUR_MIN_S, "share": 0.5, "operations": 2, "bytes": 3, "waitedSeconds": 0.0},
        },
    ]


async def test_tenants_of_all_shards_are_in_the_order_of_their_seconds() -> None:
    top = TopTenants()
    await top.note({"top-1": usage_of(a=1.0, b=3.0), "top-2": usage_of(a=2.0, c=0.75, d=0.1)})

    assert [(row.shard_id, row.tenant) for row in top.rows] == [
        ("top-1", "b"),
        ("top-2", "a"),
        ("top-1", "a"),
        ("top-2", "c"),
    ]
    assert top.first() == (TopTenant("b", "top-1", 3.0), TopTenant("a", "top-2", 2.0), TopTenant("a", "top-1", 1.0))
    assert len(top.first()) == TOP_MAX
    for shard_id in ("top-1", "top-2"):
        instruments.remove_shard(shard_id)


async def test_metrics_have_ranks_and_no_names() -> None:
    top = TopTenants()
    await top.note({"ranked-1": usage_of(a=1.0, b=3.0, small=0.25)})
    assert [metric("ranked-1", rank) for rank in range(1, RANK_COUNT + 1)] == [3.0, 1.0, 0.25] + [0.0] * 7

    await top.note({"ranked-1": TenantUsage()})
    assert [metric("ranked-1", rank) for rank in range(1, RANK_COUNT + 1)] == [0.0] * 10
    assert (top.rows, top.first()) == ([], ())
    instruments.remove_shard("ranked-1")
    assert metric("ranked-1", 1) is None
