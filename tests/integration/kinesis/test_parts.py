from __future__ import annotations

import pytest
from support.aws.kpl_aggregates import aggregate
from support.reader_world import World, chain, mixed, outcomes, reaches

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(1.2)]


def array(*parts: bytes) -> bytes:
    return b"[%b]" % b",".join(parts)


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
    ] == [(bad.decode(), numbers[0], 0, 6, "invalid_message"), ("broken", numbers[1], 0, 6, "invalid_json")]
