"""Operations that cannot be applied are held and read again from the stream, while all other tenants go on."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs
from support.aws.kpl_aggregates import aggregate
from support.postgres import wraparound
from support.postgres.databases import copy_shard, make_template
from support.postgres.faults import SLOW_FUNCTION, SLOW_TRIGGER
from support.postgres.pool_trouble import forget_probes
from support.postgres.tenant_cases import fetch
from support.postgres.trouble import calm, make_touchy
from support.queued_operations import queued_operation
from support.reader_world import (
    MARGIN,
    SETTINGS,
    WAIT,
    World,
    chain,
    eventually,
    held_targets,
    logs,
    looked_after,
    mixed,
    outcomes,
    reaches,
    record,
)

from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.watchdog import ProcessGroup
from simplu_worker import fairness
from simplu_worker.consumers.kinesis.fetch import pacing
from simplu_worker.consumers.kinesis.fetch.pacing import PrefetchMemory
from simplu_worker.consumers.kinesis.holding import ownership
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.ownership import Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import ReadAhead
from simplu_worker.consumers.kinesis.reader import catch_up, dispatcher
from simplu_worker.consumers.kinesis.reader.claimed_batches import ClaimedBatches
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, HashRange, Position, TrimHorizon
from simplu_worker.consumers.pipeline import home_lookup, lane
from simplu_worker.errors import RetryableError
from simplu_worker.instruments import RETRIES
from simplu_worker.shards.postgres.errors import state_words
from simplu_worker.timing.clock import utc_now

MIB = 1024 * 1024

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(2)]


@pytest.fixture(autouse=True)
def _quick_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look up held tenants more often than every few seconds."""
    monkeypatch.setattr(home_lookup, "RETRY_MAX_S", 0.25)


def padded(tenant: str, count: int, size_bytes: int, *, first: int = 0) -> list[bytes]:
    """Return creations of resources of their own, each of about *size_bytes*."""
    return [
        record("create", tenant, number, resource_id=f"r{number}", data={"filler": "x" * size_bytes})
        for number in range(first, first + count)
    ]


async def test_others_go_on_when_a_shard_is_killed_under_load(world: World, breakable_server: PostgresServer) -> None:
    broken = world.add_shard(await copy_shard(breakable_server, shard_id="shard-3"))
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-3")
    shard = await world.shard("shard-1")

    async with world.reading(prefetch=PrefetchMemory(MIB)) as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await logs(broken, "b-x", 3)
        await breakable_server.kill()
        numbers = await world.put(*mixed(chain("a-x", 300, first=3), chain("b-x", 300, first=3)))
        await logs(shard, "a-x", 303)
        await eventually(lambda: held_targets(reader) == [("shard shard-3", "shard_unavailable", "held")])
        await world.put(*mixed(chain("a-x", 30, first=303), chain("b-x", 30, first=303)))
        await logs(shard, "a-x", 333)
        await eventually(lambda: reader._memory.held_bytes == 0)
        assert not reader.view.is_pending("b-x-3", None)
        assert reader.checkpoint == Position.from_sequence_number(numbers[0])

        await breakable_server.start()
        more = await world.put(*mixed(chain("a-x", 3, first=333), chain("b-x", 3, first=333)))
        await reaches(reader, more[-1])
        assert reader.view.held_status() == []

    assert await outcomes(shard, "a-x") == ["succeeded"] * 336
    assert await outcomes(broken, "b-x") == ["succeeded"] * 336
    assert await world.letters() == []


