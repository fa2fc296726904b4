"""What a batch comes to when Postgres refuses its data, races are lost, commits are not heard of, or a server goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import msgspec
import pytest
from prometheus_client import REGISTRY
from support.postgres.databases import QUICK, ShardMaker, copy_shard, execute
from support.postgres.pool_trouble import PATIENT_S, has_answered
from support.postgres.tenant_cases import TenantCase, add_tenant, failed, fetch
from support.postgres.trouble import GATE, Gate, Line, shut_gate, waiters

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.network_errors import NO_ANSWER, NO_SERVER
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.writer import DUPLICATE, SUCCEEDED
from simplu_worker.shards.postgres.errors import state_words
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.vocabulary import Failure

pytestmark = pytest.mark.slow


INVALID_DATA = failed(Failure.INVALID_DATA)
REFUSED = Outcome(disposition=Disposition.UNEXPECTED, error=state_words("22000"))
R1 = ("patient", "r1")
TENANT = ("clinic", "main")

UNSTORABLE = {
    "U+0000": '{"a": "x\\u0000y"}',
    "U+0000 in a name": '{"a\\u0000": 1}',
    "lone surrogate": '{"a": ["\\ud800"]}',
    "overflow": '{"a": {"b": 1e200000}}',
    "underflow": '{"a": 1e-200000}',
}


async def case_on(pool: ShardPool) -> TenantCase:
    """Return an active tenant on a shard of the test's own."""
    await add_tenant(pool, TENANT)
    return TenantCase(pool, TENANT)


def races_lost(pool: ShardPool) -> float:
    """Return how many races were lost on a shard so far."""
    labels = {"shard_id": pool.address.shard_id, "kind": "lost_race"}
    return REGISTRY.get_sample_value("simplu_shard_errors_total", labels) or 0.0


async def lost_races(pool: ShardPool, count: float) -> bool:
    """Return whether so many races were lost."""
    return races_lost(pool) >= count


