"""A real worker of the KCL 3.5 beside ours: seen as leader before anything is taken, and handed its leases in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from support.aws.kcl3_peer import migration_row, worker_row
from support.peers.programs import KCL_3
from support.peers.shared_stream import SharedStream, read_readiness, stop_replica

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseRenewer
from simplu_worker.consumers.kinesis.leases.lease import Lease, ReplicaFigures
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAM_SHARDS = 4
OURS = "host:1:ours"
METRICS_INTERVAL_S = 5.0
LEASE_S = 5.0  # graceful: the leader waits for 30 s and this time before it takes a lease by force
HANDED_OVER_WITHIN_S = 240.0
TAKEN_WITHIN_S = 120.0
LEADS_WITHIN_S = 240.0  # the KCL looks at its own state once a minute
DEAD_WITHIN_S = 300.0  # three looks, 35 s apart, and the lease durations
FOLLOWS = {"KINESIS_KCL_FOLLOWER": "true"}
METRICS_MS = "15000"  # a worker is dead after two intervals; ours report every 10 s
STANDS_ASIDE_S = 8.0  # more than two lease durations: enough to take what is free or expired
# The tables in which a leader of the KCL 3 has its rows: of the leader, and of the workers. None: the lease table.
TABLES = {
    "in the lease table": (None, None),
    "in tables beside it": ("{table}-CoordinatorState", "{table}-WorkerMetricStats"),
}


async def create_table(stack: Stack, name: str, key: str) -> None:
    """Create a table as the KCL 3.4 has left it: where there is one, the KCL 3.5 goes on with it."""
    async with stack.aws_client("dynamodb") as dynamodb:
        await dynamodb.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
        )


async def create_leases(shared: SharedStream) -> None:
    """Have a replica create the leases and go: a KCL that finds none waits for up to 30 s before it creates them."""
    with shared.replica() as first:
        await first.wait_ready()
        await shared.wait_for_owners([STREAM_SHARDS])
        await stop_replica(first)


async def wait_until_refused(worker: WorkerProcess, *, within_s: float = TAKEN_WITHIN_S) -> None:
    """Wait until a replica is not ready, because of a leader."""

    async def is_refused() -> bool:
        status, text = await read_readiness(worker)
        return status == 503 and "kcl_assigns_leases" in text

    assert await poll_until(is_refused, within_s=within_s), log_tail(worker.log_path)


@pytest.mark.peers(30)
@pytest.mark.parametrize(
    "where", [pytest.param(where, marks=pytest.mark.nightly if TABLES[where][0] else ()) for where in TABLES]
)
async def test_leader_is_seen_before_anything_is_taken(shared: SharedStream, where: str) -> None:
    await shared.create(STREAM_SHARDS)
    await create_leases(shared)
    coordinator, metrics = (name and name.format(table=shared.table) for name in TABLES[where])
    options, variables = {}, {}
    if coordinator and metrics:
        await create_table(shared.stack, coordinator, "key")
        await create_table(shared.stack, metrics, "wid")
        options = {"coordinator_table": coordinator, "metrics_table": metrics}
        variables = {"KINESIS_COORDINATOR_TABLE": coordinator, "KINESIS_WORKER_METRICS_TABLE": metrics}
    with shared.kcl(KCL_3, "kcl", **options) as kcl:
        await shared.wait_until_read(before := await shared.put(100), kcl)
        others = {key: row["entityType"]["S"] for key, row in (await shared.rows()).items() if "entityType" in row}
        with shared.replica(**variables) as late:
            await wait_until_refused(late)
            await asyncio.sleep(STANDS_ASIDE_S)
            await shared.wait_until_read(beside := await shared.put(100), kcl)
            owners = await shared.owner_counts()
            readiness = await read_readiness(late)
            checked = shared.check(**variables)["lease table"]
            await stop_replica(late)

    assert owners == {kcl.name: STREAM_SHARDS}
    assert checked[0] == "warning"
    assert kcl.name in checked[1]
    assert kcl.request_ids == {*before, *beside}
    assert await shared.applied_ids() == set()
    assert (readiness[0], "kcl_assigns_leases" in readiness[1]) == (503, True)
    assert ("Leader" in others) == (where == "in the lease table")


@pytest.mark.peers(130)
async def test_leases_of_a_leader_that_died_are_taken(
    shared: SharedStream, record_property: Callable[[str, object], None]
) -> None:
    """Once two looks have found no sign of life, by one that stood aside and by one that followed. No record is lost.

    Ours had the leases before the KCL: what the KCL has read since is read again, because the shard's rows are behind.
    """
    await shared.create(STREAM_SHARDS)
    await create_leases(shared)
    with shared.kcl(KCL_3, "kcl", metrics_interval=METRICS_MS) as kcl:
        await shared.wait_until_read(before := await shared.put(100), kcl)
        with shared.replica() as ours, shared.replica(**FOLLOWS) as follower:
            await wait_until_refused(ours)
            await shared.wait_for_owners([2, 2], within_s=HANDED_OVER_WITHIN_S)
            kcl.kill()
            killed_at = time.monotonic()
            after = await shared.put(100)
            await shared.wait_for_owners([2, 2], within_s=DEAD_WITHIN_S, but=kcl.name)
            gap_s = time.monotonic() - killed_at
            await shared.wait_until_read(after)
            await ours.wait_ready()
            await stop_replica(ours)
            await stop_replica(follower)

    again = await shared.applied_ids() & kcl.request_ids
    record_property(
        "note", f"KCL {KCL_3.version} killed: ours take its leases {gap_s:.0f} s later, {len(again)} records twice"
    )
    assert kcl.request_ids == set(before)
    assert await shared.applied_ids() - again == set(after)


@pytest.mark.nightly
async def test_leader_is_handed_the_leases_that_it_assigns_to_itself(shared: SharedStream) -> None:
    """Two of four leases, in order: the KCL begins to read once ours has released them, and ours keep the others.

    The metrics in our name are written here: a worker without metrics gets no leases from a leader, and loses none.
    """
    await shared.create(STREAM_SHARDS)
    await create_leases(shared)
    async with shared.stack.aws_client("dynamodb") as dynamodb:
        table = LeaseTable(dynamodb, shared.table)
        handed_over: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            for lease in await table.scan():
                taken = await table.take(lease, OURS)
                assert taken is not None
                tasks.create_task(hold_until_reassigned(table, taken, handed_over))
            tasks.create_task(report_metrics(dynamodb, shared.table))
            with shared.kcl(KCL_3, "kcl", failover=str(int(LEASE_S * 1000))) as kcl:
                await kcl.wait_for(lambda worker: len(worker.noted("begins")) >= 2, within_s=HANDED_OVER_WITHIN_S)
                owners = {lease.lease_key: lease.owner for lease in await table.scan(is_consistent=True)}
                begun = kcl.noted("begins")
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    assert sorted(begun) == sorted(handed_over)
    assert {key: owner for key, owner in owners.items() if owner != OURS} == dict.fromkeys(handed_over, kcl.name)
    assert len(owners) == STREAM_SHARDS


@pytest.mark.peers(70)
async def test_follower_reads_its_share_and_hands_it_back(
    shared: SharedStream, record_property: Callable[[str, object], None]
) -> None:
    """The leader hands over half of its leases, gracefully; ours is ready, and leaves them to it at its stop.

    Not one record is lost. The KCL keeps the attributes of ours in the rows.
    """
    await shared.create(STREAM_SHARDS)
    with shared.kcl(KCL_3, "kcl", metrics_interval=METRICS_MS) as kcl:
        await shared.wait_until_read(before := await shared.put(100), kcl, within_s=LEADS_WITHIN_S)
        started_at = time.monotonic()
        with shared.replica(**FOLLOWS) as ours:
            await ours.wait_ready()
            owners = await shared.wait_for_owners([2, 2], within_s=HANDED_OVER_WITHIN_S)
            assigned_s = time.monotonic() - started_at
            await shared.wait_until_read(beside := await shared.put(100), kcl)
            by_ours = await shared.applied_ids()
            rows = await shared.rows()
            checks = shared.check(**FOLLOWS)
            readiness = await read_readiness(ours)
            stopped_at = time.monotonic()
            await stop_replica(ours)
        await shared.wait_until_read(after := await shared.put(100), kcl, within_s=HANDED_OVER_WITHIN_S)
        returned_s = time.monotonic() - stopped_at
        await shared.wait_for_owners([STREAM_SHARDS])
        left = await shared.rows()
    mine = next(owner for owner in owners if owner != kcl.name)
    twice = kcl.request_ids & by_ours
    record_property(
        "note",
        f"KCL {KCL_3.version} leads: a follower has its half {assigned_s:.0f} s after its start, the KCL has "
        f"read all again {returned_s:.0f} s after its SIGTERM; {len(twice)} of 200 records twice",
    )

    assert readiness[0] == 200
    assert mine in rows
    assert mine not in left
    assert {"leaseKey", "lut", "sts", "opr"} <= rows[mine].keys()
    assert "follows the Kinesis Client Library 3.x at " + kcl.name in checks["lease table"][1]
    assert kcl.request_ids | by_ours == {*before, *beside, *after}
    assert by_ours & set(beside)
    kept = [row for row in left.values() if "simpluMeteredBy" in row and row.get("leaseOwner") == {"S": kcl.name}]
    assert len(kept) >= STREAM_SHARDS / 2


async def hold_until_reassigned(table: LeaseTable, lease: Lease, handed_over: list[str]) -> None:
    """Renew a lease until it is to be handed over, and release it."""
    renewer = LeaseRenewer(table, lease, ReplicaFigures, me=OURS, duration_s=LEASE_S)
    async with asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(renewer.run())
        await renewer.is_reassigned.wait()
        await renewer.release(is_ended=False)
        handed_over.append(renewer.lease.lease_key)
        renewing.cancel()


async def report_metrics(dynamodb: Client, table: str) -> None:
    while True:
        await dynamodb.put_item(TableName=table, Item=worker_row(OURS, int(time.time())))
        await asyncio.sleep(METRICS_INTERVAL_S)


@pytest.mark.nightly
async def test_fleet_in_its_upgrade_shares_leases_until_it_leads(shared: SharedStream) -> None:
    """In its 2.x-compatible mode the KCL 3.5 does not begin to lead beside ours. Once it leads, ours take nothing more.

    The state is set here: the KCL's own leader sets it some time after the last worker without metrics has gone.
    """
    await shared.create(STREAM_SHARDS)
    await create_leases(shared)
    with shared.kcl(KCL_3, "kcl", version="COMPATIBLE_WITH_2X") as kcl, shared.replica() as ours:
        await ours.wait_ready()
        before = await shared.wait_for_owners([2, 2])
        await shared.wait_until_read(await shared.put(100), kcl)
        readiness = await read_readiness(ours)
        checked = shared.check()["lease table"]
        versions = [row["cv"]["S"] for row in (await shared.rows()).values() if "cv" in row]
        async with shared.stack.aws_client("dynamodb") as dynamodb:
            await dynamodb.put_item(TableName=shared.table, Item=migration_row("CLIENT_VERSION_3X_WITH_ROLLBACK"))
        await wait_until_refused(ours, within_s=LEADS_WITHIN_S)
        await asyncio.sleep(STANDS_ASIDE_S)
        beside = await shared.owner_counts()
        await shared.wait_until_read(await shared.put(100), kcl)
        await stop_replica(ours)
        await shared.wait_until_read(await shared.put(100), kcl, within_s=LEADS_WITHIN_S)
        after = await shared.owner_counts()

    assert readiness[0] == 200
    assert "does not begin to assign" in readiness[1]
    assert checked[0] == "warning"
    assert "does not begin to assign" in checked[1]
    assert versions == ["CLIENT_VERSION_UPGRADE_FROM_2X"]
    assert beside == before
    assert after == {kcl.name: STREAM_SHARDS}