@pytest.mark.slow(7)
async def test_others_go_on_when_a_shard_has_no_transaction_ids_left(world: World) -> None:
    with ProcessGroup() as group:
        server = PostgresServer(
            group, PostgresPrograms.find(group.directory), database="wraparound", settings=wraparound.SETTINGS
        )
        await server.start()
        await make_template(server)
        spent = world.add_shard(await copy_shard(server, shard_id="shard-3"))
        await world.provision("a-x", "shard-1")
        await world.provision("b-x", "shard-3")
        shard = await world.shard("shard-1")

        async with world.reading() as reader, looked_after(world, reader):
            await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
            await logs(spent, "b-x", 3)
            await wraparound.use_up_transaction_ids(server)
            await world.put(*mixed(chain("a-x", 30, first=3), chain("b-x", 30, first=3)))
            await logs(shard, "a-x", 33)
            await eventually(lambda: held_targets(reader) == [("shard shard-3", "shard_unavailable", "held")])
            await eventually(lambda: spent.last_error == state_words("54000"))
            assert await outcomes(spent, "b-x") == ["succeeded"] * 3

            await wraparound.make_room(server)
            numbers = await world.put(*mixed(chain("a-x", 3, first=33), chain("b-x", 3, first=33)))
            await reaches(reader, numbers[-1])

        assert await outcomes(spent, "b-x") == ["succeeded"] * 36
        assert await world.letters() == []
        await spent.drain()


async def test_queue_behind_a_batch_without_an_answer_is_held_when_it_grows(
    world: World, breakable_server: PostgresServer
) -> None:
    frozen = world.add_shard(await copy_shard(breakable_server, shard_id="shard-3"))
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-3")
    shard = await world.shard("shard-1")

    async with world.reading() as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await logs(frozen, "b-x", 3)
        breakable_server.suspend()
        await world.put(record("create", "b-x", 3, resource_id="r3"))
        await eventually(lambda: reader.view.is_pending("b-x-3", None))
        await world.put(*padded("b-x", 60, 30_000, first=4), *chain("a-x", 3, first=3))
        await eventually(lambda: reader._memory.held_bytes > MIB)
        await logs(shard, "a-x", 6)
        await eventually(lambda: reader._memory.held_bytes < 64 * 1024)
        assert held_targets(reader) == [("shard shard-3", "shard_unavailable", "held")]
        assert reader.view.is_pending("b-x-3", None)

        breakable_server.resume()
        numbers = await world.put(record("create", "b-x", 64, resource_id="r64"))
        await reaches(reader, numbers[-1])

    assert await outcomes(frozen, "b-x") == ["succeeded"] * 65


async def test_tenant_gets_all_of_its_operations_when_it_is_registered_late(world: World) -> None:
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    await world.put(*chain("late-x", 5000), *chain("a-x", 3))

    async with world.reading() as reader:
        await logs(shard, "a-x", 3)
        await eventually(lambda: held_targets(reader) == [("tenant late-x", "unregistered", "held")])
        assert reader.checkpoint is None
        assert reader._dispatcher.pipeline.entries() == []
        await eventually(lambda: reader._memory.held_bytes == 0)  # a read under way counts for what it may bring
        await world.provision("late-x", "shard-1")
        numbers = await world.put(*chain("late-x", 1, first=5000))
        await reaches(reader, numbers[-1])

    assert await outcomes(shard, "late-x") == ["succeeded"] * 5001
    assert await world.letters() == []


async def test_tenants_held_together_are_applied_when_they_are_registered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "TENANT_HOLDS_MAX", 3)
    monkeypatch.setattr(dispatcher, "OVERFLOW_INTERVAL_FIRST_S", 0.5)
    tenants = [f"new{number}-x" for number in range(20)]
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    await world.put(*mixed(*(chain(tenant, 3) for tenant in tenants)))

    async with world.reading() as reader:
        await eventually(lambda: sum(held["tenants"] for held in reader.view.held_status()) == len(tenants))
        targets = sorted(held["target"].split()[0] for held in reader.view.held_status())
        assert targets in (
            ["overflow", "tenant", "tenant", "tenant"],
            ["overflow", "overflow", "tenant", "tenant", "tenant"],
        )
        await world.put(*mixed(*(chain(tenant, 3, first=3) for tenant in tenants)), *chain("a-x", 3))
        await logs(shard, "a-x", 3)
        assert reader.checkpoint is None
        for number, tenant in enumerate(tenants):
            await world.provision(tenant, f"shard-{1 + number % 2}")
        numbers = await world.put(*(record("list", tenant, 6) for tenant in tenants))
        await reaches(reader, numbers[-1])
        assert reader.view.held_status() == []

    for number, tenant in enumerate(tenants):
        assert await outcomes(await world.shard(f"shard-{1 + number % 2}"), tenant) == ["succeeded"] * 7
    assert await world.letters() == []