@pytest.mark.parametrize("data", UNSTORABLE.values(), ids=UNSTORABLE)
@pytest.mark.parametrize("kind", ["create", "update", "patch"])
@pytest.mark.parametrize("exists", [True, False], ids=["there", "not there"])
async def test_writer_fails_an_operation_when_postgres_cannot_store_its_data(
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


def deep(operation: Operation, depth: int) -> Operation:
    """Return *operation* with data nested so deep."""
    return msgspec.structs.replace(operation, data=msgspec.Raw('{"a":' * depth + "1" + "}" * depth))


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


async def check_fifty(tenant: TenantCase, places: tuple[int, ...], bad: str) -> None:
    """Apply fifty writes of one resource, *bad* at *places*, each with a list behind it; check what each came to."""
    data = [bad if place in places else f'{{"v": {place}}}' for place in range(50)]
    batch = [
        tenant.operation("update" if place else "create", data=data[place], request_id=f"write-{place}")
        for place in range(50)
    ]
    lists = [tenant.operation("list", None) for _ in range(50)]
    both = [one for pair in zip(batch, lists, strict=True) for one in pair]

    outcomes = await tenant.apply(*both)

    others = failed(Failure.NOT_FOUND) if 0 in places else SUCCEEDED
    expected = [INVALID_DATA if place in places else others for place in range(50)]
    assert outcomes[::2] == expected
    seen, last = [], None
    for place in range(50):
        last = place if expected[place] == SUCCEEDED else last
        seen.append(last)
    results = [await tenant.result(one) for one in lists]
    assert [[item["data"]["v"] for item in page["items"]] for page in results] == [
        [] if value is None else [value] for value in seen
    ]
    assert await tenant.apply(*both) == [DUPLICATE] * 100


@pytest.mark.parametrize("places", [(0,), (49,), (24, 25), (3, 17, 31, 48)])
async def test_writer_applies_all_others_in_order_when_some_of_a_batch_are_unstorable(
    tenant: TenantCase, places: tuple[int, ...]
) -> None:
    await check_fifty(tenant, places, '{"v": 1e200000}')


async def test_writer_lets_nothing_overtake_when_a_held_tenant_comes_back_between_two_halves(
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


GATE_BEHIND_UPDATES = f"""
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '60s'
AS $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$;
CREATE TRIGGER gate AFTER UPDATE ON resources FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate();
SELECT pg_advisory_lock({GATE});
"""


async def test_writer_tries_again_when_it_is_the_victim_of_a_deadlock(make_shard: ShardMaker) -> None:
    address = await make_shard()
    await execute(
        address.connection_string,
        f"ALTER DATABASE {address.connection_string.rpartition('/')[2]} SET deadlock_timeout = '50ms'",
    )
    # Each waits for the other until one of them is ended, however slow this machine is.
    patient = ShardTimeouts(lock_s=60.0, row_lock_s=60.0, part_lock_s=60.0, batch_s=60.0, part_s=60.0, reply_s=90.0)
    pool = ShardPool(address, size=4, timeouts=patient)
    case = await case_on(pool)
    await case.apply(case.operation("create", "a", {"v": 0}), case.operation("create", "b", {"v": 0}))
    lost = races_lost(pool)
    rival, holder = [await asyncpg.connect(address.connection_string) for _ in range(2)]
    # The rival would find the deadlock last, so it is the writer that goes.
    await rival.execute("SET deadlock_timeout = '60s'")
    lock = 'SELECT FROM resources WHERE id = $1 AND "resourceId" = $2 FOR UPDATE'
    # Postgres looks for a deadlock once, 50 ms after a wait has begun: the writer's begins behind that of the rival.
    await holder.execute(GATE_BEHIND_UPDATES)
    gate = Gate(holder)

    async with rival.transaction():
        await rival.execute(lock, case.tenant_id, "b")
        # Two waves: the first locks `a`, the second waits for the rival's `b`.
        batch = [
            case.operation("update", "a", {"v": 1}),
            case.operation("list", None),
            case.operation("update", "b", {"v": 1}),
        ]
        async with asyncio.TaskGroup() as tasks:
            applying = tasks.create_task(case.apply(*batch))
            await gate.reached()
            locking = tasks.create_task(rival.execute(lock, case.tenant_id, "a"))
            await waiters(holder, count=2)
            await gate.open()
            await locking
            await rival.execute("COMMIT")
            await rival.execute("BEGIN")

    assert applying.result() == [SUCCEEDED] * 3
    assert races_lost(pool) > lost  # twice where the next try has its row before the rival wakes
    assert await case.resources() == {("patient", "a"): {"v": 1}, ("patient", "b"): {"v": 1}}
    await rival.close()
    await holder.close()
    await pool.close()


@pytest.fixture
async def hurried(make_shard: ShardMaker) -> AsyncIterator[ShardPool]:
    """Give a shard with a short lock timeout."""
    pool = ShardPool(await make_shard(), size=4, timeouts=ShardTimeouts(lock_s=0.1))
    yield pool
    await pool.close()


async def test_writer_tries_again_when_a_table_was_locked(hurried: ShardPool) -> None:
    case = await case_on(hurried)
    lost = races_lost(hurried)
    rival = await asyncpg.connect(hurried.address.connection_string)
    await rival.execute("BEGIN")
    await rival.execute("LOCK TABLE resources")

    async with asyncio.TaskGroup() as tasks:
        applying = tasks.create_task(case.apply(case.operation("create", data={"v": 1})))
        assert await poll_until(lambda: lost_races(hurried, lost + 2), within_s=60)
        await rival.execute("ROLLBACK")

    assert applying.result() == [SUCCEEDED]
    await rival.close()


async def test_writer_gives_the_batch_back_when_it_loses_every_race(hurried: ShardPool) -> None:
    case = await case_on(hurried)
    rival = await asyncpg.connect(hurried.address.connection_string)
    await rival.execute("BEGIN")
    await rival.execute("LOCK TABLE tenants")

    with pytest.raises(ShardUnavailableError, match="lost 5 races"):
        await case.apply(case.operation("create", data={}))

    await rival.close()
    assert await case.everything() == [[], []]


@pytest.mark.parametrize("after", [True, False], ids=["after it", "before it"])
async def test_writer_asks_the_log_when_the_line_is_cut_at_the_commit(make_shard: ShardMaker, *, after: bool) -> None:
    async with Line(await make_shard()).opened() as line:
        pool = ShardPool(line.address, size=2)
        case = await case_on(pool)
        batch = [case.operation("create", data={"v": 0}), case.operation("patch", data={"w": 1})]
        assert await case.apply(case.operation("list", None)) == [SUCCEEDED]
        line.cut_after_commit, line.cut_before_commit = after, not after

        with pytest.raises(ShardUnavailableError, match=rf"shard shard-1 at 127\.0\.0\.1:{line.port}/"):
            await case.apply(*batch)

        assert await case.apply(*batch) == [DUPLICATE if after else SUCCEEDED] * 2
        assert await case.resources() == {R1: {"v": 0, "w": 1}}
        await pool.close()


@pytest.fixture
async def fragile(breakable_server: PostgresServer) -> AsyncIterator[ShardPool]:
    """Give a shard on a server of its own that may be harmed."""
    pool = ShardPool(await copy_shard(breakable_server), size=2)
    yield pool
    await pool.close()


async def test_writer_applies_once_when_the_server_is_killed_within_a_batch(
    fragile: ShardPool, breakable_server: PostgresServer
) -> None:
    case = await case_on(fragile)
    batch = [case.operation("create", data={"v": 1}), case.operation("create", "r2", {"v": 2})]

    async with asyncio.TaskGroup() as tasks, shut_gate(fragile) as gate:
        applying = tasks.create_task(unavailable(case, batch))
        await gate.reached()
        await breakable_server.kill()
        assert "shard shard-1 at" in await applying
        assert NO_SERVER in await unavailable(case, batch)
    await breakable_server.start()

    assert await case.apply(*batch) == [SUCCEEDED, SUCCEEDED]
    assert await case.apply(*batch) == [DUPLICATE, DUPLICATE]
    assert await case.resources() == {R1: {"v": 1}, ("patient", "r2"): {"v": 2}}


async def unavailable(case: TenantCase, batch: list[Operation]) -> str:
    """Apply *batch* where that cannot be, and return the error's text."""
    with pytest.raises(ShardUnavailableError) as caught:
        await case.apply(*batch)
    return str(caught.value)


@pytest.mark.slow(2)
async def test_writer_gives_up_a_server_when_it_hangs(breakable_server: PostgresServer) -> None:
    pool = ShardPool(await copy_shard(breakable_server), size=2, timeouts=QUICK)
    assert await poll_until(partial(has_answered, pool), within_s=PATIENT_S)
    case = await case_on(pool)
    batch = [case.operation("create", data={"v": 1}), case.operation("patch", data={"v": 2})]
    breakable_server.suspend()

    async with asyncio.timeout(PATIENT_S):
        errors = [await unavailable(case, batch) for _ in range(2)]

    assert [error.rpartition(": ")[2] for error in errors] == [NO_ANSWER, NO_ANSWER]
    breakable_server.resume()
    assert await poll_until(partial(has_answered, pool), within_s=PATIENT_S)
    outcomes = await case.apply(*batch)
    assert {outcome.disposition for outcome in outcomes} <= {Disposition.APPLIED, Disposition.DUPLICATE}
    assert await case.resources() == {R1: {"v": 2}}
    assert len(await case.log()) == 2
    await pool.close()


async def test_writer_gives_the_batch_back_when_the_server_is_read_only(
    make_shard: ShardMaker, postgres_server: PostgresServer
) -> None:
    address = await make_shard()
    pool = ShardPool(address, size=1)
    case = await case_on(pool)
    database = address.connection_string.rpartition("/")[2]
    setting = f"ALTER DATABASE {database} SET default_transaction_read_only"
    await execute(postgres_server.url_of("postgres"), f"{setting} = on")
    fresh = TenantCase(ShardPool(address, size=1), case.ids)
    batch = [fresh.operation("create", data={"v": 1}), fresh.operation("read")]

    assert state_words("25006") in await unavailable(fresh, batch)

    await fresh.pool.close()
    await execute(postgres_server.url_of("postgres"), f"{setting} = off")
    again = TenantCase(ShardPool(address, size=1), case.ids)
    assert await again.apply(*batch) == [SUCCEEDED, SUCCEEDED]
    await again.pool.close()
    await pool.close()
