"""Tenants that were made on two shards: one home is undone, never one with something to lose, whoever looks."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from structlog.testing import capture_logs
from support.citrus.cases import RoutedShards, routed_shards, silent
from support.postgres.databases import ShardMaker
from support.postgres.other_settings import isolate
from support.postgres.tenant_cases import TENANT, add_tenant
from support.postgres.trouble import waiters
from support.postgres.unfinished_tenants import AT, TENANT_ID, homes, make_unfinished

from simplu_worker.shards.tenants.home_confirmation import (
    ConfirmationSweep,
    HomeConfirmer,
    HomeUndoneError,
    PlacedTenant,
    TenantSplitError,
)
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult

pytestmark = pytest.mark.slow


REQUEST = ProvisionRequest(*TENANT, "dental", AT)


async def confirmed(routed: RoutedShards, shard_id: str) -> Exception | None:
    confirmer = HomeConfirmer(routed.locator, routed.pools)
    place = PlacedTenant(*TENANT, "dental", routed.pool(shard_id).address)
    return (await confirmer.confirm([place])).get(TENANT_ID)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({}, {}, "shard-1"),
        ({}, {"touched": True}, "shard-2"),
        ({"touched": True}, {}, "shard-1"),
        ({}, {"confirmed": True}, "shard-2"),
        ({"touched": True}, {"confirmed": True}, "shard-1"),
    ],
)
@pytest.mark.parametrize("asked_on", ["shard-1", "shard-2"])
async def test_confirm_comes_to_the_same_from_either_home(
    routed: RoutedShards, first: dict[str, bool], second: dict[str, bool], kept: str, asked_on: str
) -> None:
    routed.register(TENANT, "shard-1")
    await make_unfinished(routed.pool(), age_s=60.0, **first)
    await make_unfinished(routed.pool("shard-2"), **second)

    trouble = await confirmed(routed, asked_on)

    if second == {"confirmed": True} and asked_on == "shard-2":  # there is nothing to do about that one
        assert trouble is None
        trouble = await confirmed(routed, "shard-1")
    assert isinstance(trouble, HomeUndoneError | None)
    left = await homes(routed)
    assert list(left) == [kept]
    assert left[kept][2] == 1 + int(bool({**first, **second}.get("touched")))


async def test_confirm_undoes_nothing_when_both_have_data_to_lose(routed: RoutedShards) -> None:
    routed.register(TENANT, "shard-1")
    for shard_id in ("shard-1", "shard-2"):
        await make_unfinished(routed.pool(shard_id), touched=True)
    before = await homes(routed)

    for _ in range(2):
        with capture_logs() as logs, pytest.raises(TenantSplitError, match="rows on the shards shard-1, shard-2"):
            await routed.provisioner.provision(REQUEST)
        (entry,) = [entry for entry in logs if entry["event"] == "tenant.split"]
        assert (entry["log_level"], entry["shard_ids"]) == ("error", ["shard-1", "shard-2"])
    assert await homes(routed) == before


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
async def test_confirm_waits_for_a_batch_and_keeps_what_it_wrote(routed: RoutedShards, level: str) -> None:
    routed.register(TENANT, "shard-1")
    await isolate(routed.pool("shard-2").address, level)
    await make_unfinished(routed.pool(), age_s=60.0)
    await make_unfinished(routed.pool("shard-2"))
    batch = await asyncpg.connect(routed.pool("shard-2").address.connection_string)
    await batch.execute("BEGIN")
    await batch.execute("SELECT FROM tenants FOR SHARE")
    task = asyncio.create_task(confirmed(routed, "shard-1"))
    await waiters(batch)
    await batch.execute(
        "INSERT INTO resources SELECT id, \"businessType\", 'patient', 'r1', '{}', date, date FROM resources"
    )
    await batch.execute("COMMIT")
    await batch.close()

    assert isinstance(await task, HomeUndoneError)
    assert await homes(routed) == {"shard-2": ("active", False, 2)}


async def test_sweep_confirms_what_was_made_beside_a_silent_shard(make_shard: ShardMaker) -> None:
    async with routed_shards([await make_shard("shard-1"), silent("shard-2")]) as routed:
        with capture_logs() as logs:
            assert await routed.provisioner.provision(REQUEST) is ProvisionResult.PROVISIONED
        (entry,) = [entry for entry in logs if entry["event"] == "tenants.unconfirmed"]
        assert (entry["count"], entry["log_level"]) == (1, "warning")
        unconfirmed = ConfirmationSweep(routed.provisioner.confirmer, routed.pools, overdue=timedelta(0))
        assert await unconfirmed.sweep() == 1

        address = await make_shard("shard-2")
        routed.citrus.registry.shards["shard-2"].connection_string = address.connection_string
        await add_tenant(routed.pools.ensure_pool(address))
        assert await ConfirmationSweep(routed.provisioner.confirmer, routed.pools).sweep() == 0  # not overdue yet
        assert await unconfirmed.sweep() == 1  # it was undone
        assert await unconfirmed.sweep() == 0
        assert await homes(routed) == {"shard-2": ("active", True, 0)}
