from __future__ import annotations

import asyncpg
import pytest
from support.postgres.databases import PoolMaker
from support.postgres.shard_line import ShardLine
from support.postgres.tenant_cases import TenantCase, add_tenant, failed, fetch

from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.postgres.errors import state_words
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.vocabulary import Failure

pytestmark = pytest.mark.slow


INVALID_DATA = failed(Failure.INVALID_DATA)
REFUSED = Outcome(disposition=Disposition.FAILING, error=state_words("22000"))
R1 = ("patient", "r1")
TENANT = ("clinic", "main")

UNSTORABLE = {
    "U+0000": '{"a": "x\\u0000y"}',
    "U+0000 in a name": '{"a\\u0000": 1}',
    "lone surrogate": '{"a": ["\\ud800"]}',
    "overflow": '{"a": {"b": 1e200000}}',
    "underflow": '{"a": 1e-200000}',
    "bomb": f'{{"a": [{",".join(["1e131071"] * 7000)}]}}',  # 63 KB, and 917 MB of text
}


async def case_on(pool: ShardPool) -> TenantCase:
    await add_tenant(pool, TENANT)
    return TenantCase(pool, TENANT)


@pytest.mark.parametrize("data", UNSTORABLE.values(), ids=UNSTORABLE)
@pytest.mark.parametrize("kind", ["create", "update", "patch"])
@pytest.mark.parametrize("exists", [True, False], ids=["there", "not there"])
async def test_operation_fails_when_its_data_cannot_be_stored(
    tenant: TenantCase, kind: str, data: str, *, exists: bool
) -> None:
    if exists:
        await tenant.apply(tenant.operation("create", data={"kept": 1}))
    before = await tenant.resources()
    bad = tenant.operation(kind, data=data)

    assert await tenant.apply(bad) == [INVALID_DATA]
    assert await tenant.apply(bad) == [DUPLICATE]

    assert (await tenant.log())[bad.request_id] == ("failed", "invalid_data")
    assert await tenant.resources() == before


@pytest.fixture
async def refusing(shard: ShardPool) -> TenantCase:
    """Give a tenant on a shard that refuses resources with a member `refused`, though they are fine as JSON."""
    await fetch(
        shard,
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'refused' USING ERRCODE = 'data_exception'; END $$
        """,
    )
    await fetch(
        shard,
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON resources FOR EACH ROW WHEN (NEW.data ? 'refused')"
        " EXECUTE FUNCTION refuse()",
    )
    return await case_on(shard)


async def test_nothing_overtakes_a_tenant_that_comes_back(
    refusing: TenantCase,
) -> None:
    held = TenantCase(refusing.pool, ("held", "main"))
    await add_tenant(held.pool, held.ids, state="fenced")
    await fetch(
        held.pool,
        f"""
        CREATE FUNCTION come_back() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN UPDATE tenants SET state = 'active' WHERE id = '{held.tenant_id}'; RETURN NULL; END $$
        """,
    )
    await fetch(
        held.pool,
        "CREATE TRIGGER come_back AFTER INSERT ON log_rows FOR EACH ROW WHEN (NEW.request = simplu_key('come back'))"
        " EXECUTE FUNCTION come_back()",
    )
    create, update = held.operation("create", data={"v": 1}), held.operation("update", data={"v": 2})
    turn = refusing.operation("create", data={}, request_id="come back")
    bad = refusing.operation("create", "r2", data='{"refused": 1}')

    assert await held.apply(create, turn, bad, update) == [HOLD, SUCCEEDED, REFUSED, HOLD]

    assert await held.apply(create, update) == [SUCCEEDED, SUCCEEDED]
    assert await held.resources() == {R1: {"v": 2}}


async def test_lock_of_a_table_is_one_of_every_tenants_rows(make_pool: PoolMaker) -> None:
    case = await case_on(await make_pool(lock_s=0.1))
    created = case.operation("create", data={"v": 1})
    rival = await asyncpg.connect(case.pool.address.connection_string)
    async with rival.transaction():
        await rival.execute("LOCK TABLE resources")
        assert await case.apply(created) == [Outcome(disposition=Disposition.LOCKED)]

    assert await case.apply(created) == [SUCCEEDED]
    await rival.close()


@pytest.mark.parametrize("after", [True, False], ids=["after it", "before it"])
async def test_writer_asks_the_log_when_the_line_is_cut_at_the_commit(
    shard: ShardPool, make_pool: PoolMaker, *, after: bool
) -> None:
    async with ShardLine(shard.address) as line:
        case = await case_on(await make_pool(line.address))
        batch = [case.operation("create", data={"v": 0}), case.operation("patch", data={"w": 1})]
        assert await case.apply(case.operation("list", None)) == [SUCCEEDED]
        line.cut_after_commit, line.cut_before_commit = after, not after

        with pytest.raises(ShardUnavailableError, match=rf"shard shard-1 at 127\.0\.0\.1:{line.port}/"):
            await case.apply(*batch)

        assert await case.apply(*batch) == [DUPLICATE if after else SUCCEEDED] * 2
        assert await case.resources() == {R1: {"v": 0, "w": 1}}
