from __future__ import annotations

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs
from support.postgres.tenant_cases import fetch
from support.postgres.trouble import calm, make_touchy
from support.reader_world import (
    SETTINGS,
    WAIT,
    World,
    chain,
    eventually,
    held_targets,
    logs,
    mixed,
    outcomes,
    reaches,
    record,
)

from simplu_worker.consumers.kinesis.reader import dispatcher
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderSettings
from simplu_worker.consumers.pipeline import home_lookup
from simplu_worker.instruments import RETRIES
from simplu_worker.operations.tries import RetryRules

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(2)]


@pytest.fixture(autouse=True)
def _quick_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_lookup, "RETRY_MAX_S", 0.25)


def tried_after(*delays_s: float) -> ReaderSettings:
    return msgspec.structs.replace(SETTINGS, retries=RetryRules(delays_s, WAIT))


async def test_operation_that_fails_by_itself_is_given_up_and_may_be_sent_again(world: World) -> None:
    settings = tried_after(0.3, 0.4, 3600.0)  # the last one when the test says so
    for tenant in ("a-x", "b-x"):
        await world.provision(tenant, "shard-1")
    shard = await world.shard("shard-1")
    await make_touchy(shard)
    bad = record("create", "a-x", 3, resource_id="r2", data={"raise": "P0001"})
    later = [record(kind, "a-x", number) for number, kind in enumerate(("create", "update", "delete"), start=4)]
    retries = RETRIES.labels("kinesis", "failing")
    before = retries._value.get()
    await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)), bad)

    async with world.reading(settings=settings) as reader:
        await eventually(lambda: ("tenant a-x", "failing", "held") in held_targets(reader))
        await world.put(*mixed(later, chain("b-x", 3, first=3)))
        await logs(shard, "b-x", 6)
        assert await outcomes(shard, "a-x") == ["succeeded"] * 3
        numbers = await world.put(record("list", "a-x", 7))
        await eventually(lambda: retries._value.get() - before >= 3)
        await eventually(lambda: reader.retry_holds("tenant a-x") == 1)
        await reaches(reader, numbers[-1])
        assert await outcomes(shard, "a-x") == [*["succeeded"] * 3, "retries_exhausted", *["succeeded"] * 4]
        (letter,) = await world.letters()
        assert (letter["reason"], letter["requestId"], letter["attempts"]) == ("retries_exhausted", "a-x-3", 4)
        assert letter["error"] == "it failed 4 times: a function or trigger of the database raised it (P0001)"

        await calm(shard)
        (replayed,) = await world.put(bad)
        await reaches(reader, replayed)

    assert await fetch(shard, "SELECT status FROM operations WHERE request_id = 'a-x-3'") == [{"status": "succeeded"}]
    assert await fetch(shard, "SELECT id FROM resources WHERE \"resourceId\" = 'r2'") == [{"id": "a-x"}]
    assert await world.letters() == []


async def test_operation_whose_mark_the_shard_refuses_has_one_dead_letter_and_a_name_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "MARKED_AGAIN_S", 0.1)
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    await make_touchy(shard)
    await fetch(shard, "ALTER TABLE log_outcomes ADD CONSTRAINT markless CHECK (error <> 'retries_exhausted')")
    numbers = await world.put(record("create", "a-x", 0, data={"raise": "P0001"}), record("create", "a-x", 1))

    with capture_logs() as events:
        async with world.reading(settings=tried_after(0.1, 0.1, 0.1)) as reader:
            await eventually(lambda: [one["event"] for one in events].count("operation.not_marked") >= 3)
            assert await outcomes(shard, "a-x") == []
            await fetch(shard, "ALTER TABLE log_outcomes DROP CONSTRAINT markless")
            await reaches(reader, numbers[-1])

    assert await outcomes(shard, "a-x") == ["retries_exhausted", "succeeded"]
    assert [(one["requestId"], one["attempts"]) for one in await world.letters()] == [("a-x-0", 4)]
    (unmarked, *_) = [one for one in events if one["event"] == "operation.not_marked"]
    assert (unmarked["log_level"], unmarked["shard_id"], unmarked["location_id"]) == ("warning", "shard-1", "x")
    assert "(23514)" in unmarked["error"]
    assert [one["event"] for one in events].count("operation.given_up") == 1


@pytest.mark.parametrize(
    "lock",
    ["SELECT FROM tenants WHERE id = 'a-x' FOR UPDATE", "SELECT FROM resources WHERE id = 'a-x' FOR UPDATE"],
    ids=["tenant", "resource"],
)
async def test_others_go_on_when_another_program_keeps_rows_of_a_tenant_locked(world: World, lock: str) -> None:
    for tenant in ("a-x", "b-x"):
        await world.provision(tenant, "shard-1")
    shard = await world.shard("shard-1")
    await world.put(*mixed(chain("a-x", 2), chain("b-x", 2)))

    async with world.reading() as reader:
        await logs(shard, "a-x", 2)
        rival = await asyncpg.connect(shard.address.connection_string)
        await rival.execute("BEGIN")
        await rival.execute(lock)
        await world.put(*mixed(chain("a-x", 40, first=2), chain("b-x", 40, first=2)))
        await logs(shard, "b-x", 42)
        await eventually(lambda: [target[:2] for target in held_targets(reader)] == [("tenant a-x", "locked")])
        await world.put(*mixed(chain("a-x", 40, first=42), chain("b-x", 40, first=42)))
        await logs(shard, "b-x", 82)
        assert await outcomes(shard, "a-x") == ["succeeded"] * 2

        await rival.close()
        numbers = await world.put(record("list", "a-x", 82))
        await reaches(reader, numbers[-1])
        assert held_targets(reader) == []

    assert await outcomes(shard, "a-x") == ["succeeded"] * 83
    assert await world.letters() == []