async def test_held_operations_become_dead_letters_each_at_its_own_time(world: World) -> None:
    now: datetime | None = None
    (old,) = await world.put(record("create", "nobody-x", 0))
    await asyncio.sleep(0.1)
    (young,) = await world.put(record("create", "nobody-x", 1))

    async with world.reading(utc=lambda: now or utc_now()) as reader:
        await eventually(lambda: bool(reader.view.held_status()))
        (hold,) = reader.holds()
        now = hold.arrived_at + WAIT + MARGIN - timedelta(milliseconds=1)
        room = reader._dispatcher.pipeline.lookup
        asked = room._tenants["nobody-x"].failure_count
        await eventually(lambda: room._tenants["nobody-x"].failure_count >= asked + 2)
        assert reader.checkpoint is None
        assert await world.letters() == []

        now += timedelta(milliseconds=1)
        await reaches(reader, old)
        await eventually(lambda: held_targets(reader) == [("tenant nobody-x", "unregistered", "held")])
        (letter,) = await world.letters()
        assert (letter["reason"], letter["source"]["sequenceNumber"]) == ("unknown_tenant", old)

        await world.provision("nobody-x", "shard-1")
        await reaches(reader, young)

    rows = await fetch(await world.shard("shard-1"), "SELECT request_id, status FROM operations")
    assert [(row["request_id"], row["status"]) for row in rows] == [("nobody-x-1", "succeeded")]
    assert await world.letters() == []


async def test_operation_that_fails_by_itself_is_given_up_and_may_be_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "FAILING_RETRIES_S", (0.3, 0.4, 3600.0))  # the last one when the test says so
    for tenant in ("a-x", "b-x"):
        await world.provision(tenant, "shard-1")
    shard = await world.shard("shard-1")
    await make_touchy(shard)
    bad = record("create", "a-x", 3, resource_id="r2", data={"raise": "P0001"})
    later = [record(kind, "a-x", number) for number, kind in enumerate(("create", "update", "delete"), start=4)]
    retries = RETRIES.labels("kinesis", "failing")
    before = retries._value.get()
    await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)), bad)

    async with world.reading() as reader:
        await eventually(lambda: ("tenant a-x", "failing", "held") in held_targets(reader))
        await world.put(*mixed(later, chain("b-x", 3, first=3)))
        await logs(shard, "b-x", 6)
        assert await outcomes(shard, "a-x") == ["succeeded"] * 3
        numbers = await world.put(record("list", "a-x", 7))
        await eventually(lambda: retries._value.get() - before >= 3)
        monkeypatch.setattr(dispatcher, "FAILING_RETRIES_S", (0.3, 0.4, 0.5))
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
    monkeypatch.setattr(dispatcher, "FAILING_RETRIES_S", (0.1,) * 3)
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    await make_touchy(shard)
    await fetch(shard, "ALTER TABLE log_outcomes ADD CONSTRAINT markless CHECK (error <> 'retries_exhausted')")
    numbers = await world.put(record("create", "a-x", 0, data={"raise": "P0001"}), record("create", "a-x", 1))

    with capture_logs() as events:
        async with world.reading() as reader:
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


async def test_mark_is_not_taken_by_a_shard_where_the_tenant_does_not_live(world: World) -> None:
    await world.provision("a-x", "shard-1")
    await world.shard("shard-2")
    batches = ClaimedBatches(world.gateway, Ownership(CheckpointTracker()), None)

    with pytest.raises(RetryableError, match="a tenant does not live on shard shard-2 now"):
        await batches.write_failure("shard-2", queued_operation("a-x").operation)


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


