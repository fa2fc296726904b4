from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import REGISTRY
from support.citrus.cases import routed_shards
from support.postgres.databases import PoolMaker, ShardMaker, database_of, execute
from support.postgres.log_rows import empty_log
from support.postgres.tenant_cases import NO_CHECKS, TENANT, TenantCase, add_tenant, failed, fetch, writer_of
from support.postgres.trouble import calm, make_touchy

from simplu_local.postgres.server import PostgresServer
from simplu_worker.errors import InternalError
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.postgres.errors import StatementFailedError, state_words
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.vocabulary import DeadLetterReason, Failure

RAISED = Outcome(disposition=Disposition.FAILING, error=state_words("P0001"))
TIMED_OUT = Outcome(disposition=Disposition.FAILING, error=state_words("57014"))
INVALID_DATA = failed(Failure.INVALID_DATA)
BAD = {"raise": "P0001"}
SLOW = {"sleep": 5}


@pytest.fixture
async def touchy(make_pool: PoolMaker) -> ShardPool:
    pool = await make_pool(batch_s=20.0, part_s=20.0)
    await make_touchy(pool)
    return pool


@pytest.fixture
async def hurried(touchy: ShardPool, make_pool: PoolMaker) -> ShardPool:
    return await make_pool(touchy.address, batch_s=1.5, part_s=1.5)


def failed_budgets(pool: ShardPool, monkeypatch: pytest.MonkeyPatch) -> list[StatementBudget]:
    original, failed_in = pool.transaction, list[StatementBudget]()

    @asynccontextmanager
    async def transaction(**options: Any) -> AsyncIterator[Connection]:
        try:
            async with original(**options) as connection:
                yield connection
        except StatementFailedError as exc:
            if exc.is_timeout:
                failed_in.append(options["budget"])
            raise

    monkeypatch.setattr(pool, "transaction", transaction)
    return failed_in


async def case_on(pool: ShardPool, location: str = TENANT[1]) -> TenantCase:
    case = TenantCase(pool, (TENANT[0], location))
    await add_tenant(pool, case.ids)
    return case


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("P0001", state_words("P0001")),
        ("23514", state_words("23514")),
        ("XX000", state_words("XX000")),
        ("21000", state_words("21000")),
        ("57014", state_words("57014")),
        ("22000", state_words("22000")),
        ("42501", state_words("42501")),
        ("53100", state_words("53100")),
        ("40001", state_words("40001")),
    ],
)
@pytest.mark.parametrize("kind", ["create", "update"])
async def test_writer_blames_an_operation_when_it_fails_by_itself(
    touchy: ShardPool, kind: str, code: str, error: str
) -> None:
    case = await case_on(touchy)
    if kind == "update":
        await case.apply(case.operation("create", data={"v": 1}))
    before = await case.everything()

    (outcome,) = await case.apply(case.operation(kind, data={"raise": code}))

    assert outcome == Outcome(disposition=Disposition.FAILING, error=error)
    assert await case.everything() == before
    assert touchy.is_healthy
    labels = {"shard_id": touchy.address.shard_id, "kind": "statement"}
    assert REGISTRY.get_sample_value("simplu_shard_errors_total", labels)


async def test_operation_is_blamed_when_only_the_commit_shows_it(shard: ShardPool) -> None:
    await make_touchy(shard, deferred=True)
    case, other = await case_on(shard), await case_on(shard, "other")
    batch = [case.operation("create", f"r{number}", BAD if number == 3 else {}) for number in range(5)]

    # The list is the last statement before the commit, and no more at fault than the others.
    outcomes = await case.apply(*batch, other.operation("create", data={}), other.operation("list", None))

    assert outcomes == [SUCCEEDED, SUCCEEDED, SUCCEEDED, RAISED, HOLD, SUCCEEDED, SUCCEEDED]


@pytest.mark.slow(0.4)
@settings(max_examples=20, suppress_health_check=NO_CHECKS)
@given(faults=st.lists(st.sampled_from(["", "", "", "bad", "unstorable"]), min_size=1, max_size=24), data=st.data())
async def test_first_of_each_tenant_is_blamed_whatever_the_batch(
    touchy: ShardPool, faults: list[str], data: st.DataObject
) -> None:
    await fetch(touchy, "DELETE FROM resources")
    await empty_log(touchy)
    await fetch(touchy, "DELETE FROM tenants")
    cases = [await case_on(touchy, location) for location in ("a", "b", "c")]
    documents: dict[str, Any] = {"": {"v": 1}, "bad": BAD, "unstorable": '{"v": 1e200000}'}
    verdicts = {"": SUCCEEDED, "bad": RAISED, "unstorable": INVALID_DATA}
    batch: list[Operation] = []
    expected: list[Outcome] = []
    stopped: set[str] = set()
    for number, fault in enumerate(faults):
        case = data.draw(st.sampled_from(cases))
        batch.append(case.operation("create", f"r{number}", documents[fault]))
        expected.append(HOLD if case.tenant_id in stopped else verdicts[fault])
        if fault == "bad":
            stopped.add(case.tenant_id)

    assert await cases[0].apply(*batch) == expected

    log = [entry for case in cases for entry in await case.log()]
    assert len(log) == sum(outcome.disposition is Disposition.APPLIED for outcome in expected)
    again = [DUPLICATE if outcome.disposition is Disposition.APPLIED else outcome for outcome in expected]
    assert await cases[0].apply(*batch) == again


