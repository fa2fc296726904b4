from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from support.postgres.databases import SHARD_ID
from support.postgres.tenant_cases import (
    ARRIVED_AT,
    STREAM,
    STREAM_SHARD_ID,
    TENANT,
    TENANT_MADE_AT,
    TenantCase,
    add_tenant,
    fetch,
    writer_of,
)
from support.postgres.trouble import waiters

from simplu_worker.operations.operation import Disposition, Outcome
from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.positions import ShardPositions
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.types import PositionChangedError, PositionClaim, StreamPosition
from simplu_worker.vocabulary import Failure

pytestmark = pytest.mark.slow


PARENT = "shardId-000000000001"
GIVEN_UP = Outcome(disposition=Disposition.APPLIED, failure=Failure.RETRIES_EXHAUSTED)


@pytest.fixture
async def case(shard: ShardPool) -> TenantCase:
    await add_tenant(shard)
    return TenantCase(shard, TENANT)


@pytest.fixture
def writer(case: TenantCase) -> ShardWriter:
    return writer_of(case.pool)


@pytest.fixture
async def positions(case: TenantCase) -> AsyncIterator[ShardPositions]:
    async with Pools(size=4) as pools:
        pools.ensure_pool(case.pool.address)
        yield ShardPositions(pools)


def claim_of(
    stream_shard_id: str = STREAM_SHARD_ID,
    pending_from: str = "7/0",
    *,
    fencing_tokens: Sequence[str] = (),
    move_token: str | None = None,
    **content: Any,
) -> PositionClaim:
    position = StreamPosition(pending_from, **content)
    return PositionClaim(STREAM, stream_shard_id, position, move_token, list(fencing_tokens))