async def test_failures_of_many_tenants_are_given_up_on_a_shard_that_works(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "FAILING_RETRIES_S", (0.1,) * 3)
    tenants = [f"t{number}-x" for number in range(20)]
    for tenant in tenants:
        await world.provision(tenant, "shard-1")
    await make_touchy(await world.shard("shard-1"))
    bad = [record("create", tenant, 0, data={"raise": "P0001"}) for tenant in tenants]
    numbers = await world.put(*bad, *(record("create", tenant, 1) for tenant in tenants))

    async with world.reading() as reader:
        await reaches(reader, numbers[-1])

    letters = await world.letters()
    expected = [(f"{tenant}-0", 4) for tenant in sorted(tenants)]
    assert sorted((letter["requestId"], letter["attempts"]) for letter in letters) == expected


async def test_failures_of_many_tenants_are_those_of_a_shard_that_refuses_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "FAILING_RETRIES_S", (0.1,) * 3)
    tenants = ["a-x", "b-x", "c-x", "d-x"]
    for tenant in tenants:
        await world.provision(tenant, "shard-1")
    await fetch(await world.shard("shard-1"), "ALTER TABLE resources ADD CONSTRAINT no CHECK (data IS NULL) NOT VALID")
    retries = RETRIES.labels("kinesis", "failing")
    before = retries._value.get()
    numbers = await world.put(*(record("create", tenant, 0) for tenant in tenants))

    with capture_logs() as events:
        async with world.reading() as reader:
            await eventually(lambda: retries._value.get() - before >= 8 * len(tenants))
            assert await world.letters() == []
            monkeypatch.setattr(dispatcher, "FAILING_FOR_MANY_S", 0.0)
            await reaches(reader, numbers[-1])

    (refusing, *_) = [one for one in events if one["event"] == "shard.refusing"]
    assert (refusing["shard_id"], "(23514)" in refusing["error"]) == ("shard-1", True)
    assert len(await world.letters()) == len(tenants)


async def test_operation_that_fails_by_itself_is_applied_when_it_stops_failing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "FAILING_RETRIES_S", (0.3,) * 50)
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    await make_touchy(shard)
    numbers = await world.put(
        record("create", "a-x", 0, resource_id="r2", data={"raise": "P0001"}), *chain("a-x", 600, first=3)
    )

    async with world.reading() as reader:
        await eventually(lambda: bool(reader.view.held_status()))
        assert reader.checkpoint is None
        await calm(shard)
        await reaches(reader, numbers[-1])

    assert await outcomes(shard, "a-x") == ["succeeded"] * 601
    assert await world.letters() == []


@pytest.mark.parametrize("is_listed_by_slot", [False, True])
async def test_child_holds_what_its_parents_owe_until_they_owe_it_no_more(
    world: World, *, is_listed_by_slot: bool
) -> None:
    tenants = ["a-x", "b-x", "p-x", "q-x"]
    for tenant in tenants:
        await world.provision(tenant, "shard-1")
    shard = await world.shard("shard-1")
    pending = TenantSet(["p-x", "q-x"])
    if is_listed_by_slot:
        pending = TenantSet.decode(pending.encode(limit=0))
    await world.put(*mixed(*(chain(tenant, 3) for tenant in tenants)))

    async with world.reading(pending_at_parents=pending) as reader:
        await logs(shard, "a-x", 3)
        await logs(shard, "b-x", 3)
        assert held_targets(reader) == [("parents", "reshard", "held")]
        assert (reader.checkpoint, reader.is_waiting_for_parents) == (None, True)

        reader.release_from_parents(TenantSet(["q-x"]))
        await world.put(*mixed(*(chain(tenant, 3, first=3) for tenant in tenants)))
        await logs(shard, "p-x", 6)
        await logs(shard, "a-x", 6)
        assert (await outcomes(shard, "q-x"), reader.checkpoint) == ([], None)
        await eventually(lambda: held_targets(reader) == [("parents", "reshard", "held")])

        reader.release_from_parents(TenantSet())
        numbers = await world.put(*mixed(*(chain(tenant, 3, first=6) for tenant in tenants)))
        await reaches(reader, numbers[-1])
        assert (reader.view.held_status(), reader.is_waiting_for_parents) == ([], False)

    for tenant in tenants:
        assert await outcomes(shard, tenant) == ["succeeded"] * 9


