"""A real worker of the KCL 2.7 beside ours: on our Kinesis alone, taken over, handed back, and after a crash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from support.network.fault_proxy import FaultProxy
from support.peers.programs import KCL_2
from support.peers.shared_stream import SharedStream, read_duplicates, stop_replica

from simplu_local.processes.loopback import poll_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM_SHARDS = 4
KNOWN_TO_THE_KCL_2 = {
    "leaseKey",
    "leaseOwner",
    "leaseCounter",
    "ownerSwitchesSinceCheckpoint",
    "checkpoint",
    "checkpointSubSequenceNumber",
    "parentShardId",
    "childShardIds",
    "startingHashKey",
    "endingHashKey",
    "throughputKBps",  # to the KCL 3
}
OUR_OWN = {
    "entityType",
    "simpluStartedAt",
    "simpluPendingTenants",
    "simpluReadUpTo",
    "simpluReadTo",
    "simpluHeld",
    "simpluMeteredBy",
    "simpluReport",
}
FIRST_READ_S = 150.0  # a KCL that finds no leases waits for up to 30 s before it creates them
PATIENCE_S = 120.0
LONG_LEASE_S = 15  # a replica without the lease table reads on for so long


@pytest.mark.peers(60)
async def test_application_is_taken_over_and_handed_back(
    shared: SharedStream, record_property: Callable[[str, object], None]
) -> None:
    await shared.create(STREAM_SHARDS)
    with shared.kcl(KCL_2, "kcl-first") as first:
        await shared.wait_until_read(await shared.put(100), first, within_s=FIRST_READ_S)
        by_the_kcl_alone = Counter(record.request_id for record in first.records)
        with shared.replica() as one:
            await one.wait_ready()
            await shared.wait_for_owners([2, 2])
            await shared.wait_until_read(await shared.put(100), first)
            with shared.replica() as two:
                await two.wait_ready()
                await shared.wait_for_owners([1, 1, 2])
                await shared.wait_until_read(await shared.put(100), first)
                await first.stop()
                await shared.wait_until_read(ours_alone := await shared.put(100))
                await shared.wait_for_owners([2, 2])
                await shared.reshard(2 * STREAM_SHARDS)
                await shared.wait_until_read(await shared.put(100))
                with shared.kcl(KCL_2, "kcl-second") as second:
                    # The KCL counts the leases of ended stream shards, too, and takes these first.
                    await shared.wait_for_lease_of(second.name)
                    await shared.wait_until_read(await shared.put(100), second)
                    await stop_replica(one)
                    await shared.wait_until_read(await shared.put(100), second)
                    await stop_replica(two)
                    await shared.wait_for_owners([8])
                    before = second.request_ids
                    await shared.reshard(STREAM_SHARDS)
                    handed_back = await shared.put(100)
                    await shared.wait_until_read(handed_back, second)
                    rows = await shared.leases()
    by_the_kcl = first.request_ids | second.request_ids
    applied = await shared.applied_ids()
    resources = await shared.resource_counts()
    record_property("note", f"KCL {KCL_2.version} and ours: {len(by_the_kcl & applied)} of {len(shared.put_ids)} twice")

    assert by_the_kcl_alone == Counter(shared.put_ids & by_the_kcl_alone.keys())
    assert by_the_kcl | applied == shared.put_ids
    assert set(ours_alone) <= applied
    assert set(handed_back) <= second.request_ids - before - applied
    assert set(resources.values()) == {1}
    unknown = {name for row in rows.values() for name in row} - KNOWN_TO_THE_KCL_2 - OUR_OWN
    assert unknown == set()
    ended = [row for row in rows.values() if row["checkpoint"] == {"S": "SHARD_END"}]
    assert all("childShardIds" in row for row in ended)


@pytest.mark.peers(15)
async def test_records_that_both_have_read_are_applied_once(shared: SharedStream) -> None:
    await shared.create(STREAM_SHARDS)

    async def are_checkpointed() -> bool:
        rows = [row["checkpoint"]["S"] for row in (await shared.leases()).values()]
        return len(rows) == STREAM_SHARDS and all(map(str.isdecimal, rows))

    async with FaultProxy(shared.stack.env["DYNAMODB_ENDPOINT"]) as dynamodb:
        env = {"DYNAMODB_ENDPOINT": dynamodb.url, "KINESIS_LEASE_DURATION_SECONDS": str(LONG_LEASE_S)}
        with shared.replica(**env) as one:
            await one.wait_ready()
            await shared.wait_until_read(await shared.put(20))
            assert await poll_until(are_checkpointed, within_s=PATIENCE_S)
            with dynamodb.hold_requests():
                await shared.wait_until_read(doubled := await shared.put(200))
                one.kill()
                dynamodb.cut()  # nor does a checkpoint come that is on its way
    checkpoints = {key: row["checkpoint"]["S"] for key, row in (await shared.leases()).items()}
    with shared.kcl(KCL_2, "kcl", checkpoint="never") as kcl:
        await shared.wait_for_owners([STREAM_SHARDS])

        async def has_begun() -> bool:
            return len(kcl.noted("begins")) >= STREAM_SHARDS

        assert await poll_until(has_begun, within_s=PATIENCE_S)
        await kcl.wait_for(lambda worker: bool(worker.request_ids & set(doubled)), within_s=PATIENCE_S)
        begun = {key: kcl.begun_at(key)[0] for key in checkpoints}
    with shared.replica() as two:
        await two.wait_ready()
        await shared.wait_until_read(await shared.put(20))

        async def are_dropped() -> bool:
            return await read_duplicates(two) >= len(kcl.request_ids)

        is_each_dropped = await poll_until(are_dropped, within_s=PATIENCE_S)
        duplicates = await read_duplicates(two)
        await stop_replica(two)

    assert begun == checkpoints
    assert is_each_dropped, f"the KCL has read {len(kcl.request_ids)}, the log has dropped {duplicates}"
    assert await shared.applied_ids() == shared.put_ids
    assert await shared.resource_counts() == Counter(shared.put_ids)