def said(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row but for where it belongs, and for the mark of a gap that it does not have."""
    return {
        name: value
        for name, value in row.items()
        if name not in {"stream", "stream_shard_id"} and not (name.startswith("gap_") and value is None)
    }


async def rows(pool: ShardPool) -> dict[str, dict[str, Any]]:
    found = await fetch(pool, "SELECT *, token::text FROM stream_positions")
    assert {row["stream"] for row in found} <= {STREAM}
    return {row["stream_shard_id"]: said(row) for row in found}


async def position(pool: ShardPool, stream_shard_id: str = STREAM_SHARD_ID) -> str | None:
    found = (await rows(pool)).get(stream_shard_id)
    return None if found is None else found["pending_from"]


async def take_away(pool: ShardPool, stream_shard_id: str = STREAM_SHARD_ID) -> str:
    token = str(uuid.uuid4())
    query = "UPDATE stream_positions SET token = $2::uuid, pending_from = '99/0' WHERE stream_shard_id = $1"
    await fetch(pool, query, stream_shard_id, token)
    return token


async def test_row_comes_with_the_first_batch_and_moves_with_the_next(case: TenantCase, writer: ShardWriter) -> None:
    held = ("tenant:a-x", "slots:AA")
    claim = claim_of(pending_since=ARRIVED_AT, read_to="9/1", held=held, parents_done=True, read_up_to=ARRIVED_AT)
    assert await writer.apply([case.operation("create", data={})], claim) == [SUCCEEDED]

    first = (await rows(case.pool))[STREAM_SHARD_ID]
    assert first == {
        "pending_from": "7/0",
        "pending_since": ARRIVED_AT,
        "read_to": "9/1",
        "held": ["tenant:a-x", "slots:AA"],
        "read_up_to": ARRIVED_AT,
        "parents_done": True,
        "token": claim.fencing_tokens[0],
    }
    assert len(claim.fencing_tokens) == 1

    claim.position = StreamPosition("8/0", ARRIVED_AT + timedelta(seconds=1))
    assert await writer.apply([case.operation("update", data={})], claim) == [SUCCEEDED]

    assert (await rows(case.pool))[STREAM_SHARD_ID] == {
        "pending_from": "8/0",
        "pending_since": ARRIVED_AT + timedelta(seconds=1),
        "read_to": None,
        "held": None,
        "read_up_to": None,
        "parents_done": False,
        "token": claim.fencing_tokens[0],
    }
    assert claim.fencing_tokens != [first["token"]]


@pytest.mark.parametrize("known", ["no row", "a row"])
async def test_writer_applies_nothing_when_the_row_is_another_readers(
    case: TenantCase, writer: ShardWriter, known: str
) -> None:
    claim, other = claim_of(), claim_of(pending_from="6/0")
    if known == "a row":
        await writer.apply([case.operation("create", "r0", {})], claim)
        other.fencing_tokens = list(claim.fencing_tokens)
    tokens = list(claim.fencing_tokens)
    await writer.apply([case.operation("create", "r1", {})], other)
    before = await case.everything(), await rows(case.pool)

    claim.position = StreamPosition("8/0")
    operations = [case.operation("create", "r2", {}), case.operation("update", "r1", {"v": 2})]
    with pytest.raises(PositionChangedError, match=STREAM_SHARD_ID):
        await writer.apply(operations, claim)

    assert (await case.everything(), await rows(case.pool)) == before
    assert claim.fencing_tokens == tokens
    assert await position(case.pool) == "6/0"


async def test_no_row_is_made_when_a_tenant_was_moved_here_meanwhile(
    case: TenantCase, writer: ShardWriter, positions: ShardPositions
) -> None:
    """The tenant may lack operations that its shard lost; no row showed that, and the new row must not hide it.

    Tenants that are made here in between lack nothing.
    """
    standing = await positions.read_positions(SHARD_ID, STREAM, [STREAM_SHARD_ID], is_first=True)
    assert standing is not None
    claim = claim_of(move_token=standing.move_token)
    await add_tenant(case.pool, ("clinic", "moved"))
    await fetch(case.pool, "UPDATE tenants SET epoch = 2, state_changed_at = now() WHERE location_id = 'moved'")

    with pytest.raises(PositionChangedError, match=STREAM_SHARD_ID):
        await writer.apply([case.operation("create", data={})], claim)
    assert await positions.write_positions(SHARD_ID, [claim]) == [claim]
    assert (await rows(case.pool), await case.resources()) == ({}, {})

    standing = await positions.read_positions(SHARD_ID, STREAM, [STREAM_SHARD_ID], is_first=True)
    assert standing is not None
    claim = claim_of(move_token=standing.move_token)
    await add_tenant(case.pool, ("clinic", "new"))
    assert await writer.apply([case.operation("create", data={})], claim) == [SUCCEEDED]


async def test_rows_are_written_in_one_order_whether_they_are_known_or_new(
    case: TenantCase, positions: ShardPositions
) -> None:
    known, behind = claim_of("shardId-b"), claim_of("shardId-a")
    await positions.write_positions(SHARD_ID, [known, claim_of("shardId-a")])
    lock = "SELECT FROM stream_positions WHERE stream_shard_id = $1 FOR UPDATE"
    async with case.pool.transaction() as other, asyncio.TaskGroup() as tasks:
        await other.execute("UPDATE stream_positions SET pending_from = '9/0' WHERE stream_shard_id = 'shardId-a'")
        writing = tasks.create_task(positions.write_positions(SHARD_ID, [known, behind]))
        await waiters(other)
        await other.execute(f"{lock} NOWAIT", "shardId-b")
        await other.execute("COMMIT")
        await other.execute("BEGIN")
    assert writing.result() == [behind]


async def test_row_is_written_with_an_operation_that_is_given_up(case: TenantCase, writer: ShardWriter) -> None:
    claim = claim_of()
    bad = case.operation("create", data={})
    assert await writer.give_up(bad, claim) == GIVEN_UP
    assert (await position(case.pool), len(claim.fencing_tokens)) == ("7/0", 1)

    claim.position = StreamPosition("8/0")
    assert await writer.give_up(bad, claim) == DUPLICATE
    assert await position(case.pool) == "8/0"

    await take_away(case.pool)
    other = case.operation("create", data={})
    with pytest.raises(PositionChangedError):
        await writer.give_up(other, claim)
    assert list(await case.log()) == [bad.request_id]


async def test_touch_writes_what_is_its_readers_and_says_what_is_not(
    case: TenantCase, positions: ShardPositions
) -> None:
    known, new, stolen, gone = (claim_of(f"shardId-{number}") for number in range(4))
    for claim in (known, stolen, gone):
        assert await positions.write_positions(SHARD_ID, [claim]) == []
    token = await take_away(case.pool, "shardId-2")
    await fetch(case.pool, "DELETE FROM stream_positions WHERE stream_shard_id = 'shardId-3'")
    for claim in (known, new, stolen, gone):
        claim.position = StreamPosition("8/0")

    assert await positions.write_positions(SHARD_ID, [gone, stolen, new, known]) == [stolen, gone]

    found = await rows(case.pool)
    assert {key: row["pending_from"] for key, row in found.items()} == {
        "shardId-0": "8/0",
        "shardId-1": "8/0",
        "shardId-2": "99/0",
    }
    assert found["shardId-2"]["token"] == token
    assert [claim.fencing_tokens for claim in (known, new)] == [[found[f"shardId-{n}"]["token"]] for n in (0, 1)]
    assert await positions.write_positions(SHARD_ID, []) == []


async def test_adoption_leaves_another_token_in_the_row_that_it_reads(
    case: TenantCase, writer: ShardWriter, positions: ShardPositions
) -> None:
    claim, parents = claim_of(pending_since=ARRIVED_AT, parents_done=True), claim_of(PARENT, "SHARD_END")
    await positions.write_positions(SHARD_ID, [claim, parents])

    standing = await positions.fence_and_read_positions(SHARD_ID, claim, [PARENT, "shardId-9"])

    assert standing is not None
    assert standing.is_unchanged
    found = await rows(case.pool)
    adopted = standing.rows[STREAM_SHARD_ID]
    assert adopted == StreamPosition("7/0", ARRIVED_AT, True, found[STREAM_SHARD_ID]["token"])
    assert adopted.fencing_token not in claim.fencing_tokens
    assert standing.rows[PARENT].fencing_token in parents.fencing_tokens
    assert (sorted(standing.rows), standing.first_tenant_at) == ([STREAM_SHARD_ID, PARENT], TENANT_MADE_AT)
    with pytest.raises(PositionChangedError):
        await writer.apply([case.operation("create", data={})], claim)
    again = await positions.fence_and_read_positions(SHARD_ID, claim, [PARENT])
    assert again is not None
    assert not again.is_unchanged
    claim.fencing_tokens = [again.rows[STREAM_SHARD_ID].fencing_token]
    assert await writer.apply([case.operation("create", data={})], claim) == [SUCCEEDED]


async def test_positions_past_the_retention_are_forgotten(case: TenantCase, positions: ShardPositions) -> None:
    await positions.write_positions(SHARD_ID, [claim_of(f"shardId-{number}") for number in range(3)])
    await positions.forget_positions(SHARD_ID, "another-stream", ["shardId-0"])
    assert sorted(await rows(case.pool)) == ["shardId-0", "shardId-1", "shardId-2"]

    for _ in range(2):
        await positions.forget_positions(SHARD_ID, STREAM, ["shardId-0", "shardId-2", "shardId-9"])
        assert sorted(await rows(case.pool)) == ["shardId-1"]


async def standing(positions: ShardPositions) -> StreamPosition:
    stored = await positions.read_positions(SHARD_ID, STREAM, [STREAM_SHARD_ID])
    assert stored is not None
    return stored.rows[STREAM_SHARD_ID]


async def test_gap_of_one_position_lasts_until_it_is_accepted(case: TenantCase, positions: ShardPositions) -> None:
    claim = claim_of()
    await positions.write_positions(SHARD_ID, [claim])
    await positions.mark_gap(SHARD_ID, STREAM, STREAM_SHARD_ID, "6/0")
    assert not (await standing(positions)).has_gap
    await positions.mark_gap(SHARD_ID, STREAM, STREAM_SHARD_ID, "7/0")
    marked = await standing(positions)
    assert (marked.has_open_gap, [marked.fencing_token]) == (True, claim.fencing_tokens)
    await positions.forget_positions(SHARD_ID, STREAM, [STREAM_SHARD_ID])
    found_at = (await rows(case.pool))[STREAM_SHARD_ID]["gap_found_at"]
    (accepted,) = await fetch(case.pool, QUERIES["accept_gaps"])
    assert await fetch(case.pool, QUERIES["accept_gaps"]) == []
    assert (accepted["gap_from"], accepted["gap_found_at"]) == ("7/0", found_at)
    await positions.mark_gap(SHARD_ID, STREAM, STREAM_SHARD_ID, "7/0")
    again = await standing(positions)
    assert (again.has_gap, again.has_open_gap) == (True, False)

    claim.position = StreamPosition("8/0")
    await positions.write_positions(SHARD_ID, [claim])
    assert not (await standing(positions)).has_gap
    await positions.mark_gap(SHARD_ID, STREAM, STREAM_SHARD_ID, "8/0")
    assert (await standing(positions)).has_open_gap
