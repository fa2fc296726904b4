from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.postgres.log_rows import empty_log
from support.postgres.tenant_cases import (
    ARRIVED_AT,
    NO_CHECKS,
    STREAM_SHARD_ID,
    TENANT,
    TenantCase,
    add_tenant,
    failed,
    fetch,
    log_row,
)
from support.postgres.trouble import shut_gate, waiters

from simplu_worker.operations.operation import Operation, Outcome
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.apply.writer import GIVEN_UP
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.vocabulary import Failure, Source

pytestmark = pytest.mark.slow


NOT_FOUND = failed(Failure.NOT_FOUND)
R1 = ("patient", "r1")


def replayed(sent: Operation, sequence_number: str | None, *, source: Source = Source.KINESIS) -> Operation:
    origin = msgspec.structs.replace(
        sent.origin,
        source=source,
        stream_shard_id=STREAM_SHARD_ID if source is Source.KINESIS else None,
        sequence_number=sequence_number,
        arrived_at=sent.origin.arrived_at + timedelta(hours=1),
    )
    later = datetime.fromisoformat(sent.requested_at) + timedelta(hours=1)
    return msgspec.structs.replace(sent, origin=origin, requested_at=later.isoformat())


@pytest.fixture
def sent(tenant: TenantCase) -> Operation:
    return tenant.operation("create", data={"v": 1}, sequence_number="100")


async def test_give_up_leaves_a_marked_row_and_no_effect(tenant: TenantCase, sent: Operation) -> None:
    assert await tenant.give_up(sent) == GIVEN_UP == failed(Failure.RETRIES_EXHAUSTED)
    before = await tenant.everything()

    row = await log_row(tenant, sent.request_id)
    assert (row["status"], row["error"], row["result"]) == ("failed", "retries_exhausted", None)
    assert (row["source"], row["stream_shard_id"], row["sequence_number"]) == ("kinesis", STREAM_SHARD_ID, "100")
    assert (row["received_at"], row["digest"], row["operation"]) == (ARRIVED_AT, sent.digest, "create")
    assert await tenant.give_up(sent) == DUPLICATE
    assert await tenant.apply(sent) == [DUPLICATE]
    assert await tenant.apply(sent, sent) == [DUPLICATE, DUPLICATE]
    assert await tenant.resources() == {}
    assert await tenant.everything() == before


@pytest.mark.parametrize(("source", "sequence_number"), [(Source.KINESIS, "1000"), (Source.SQS, None)])
async def test_replay_takes_the_place_of_what_was_given_up(
    tenant: TenantCase, sent: Operation, source: Source, sequence_number: str | None
) -> None:
    await tenant.give_up(sent)
    given_up = await log_row(tenant, sent.request_id)
    replay = replayed(sent, sequence_number, source=source)

    assert await tenant.apply(replay) == [SUCCEEDED]

    assert await tenant.resources() == {R1: {"v": 1}}
    row = await log_row(tenant, sent.request_id)
    assert (row["status"], row["error"]) == ("succeeded", None)
    assert (row["source"], row["sequence_number"]) == (source, None)
    assert (row["stream_shard_id"] is None) == (source is Source.SQS)
    assert row["received_at"] - given_up["received_at"] == timedelta(hours=1)
    assert row["requested_at"] - given_up["requested_at"] == timedelta(hours=1)
    assert row["completed_at"] > given_up["completed_at"]
    assert int(row["xid"]) > int(given_up["xid"])
    before = await tenant.everything()
    assert await tenant.apply(sent, replay) == [DUPLICATE, DUPLICATE]
    assert await tenant.give_up(replay) == DUPLICATE
    assert await tenant.everything() == before


KEPT = """
SELECT
    simplu_id(log_rows.request) AS request_id, log_rows.kind::text AS kind, log_rows.batch_id, log_rows.position,
    substr(request, octet_length(request) - 9, 8) = int8send((1000000 * extract(EPOCH FROM completed_at))::bigint)
        AND substr(request, octet_length(request) - 1) = int2send(log_rows.position) AS has_its_time,
    log_outcomes.error, log_outcomes.sequence_number
FROM log_rows
JOIN log_batches USING (batch_id)
LEFT JOIN log_outcomes ON log_outcomes.batch_id = log_rows.batch_id AND log_outcomes.position = log_rows.position
WHERE log_rows.tenant_no = (SELECT number FROM tenants WHERE id = $1) AND get_byte(request, 0) = 3
ORDER BY batch_id
"""


