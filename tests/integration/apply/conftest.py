"""Tenants and shards of which locked rows are waited for: a test that locks one may take long to let it go."""

from __future__ import annotations

import pytest
from support.postgres.databases import PoolMaker
from support.postgres.tenant_cases import TENANT, TenantCase, add_tenant

from simplu_worker.shards.postgres.pool import ShardPool

ROW_LOCK_S = 60.0


@pytest.fixture
async def tenant(tenant: TenantCase, make_pool: PoolMaker) -> TenantCase:
    return TenantCase(await make_pool(tenant.pool.address, row_lock_s=ROW_LOCK_S), tenant.ids)


@pytest.fixture
async def shard(make_pool: PoolMaker) -> ShardPool:
    return await make_pool(row_lock_s=ROW_LOCK_S)


@pytest.fixture
async def case(make_pool: PoolMaker) -> TenantCase:
    """Give a tenant on a shard of its own, with one connection."""
    pool = await make_pool(size=1, row_lock_s=ROW_LOCK_S)
    await add_tenant(pool)
    return TenantCase(pool, TENANT)
