from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from random import Random
from uuid import uuid4

import pytest
from support.aws.kcl3_peer import (
    Kcl3Peer,
)
from support.aws.kcl_peer import KclPeer, Row, number, reference_row

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.stream.positions import LATEST, SHARD_END, HashRange, Position

pytestmark = pytest.mark.slow(1)

KEY, CHILDREN = "shardId-000000000003", ("shardId-000000000008", "shardId-000000000009")
AT = "49590338271490256608559692538361571095921575989136588898"
LATER = "49590338271490256608559692538361571095921575989136588999"
OURS = "host:1:ours"
DURATION_S = 10.0
# Attributes that the KCL 2.x writes, those that 3.x adds, and the worker's own.
KNOWN_TO_THE_KCL = {
    "leaseKey",
    "leaseOwner",
    "leaseCounter",
    "ownerSwitchesSinceCheckpoint",
    "checkpoint",
    "checkpointSubSequenceNumber",
    "pendingCheckpoint",
    "pendingCheckpointSubSequenceNumber",
    "pendingCheckpointState",
    "parentShardId",
    "childShardIds",
    "startingHashKey",
    "endingHashKey",
}
OUR_OWN = {"entityType", "simpluStartedAt", "simpluPendingTenants", "simpluMeteredBy"}


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shared:
    """A table of its own for a test, and both kinds of workers on it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.table = LeaseTable(client, f"leases-{uuid4()}")
        self.clock = Clock()
        self.kcl = self.peer("kcl-a:uuid")

    def peer(self, me: str, seed: int = 1) -> KclPeer:
        return KclPeer(self.client, self.table.name, me, now=self.clock, failover_s=DURATION_S, draws=Random(seed))

    async def read_row(self, lease_key: str = KEY) -> Row:
        reply = await self.client.get_item(
            TableName=self.table.name, Key={"leaseKey": {"S": lease_key}}, ConsistentRead=True
        )
        row: Row = reply["Item"]
        return row

    async def put(self, row: Row) -> None:
        await self.client.put_item(TableName=self.table.name, Item=row)

    async def read_lease(self, lease_key: str = KEY) -> Lease:
        found = await self.table.find(lease_key)
        assert found is not None
        return found


@pytest.fixture
async def shared(dynamodb: Client) -> Shared:
    one = Shared(dynamodb)
    await one.table.ensure()
    return one


async def test_table_of_a_kcl_application_is_taken_over_as_it_is(shared: Shared) -> None:
    before = reference_row(KEY, AT, owner="kcl-a:uuid", counter=4711) | {
        "checkpointSubSequenceNumber": number(7),
        "parentShardId": {"SS": ["shardId-000000000000"]},
        "startingHashKey": {"S": "0"},
        "endingHashKey": {"S": "17"},
        "throughputKBps": {"N": "1.5"},
        "tomorrow": {"M": {"a": {"BOOL": True}}},
    }
    await shared.put(before)
    taken = await shared.table.take(await shared.read_lease(), OURS)

    assert taken == Lease(
        KEY,
        Position(int(AT), 7),
        counter=4712,
        owner=OURS,
        owner_switches=1,
        parents=frozenset({"shardId-000000000000"}),
        hash_range=HashRange(0, 17),
        throughput_kbps=1.5,
        metered_by=OURS,
    )
    changed = {"leaseOwner": {"S": OURS}, "leaseCounter": number(4712), "ownerSwitchesSinceCheckpoint": number(1)}
    changed["simpluMeteredBy"] = {"S": OURS}
    assert await shared.read_row() == before | changed


async def test_prepared_checkpoint_is_seen_and_ends_with_the_first_of_ours(shared: Shared) -> None:
    await shared.kcl.create(reference_row(KEY, AT))
    await shared.kcl.take(await shared.read_row())
    await shared.kcl.prepare_checkpoint(KEY, LATER, b"state")
    taken = await shared.table.take(await shared.read_lease(), OURS)
    assert taken is not None
    renewed = await shared.table.renew(taken, OURS)
    assert renewed is not None
    kept = [name for name in await shared.read_row() if name.startswith("pending")]
    await shared.table.renew(renewed, OURS, Position(int(LATER)))
    left = [name for name in await shared.read_row() if name.startswith("pending")]

    assert renewed.pending_checkpoint == Position(int(LATER))
    assert (len(kept), left) == (3, [])


async def test_peer_resumes_from_our_checkpoint_when_the_lease_is_handed_back(shared: Shared) -> None:
    await shared.table.create(Lease(KEY, LATEST, started_at=datetime(2026, 1, 31, tzinfo=UTC)))
    taken = await shared.table.take(await shared.read_lease(), OURS)
    assert taken is not None
    renewed = await shared.table.renew(taken, OURS, Position(int(AT), 3))
    assert renewed is not None
    await shared.table.release(renewed, OURS, Position(int(LATER), 5))
    row = await shared.read_row()
    took = await shared.kcl.take_some()

    assert "leaseOwner" not in row
    assert set(row) <= KNOWN_TO_THE_KCL | OUR_OWN
    assert [name for name, value in row.items() if not next(iter(value.values()))] == []
    assert took == [KEY]
    held = shared.kcl.held[KEY]
    assert (held["checkpoint"], held["checkpointSubSequenceNumber"]) == ({"S": LATER}, number(5))
    assert await shared.kcl.checkpoint(KEY, LATER, 6)


class HandOver:
    """A lease of ours that a leader of the KCL 3.5 has begun to hand over to one of its workers."""

    def __init__(self, shared: Shared, lease: Lease) -> None:
        self.leader = Kcl3Peer(shared.client, shared.table.name, "kcl-leader:uuid")
        self.next = Kcl3Peer(shared.client, shared.table.name, "kcl-next:uuid")
        self.lease = lease  # as our last write left it, before the hand-over


@pytest.fixture
async def hand_over(shared: Shared) -> HandOver:
    await shared.kcl.create(reference_row(KEY, AT))
    taken = await shared.table.take(await shared.read_lease(), OURS)
    assert taken is not None
    one = HandOver(shared, taken)
    assert await one.leader.initiate_handoff(await shared.read_row(), one.next.me)
    return one


async def test_hand_over_of_a_kcl_3_leader_is_seen_and_ends_with_our_last_checkpoint(
    shared: Shared, hand_over: HandOver
) -> None:
    renewed = await shared.table.renew(hand_over.lease, OURS)
    assert renewed is not None
    checkpointed = await shared.table.renew(renewed, OURS, Position(int(LATER)))
    assert checkpointed is not None
    begun_early = await hand_over.next.discover()
    await shared.table.write_children(checkpointed, OURS, CHILDREN)
    released = await shared.table.release(checkpointed, OURS, Position(int(LATER), 3))
    row = await shared.read_row()

    assert (renewed.owner, renewed.checkpoint_owner, renewed.actual_owner) == (hand_over.next.me, OURS, OURS)
    assert begun_early == []
    assert released
    assert (row["leaseOwner"], "checkpointOwner" in row) == ({"S": hand_over.next.me}, False)
    assert (row["checkpoint"], row["checkpointSubSequenceNumber"]) == ({"S": LATER}, number(3))
    assert row["childShardIds"] == {"SS": sorted(CHILDREN)}
    assert await hand_over.next.discover() == [KEY]
    assert await hand_over.next.renew(KEY)


@pytest.mark.parametrize("is_seen", [True, False])
async def test_lease_that_a_kcl_3_leader_assigned_is_lost_whatever_we_knew(
    shared: Shared,
    hand_over: HandOver,
    is_seen: bool,  # noqa: FBT001  # a column of the table
) -> None:
    lease: Lease | None = hand_over.lease
    if is_seen:
        lease = await shared.table.renew(hand_over.lease, OURS)
    assert lease is not None
    await hand_over.leader.assign(await shared.read_row(), hand_over.next.me)
    await hand_over.next.discover()
    await hand_over.next.checkpoint(KEY, LATER)
    row = await shared.read_row()
    renewed = [await shared.table.renew(lease, OURS, position) for position in (None, Position(int(AT), 5), SHARD_END)]
    released = await shared.table.release(lease, OURS, SHARD_END)
    await shared.table.write_children(lease, OURS, CHILDREN)

    assert (renewed, released) == ([None] * 3, False)
    assert await shared.read_row() == row
    assert await hand_over.next.renew(KEY)


async def test_lease_has_one_owner_when_both_kinds_try_at_once(shared: Shared) -> None:
    await shared.kcl.create(reference_row(KEY, AT))
    peers = [shared.peer(f"kcl-{count}:uuid") for count in range(4)]
    for turn in range(20):
        row, lease = await shared.read_row(), await shared.read_lease()
        async with asyncio.TaskGroup() as tasks:
            by_peers = [tasks.create_task(peer.take(row)) for peer in peers]
            by_ours = [tasks.create_task(shared.table.take(lease, f"host:{count}:{turn}")) for count in range(4)]
        winners = [one.result() for one in by_peers].count(True) + sum(one.result() is not None for one in by_ours)

        assert winners == 1
        assert (await shared.read_lease()).counter == turn + 1