@pytest.mark.slow
async def test_slow_operation_is_found_once_when_it_is_tried_again(
    hurried: ShardPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, other = await case_on(hurried), await case_on(hurried, "other")
    slow, writer = case.operation("create", "r1", SLOW), writer_of(hurried)
    failed_in = failed_budgets(hurried, monkeypatch)
    assert await writer.apply([slow]) == [TIMED_OUT]
    assert failed_in == [StatementBudget.BATCH]
    batch = [other.operation("create", "r1", {}), slow, case.operation("create", "r2", {})]

    assert await writer.apply(batch) == [SUCCEEDED, TIMED_OUT, HOLD]

    assert failed_in == [StatementBudget.BATCH, StatementBudget.PART]
    await calm(hurried)
    assert await writer.apply(batch) == [DUPLICATE, SUCCEEDED, SUCCEEDED]


@pytest.mark.slow
async def test_nobody_is_blamed_when_the_log_is_slow_as_well(touchy: ShardPool, make_pool: PoolMaker) -> None:
    touchy = await make_pool(touchy.address, batch_s=0.5, part_s=0.5)
    case = await case_on(touchy)
    await fetch(
        touchy,
        "CREATE FUNCTION wait_a_little() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$",
    )
    statement = "CREATE TRIGGER slow BEFORE INSERT ON log_rows FOR EACH STATEMENT EXECUTE FUNCTION wait_a_little()"
    await fetch(touchy, statement)

    with pytest.raises(ShardUnavailableError, match="57014"):
        await case.apply(case.operation("create", "r1", SLOW))


@pytest.mark.parametrize("moment", ["lock_tenants", "begin"])
async def test_nobody_is_blamed_for_a_statement_without_operations(make_pool: PoolMaker, moment: str) -> None:
    pool = await make_pool(batch_s=0.3 if moment == "lock_tenants" else 1e9, row_lock_s=5.0)
    case = await case_on(pool)
    async with pool.connection() as rival, rival.transaction():
        await rival.execute("SELECT FROM tenants FOR UPDATE")

        with pytest.raises(ShardUnavailableError, match=r"57014|22023"):
            await case.apply(case.operation("create", data={}), case.operation("read"))


async def test_writer_blames_nobody_when_the_shard_does_not_work(
    case: TenantCase, postgres_server: PostgresServer
) -> None:
    await make_touchy(case.pool)
    setting = f"ALTER DATABASE {database_of(case.pool.address)} ALLOW_CONNECTIONS"
    # The pool's one connection stays, and no other is let in.
    await execute(postgres_server.url_of("postgres"), f"{setting} false")

    with pytest.raises(ShardUnavailableError, match=r"\(55000\)"):
        await case.apply(case.operation("create", data=BAD))

    await execute(postgres_server.url_of("postgres"), f"{setting} true")


async def test_value_is_not_invalid_when_an_owners_index_refuses_it(shard: ShardPool) -> None:
    case, other = await case_on(shard), await case_on(shard, "other")
    await fetch(shard, "CREATE INDEX ages ON resources (((data ->> 'age')::integer))")
    bad = case.operation("create", "r2", {"age": "forty"})
    batch = [
        case.operation("create", "r1", {"age": "40"}),
        bad,
        other.operation("create", "r1", '{"age": "\\u0000"}'),
        case.operation("create", "r3", {}),
        other.operation("create", "r2", {}),
    ]
    refused = Outcome(disposition=Disposition.FAILING, error=state_words("22P02"))

    assert await case.apply(*batch) == [SUCCEEDED, refused, INVALID_DATA, HOLD, SUCCEEDED]

    await fetch(shard, "DROP INDEX ages")
    assert await case.apply(bad) == [SUCCEEDED]


async def test_operation_that_raises_alone_fails_alone(make_shard: ShardMaker) -> None:
    shard = await make_shard("shard-1")
    async with routed_shards([shard]) as routed:
        pool = routed.pools.ensure_pool(shard)
        case, other = await case_on(pool), await case_on(pool, "other")
        broken = replace(case.operation("create", "b", data={}), resource_id=7)  # no decoder makes such an operation
        batch = [broken, case.operation("create", "c", data={}), other.operation("create", "a", data={})]

        with pytest.raises(InternalError, match="TypeError"):  # nothing shows yet that any operation can be applied
            await routed.gateway.apply(shard.shard_id, [broken])
        first, failed, *others = await routed.gateway.apply(shard.shard_id, [batch[2], *batch])

    assert (failed.disposition, failed.reason) == (Disposition.FAILING, DeadLetterReason.INTERNAL_ERROR)
    assert [first, *others] == [SUCCEEDED, HOLD, DUPLICATE]