async def test_time_read_up_to_goes_on_for_others_while_a_tenant_is_held(world: World) -> None:
    async with world.reading(settings=msgspec.structs.replace(SETTINGS, ahead_from_s=0.2)) as reader:
        await world.put(*chain("nobody-x", 1))
        await eventually(lambda: reader.ahead is not None)
        first = reader.read_up_to(reader.ahead)

        assert first is not None
        await eventually(lambda: (reader.read_up_to(reader.ahead) or first) > first)
        assert reader.read_to is not None
        assert reader.ahead == ReadAhead(reader.read_to.position, frozenset({"tenant:nobody-x"}))


async def test_reader_begins_where_its_predecessor_was_and_catches_up_what_that_held(world: World) -> None:
    await world.provision("a-x", "shard-1")
    await world.provision("p-x", "shard-1")
    shard = await world.shard("shard-1")
    numbers = await world.put(*chain("p-x", 3))
    ahead = ReadAhead(Position.from_sequence_number(numbers[-1]), frozenset({"tenant:p-x"}))

    async with world.reading(read_ahead=ahead) as reader:
        assert (reader.ahead, reader.checkpoint) == (ahead, None)
        numbers = await world.put(*mixed(chain("a-x", 3), chain("p-x", 3, first=3)))
        await reaches(reader, numbers[-1])
        assert reader.ahead is None

    assert await outcomes(shard, "a-x") == ["succeeded"] * 3
    assert await outcomes(shard, "p-x") == ["succeeded"] * 6


async def test_next_reader_goes_on_with_what_was_held_when_the_first_stops(
    world: World, breakable_server: PostgresServer
) -> None:
    broken = world.add_shard(await copy_shard(breakable_server, shard_id="shard-3"))
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-3")
    await world.provision("c-x", "shard-1")
    shard = await world.shard("shard-1")
    first = await world.put(*mixed(chain("a-x", 3), chain("b-x", 3), chain("c-x", 3)))

    async with world.reading() as reader:
        await reaches(reader, first[-1])
        await breakable_server.kill()
        await fetch(shard, "UPDATE tenants SET state = 'fenced' WHERE id = 'c-x' RETURNING id")
        ahead = await world.put(*chain("a-x", 3, first=3))
        await logs(shard, "a-x", 6)
        tail = mixed(*(chain(tenant, 30, first=3) for tenant in ("b-x", "c-x")), chain("late-x", 30))
        await world.put(*tail, *chain("a-x", 3, first=6))
        await logs(shard, "a-x", 9)
        await eventually(lambda: len(reader.view.held_status()) == 3)
        assert held_targets(reader) == [
            ("shard shard-3", "shard_unavailable", "held"),
            ("tenant c-x", "moving", "held"),
            ("tenant late-x", "unregistered", "held"),
        ]
        assert reader.checkpoint == Position.from_sequence_number(ahead[-1])

    assert reader.checkpoint == Position.from_sequence_number(ahead[-1])
    await breakable_server.start()
    forget_probes(broken)  # a failure of the first reader's is shared for a moment
    await broken.probe()  # the pool refuses requests until a probe succeeds
    await fetch(shard, "UPDATE tenants SET state = 'active' WHERE id = 'c-x' RETURNING id")
    await world.provision("late-x", "shard-3")
    async with world.reading(AtSequenceNumber(ahead[-1]), checkpoint=reader.checkpoint) as reader:
        numbers = await world.put(*mixed(*(chain(tenant, 3, first=33) for tenant in ("b-x", "c-x"))))
        await reaches(reader, numbers[-1])

    assert await outcomes(shard, "a-x") == ["succeeded"] * 9
    assert await outcomes(broken, "b-x") == ["succeeded"] * 36
    assert await outcomes(shard, "c-x") == ["succeeded"] * 36
    assert await outcomes(broken, "late-x") == ["succeeded"] * 30
    assert await world.letters() == []


