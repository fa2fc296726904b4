from __future__ import annotations

import json
from itertools import pairwise

import pytest
from support.aws.kpl_aggregates import aggregate
from support.postgres.tenant_cases import fetch
from support.reader_world import World, chain, eventually, held_targets, mixed, outcomes, reaches, record

from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, Position

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(1.2)]


def array(*parts: bytes) -> bytes:
    return b"[%b]" % b",".join(parts)


def without_ids(one: bytes) -> bytes:
    members = json.loads(one)
    return json.dumps({name: members[name] for name in members if name not in {"requestId", "resourceId"}}).encode()


async def test_parts_of_one_record_go_to_their_tenants_and_the_bad_ones_to_the_dead_letters(world: World) -> None:
    await world.provision("a-x", "shard-1")
    await world.provision("b-x", "shard-2")
    parts = mixed(chain("a-x", 9), chain("b-x", 9))
    bad = b'{"operation": "create", "requestId": "mine"}'
    numbers = await world.put(
        array(*parts[:6], bad),
        b"\n".join([*parts[6:12], b"broken", b""]),
        aggregate([("key", None, array(*parts[12:]))]),
    )

    async with world.reading() as reader:
        await reaches(reader, numbers[-1])

    assert await outcomes(await world.shard("shard-1"), "a-x") == ["succeeded"] * 9
    assert await outcomes(await world.shard("shard-2"), "b-x") == ["succeeded"] * 9
    letters = [(one["record"], one["source"], one["reason"]) for one in await world.letters()]
    assert [
        (content, source["sequenceNumber"], source["subSequenceNumber"], source["partIndex"], reason)
        for content, source, reason in letters
    ] == [
        (bad.decode(), numbers[0], 0, 6, "invalid_message"),
        ("broken", numbers[1], 0, 6, "invalid_json"),
    ]


@pytest.mark.parametrize("is_packed", [False, True])
async def test_parts_that_wait_are_applied_once_after_a_restart_in_the_middle_of_their_record(
    world: World, *, is_packed: bool
) -> None:
    await world.provision("a-x", "shard-1")
    shard = await world.shard("shard-1")
    late = chain("late-x", 4)
    nameless = [without_ids(record("create", one, n)) for n, one in enumerate(("a-x", "late-x", "a-x", "late-x"))]
    whole = array(*chain("a-x", 2), *late[:2], *nameless, *chain("a-x", 2, first=2), *late[2:])
    whole = aggregate([("k", None, chain("a-x", 5)[4]), ("k", None, whole)]) if is_packed else whole
    first, number = await world.put(record("create", "a-x", 9, resource_id="other"), whole)
    last_sub = 1 if is_packed else 0
    count = 1 + 4 + 2 + is_packed

    async with world.reading() as reader:
        await eventually(lambda: held_targets(reader) == [("tenant late-x", "unregistered", "held")])
        await eventually(
            lambda: reader.read_to is not None and reader.read_to.position == Position(int(number), last_sub)
        )
        before = Position(int(number), last_sub - 1)
        await eventually(lambda: reader.checkpoint == before)
    assert before > Position.from_sequence_number(first)
    assert len(await fetch(shard, "SELECT FROM operations WHERE tenant_id = 'a-x'")) == count

    await world.provision("late-x", "shard-1")
    async with world.reading(AtSequenceNumber(number), checkpoint=before) as reader:
        await eventually(lambda: reader.checkpoint == Position(int(number), last_sub))
    async with world.reading(AtSequenceNumber(first)) as reader:  # all of it once more
        await eventually(lambda: reader.checkpoint == Position(int(number), last_sub))

    assert len(await fetch(shard, "SELECT FROM operations WHERE tenant_id = 'a-x'")) == count
    rows = await fetch(
        shard, "SELECT request_id, status, completed_at FROM operations WHERE tenant_id = 'late-x' ORDER BY request_id"
    )
    assert [row["status"] for row in rows] == ["succeeded"] * 6
    own = [row["completed_at"] for row in rows if row["request_id"].startswith("late-x")]
    assert all(one <= other for one, other in pairwise(own))
    assert await world.letters() == []