@pytest.mark.parametrize("request_id", ["8d6ac1b8-90c9-4a13-b3f5-c6ba2ff0f1ab", "ord-ж-7"])
async def test_row_whose_place_a_replay_took_is_kept_under_another_key(tenant: TenantCase, request_id: str) -> None:
    other = tenant.operation("create", "r0", {})
    sent = tenant.operation("create", data={"v": 1}, request_id=request_id, sequence_number="100")
    await tenant.apply(other)
    await tenant.give_up(sent)
    first = await log_row(tenant, request_id)
    assert await tenant.give_up(replayed(sent, "200")) == GIVEN_UP
    second = await log_row(tenant, request_id)
    assert await tenant.apply(tenant.operation("create", "r2", {}), replayed(sent, "300")) == [SUCCEEDED] * 2

    kept = await fetch(tenant.pool, KEPT, tenant.tenant_id)
    assert kept == [
        {
            "request_id": request_id,
            "kind": "C",
            "batch_id": row["batch_id"],
            "position": row["position"],
            "has_its_time": True,
            "error": "retries_exhausted",
            "sequence_number": sequence_number,
        }
        for row, sequence_number in ((first, "100"), (second, "200"))
    ]
    last = await log_row(tenant, request_id)
    assert (last["status"], last["position"]) == ("succeeded", 1)
    assert last["batch_id"] > second["batch_id"] > first["batch_id"]
    assert len(await tenant.log()) == 3
    for late in (sent, replayed(sent, "200"), replayed(sent, "300")):
        assert await tenant.apply(late) == [DUPLICATE]
        assert await tenant.give_up(late) == DUPLICATE
    assert await fetch(tenant.pool, KEPT, tenant.tenant_id) == kept
    (shown,) = await fetch(tenant.pool, QUERIES["show_tenant"], tenant.tenant_id)
    assert shown["operation_count"] == 3


@pytest.mark.parametrize("number", ["200", "300"], ids=["one record", "two replays"])
async def test_replay_of_two_readers_at_once_is_applied_once(shard: ShardPool, number: str) -> None:
    case = TenantCase(shard, TENANT)
    await add_tenant(shard, TENANT)
    first, second = (case.operation("create", name, {}, sequence_number="100") for name in ("r1", "r2"))
    for one in (first, second):
        await case.give_up(one)

    async with shut_gate(shard) as gate, asyncio.TaskGroup() as tasks:
        # In contrary order, which must not be that of the locks.
        readers = [
            tasks.create_task(case.apply(replayed(first, "200"), replayed(second, "201"))),
            tasks.create_task(case.apply(replayed(second, f"{number}1"), replayed(first, number))),
        ]
        await waiters(gate.holder, "locktype = 'advisory'", count=2)
        await gate.open()

    outcomes = sorted(str(task.result()) for task in readers)
    assert outcomes == sorted([str([DUPLICATE] * 2), str([SUCCEEDED] * 2)])
    assert sorted(await case.resources()) == [R1, ("patient", "r2")]


@dataclass
class Known:
    place: int
    is_given_up: bool


STEPS = st.lists(
    st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=5)),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow(0.6)
@settings(max_examples=30, suppress_health_check=NO_CHECKS)
@given(steps=STEPS)
async def test_each_operation_takes_effect_once_whatever_is_given_up(
    tenant: TenantCase, steps: list[tuple[bool, list[tuple[int, int]]]]
) -> None:
    known: dict[int, Known] = {}
    await fetch(tenant.pool, "DELETE FROM resources WHERE id = $1", tenant.tenant_id)
    await empty_log(tenant.pool)

    def expected(name: int, place: int, *, is_given_up: bool) -> Outcome:
        row = known.get(name)
        if row is not None and not (row.is_given_up and place > row.place):
            return DUPLICATE
        known[name] = Known(place, is_given_up)
        return GIVEN_UP if is_given_up else SUCCEEDED

    for is_given_up, records in steps:
        sent = [
            tenant.operation(
                "create",
                f"r{name}",
                {},
                request_id=f"{name}",
                sequence_number=f"{place}",
                arrived_at=ARRIVED_AT + timedelta(seconds=place),
            )
            for name, place in records
        ]
        outcomes = [await tenant.give_up(one) for one in sent] if is_given_up else await tenant.apply(*sent)
        assert outcomes == [expected(*record, is_given_up=is_given_up) for record in records]

    applied = {name for name, row in known.items() if not row.is_given_up}
    assert set(await tenant.resources()) == {("patient", f"r{name}") for name in applied}
    rows = await fetch(
        tenant.pool,
        "SELECT request_id, sequence_number, received_at, error FROM operations WHERE tenant_id = $1",
        tenant.tenant_id,
    )
    places = {int(row["request_id"]): (row["received_at"] - ARRIVED_AT).seconds for row in rows}
    assert {
        name: Known(places[name], row["error"] is not None) for name, row in zip(places, rows, strict=True)
    } == known
    assert [row["sequence_number"] for row in rows] == [
        str(place) if known[name].is_given_up else None for name, place in places.items()
    ]