async def test_aggregate_of_another_stream_shard_is_one_dead_letter(world: World) -> None:
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    stray = aggregate([("key", None, one) for one in chain("a-x", 3, first=3)])
    numbers = await world.put(*chain("late-x", 3), *chain("a-x", 3), stray, *chain("a-x", 3, first=6))

    async with world.reading(hash_range=HashRange(0, 0)) as reader:
        await logs(shard, "a-x", 6)
        await eventually(lambda: bool(reader.view.held_status()))
        await world.provision("late-x", "shard-1")
        await reaches(reader, numbers[-1])

    (letter,) = await world.letters()
    assert (letter["reason"], letter["source"]["sequenceNumber"]) == ("invalid_message", numbers[6])
    assert "3 of 3 sub-records lie outside" in letter["error"]
    assert await outcomes(shard, "a-x") == ["succeeded"] * 6
    assert await outcomes(shard, "late-x") == ["succeeded"] * 3


async def test_reader_goes_on_when_every_record_is_larger_than_its_memory(world: World) -> None:
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    await world.put(*mixed(padded("a-x", 2, 60_000), padded("late-x", 2, 60_000)))

    async with world.reading(TrimHorizon(), prefetch=PrefetchMemory(16 * 1024)) as reader:
        await logs(shard, "a-x", 2)
        await eventually(lambda: held_targets(reader) == [("tenant late-x", "unregistered", "held")])
        await world.provision("late-x", "shard-1")
        numbers = await world.put(*padded("late-x", 1, 60_000, first=2))
        await reaches(reader, numbers[-1])
        await eventually(lambda: reader._memory.held_bytes == 0)

    assert await outcomes(shard, "late-x") == ["succeeded"] * 3


async def test_batch_without_an_answer_is_held_when_its_memory_is_needed(
    world: World, breakable_server: PostgresServer
) -> None:
    frozen = world.add_shard(await copy_shard(breakable_server, shard_id="shard-3"))
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-3")
    shard = await world.shard("shard-1")

    async with world.reading(prefetch=PrefetchMemory(256 * 1024)) as reader:
        await world.put(*mixed(chain("a-x", 3), chain("b-x", 3)))
        await logs(frozen, "b-x", 3)
        breakable_server.suspend()
        await world.put(*padded("b-x", 20, 30_000, first=3))
        await eventually(lambda: reader.status()["state"] == "waits for memory")
        await world.put(*chain("a-x", 3, first=3))
        await logs(shard, "a-x", 6)
        await eventually(lambda: reader._memory.held_bytes == 0)
        assert held_targets(reader) == [("shard shard-3", "shard_unavailable", "held")]

        breakable_server.resume()
        numbers = await world.put(record("create", "b-x", 23, resource_id="r23"))
        await reaches(reader, numbers[-1])

    assert await outcomes(frozen, "b-x") == ["succeeded"] * 24


async def test_tenant_over_its_share_is_read_again_until_its_lane_keeps_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name, seconds in ((fairness, "OVER_SHARE_S", 0.02), (lane, "SHARE_S", 0.01)):
        monkeypatch.setattr(place, name, seconds)
    monkeypatch.setattr(pacing, "SHARED_REPLY_BYTES", 20_000)  # of the main reader: it is behind the catch-up
    for name, seconds in (("KEPT_UP_S", 0.001), ("CHECK_INTERVAL_S", 0.01)):
        monkeypatch.setattr(catch_up, name, seconds)
    for tenant in ("a-x", "b-x"):
        await world.provision(tenant, "shard-1")
    shard = await world.shard("shard-1")
    await fetch(shard, SLOW_FUNCTION.format(seconds=0.1))
    await fetch(shard, SLOW_TRIGGER.format(table="log_rows"))
    await world.put(*chain("b-x", 3))
    for first in range(0, 6000, 300):
        numbers = await world.put(*chain("a-x", 300, first=first))

    with capture_logs() as events:
        async with world.reading() as reader:
            await reaches(reader, numbers[-1])
            assert reader.view.held_status() == []

    assert {"tenant.over_share", "catch_up.ended"} <= {one["event"] for one in events}
    assert await outcomes(shard, "a-x") == ["succeeded"] * 6000
    assert await outcomes(shard, "b-x") == ["succeeded"] * 3
    assert await world.letters() == []
