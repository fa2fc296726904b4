from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from support.citrus.cases import RoutedShards, routed_shards
from support.postgres.databases import ShardMaker, copy_shard
from support.postgres.standby_pair import Pair, eventually, restored, running_pair
from support.postgres.tenant_cases import TENANT, TENANT_WAIT, add_tenant, fetch, operation, writer_of
from support.postgres.trouble import make_touchy

from simplu_local.processes.loopback import poll_until
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.order_handler import OrderHandler, open_orders
from simplu_worker.consumers.sqs.order_messages import OrderRules
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import Operation
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import AdminAccount, ProvisionRequest, ResourceRename

pytestmark = pytest.mark.slow


SHARD_ID = "shard-1"
AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    yield from running_pair()


@pytest.fixture
async def pair(_pair: Pair) -> AsyncIterator[Pair]:
    async for pair in restored(_pair):
        yield pair


def order(business_id: str, order_id: str) -> Message:
    return Message(
        message_id=f"message-{business_id}-{order_id}",
        receipt_handle="receipt",
        body=json.dumps({"type": "CREATE", "orderId": order_id, "data": {}}),
        attributes={"BusinessId": business_id, "LocationId": "main"},
        sent_at=AT,
        receive_count=1,
        group_id=f"{business_id}-{order_id}",
        deduplication_id=f"event-{order_id}",
    )


def open_handler(gateway: ShardGateway) -> AbstractAsyncContextManager[OrderHandler]:
    return open_orders(
        gateway,
        Queue(None, "http://127.0.0.1/000000000000/orders.fifo"),
        rules=OrderRules(100_000),
        retries=RetryRules((1.0,), TENANT_WAIT),
        draw=lambda: 0.0,
    )


async def xids_of(pool: ShardPool) -> dict[str, str]:
    rows = await fetch(pool, "SELECT resource_id, xid::text FROM operations")
    return {row["resource_id"]: row["xid"] for row in rows}


@pytest.mark.slow(20)
async def test_orders_are_done_once_they_are_safe(pair: Pair, make_shard: ShardMaker) -> None:
    addresses = [await copy_shard(pair.primary, "shard-1"), await make_shard("shard-2")]
    async with routed_shards(addresses) as routed:
        pools = [routed.pools.ensure_pool(address) for address in addresses]
        for business_id, pool in zip(("ann", "bob"), pools, strict=True):
            await add_tenant(pool, (business_id, "main"))
            routed.register((business_id, "main"), pool.address.shard_id)
        async with open_handler(routed.gateway) as handler:
            assert await handler.handle([order("ann", "o1"), order("bob", "o1")]) == [Done(), Done()]
            pair.standby.suspend()
            first, elsewhere, second = order("ann", "o2"), order("bob", "o2"), order("ann", "o3")
            waiting, done = await handler.handle([first, elsewhere])
            assert (type(waiting), done) == (RetryHeld, Done())
            (waiting,) = await handler.handle([second])
            assert isinstance(waiting, RetryHeld)

            async def all_are_applied() -> bool:
                return (await xids_of(pools[0])).keys() == {"o1", "o2", "o3"}

            assert await poll_until(all_are_applied, within_s=20)
            applied = await xids_of(pools[0])
            assert isinstance((await handler.handle([first]))[0], RetryHeld)

            pair.standby.resume()
            await eventually(lambda: handler.stats()["shard-1"] == 0)
            assert await handler.handle([first, second]) == [Done(), Done()]
            assert await xids_of(pools[0]) == applied


class UnknowingGateway(ShardGateway):
    error: Exception | None = None

    async def wait_until_safe(self, shard_id: str, operations: Sequence[Operation]) -> None:
        if self.error is not None:
            raise self.error
        await super().wait_until_safe(shard_id, operations)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(RetryableError("unknown"), RetryHeld(0.5)), (ZeroDivisionError(), RetryHeld(0.5))],
    ids=["trouble", "a bug"],
)
async def test_orders_come_again_when_their_commit_may_not_be_safe(
    make_shard: ShardMaker, error: Exception, verdict: Verdict
) -> None:
    address = await make_shard()
    async with routed_shards([address]) as routed:
        pool = routed.pools.ensure_pool(address)
        await add_tenant(pool, ("ann", "main"))
        routed.register(("ann", "main"), SHARD_ID)
        gateway = UnknowingGateway(routed.directory, routed.locator, routed.pools, tenant_wait=TENANT_WAIT)
        async with open_handler(gateway) as handler:
            first, second, other = order("ann", "o1"), order("ann", "o2"), order("ann", "o3")
            second = msgspec.structs.replace(second, group_id=first.group_id)
            gateway.error = error
            assert await handler.handle([first, second, other]) == [verdict, ReturnToQueue(0), verdict]
            applied = await xids_of(pool)
            assert applied.keys() == {"o1", "o2", "o3"}
            gateway.error = None
            assert (await handler.handle([first, second, other]))[::2] == [Done()] * 2
            assert await handler.handle([second]) == [Done()]
            assert await xids_of(pool) == applied


async def test_order_is_given_up_once_its_mark_is_safe(make_shard: ShardMaker) -> None:
    address = await make_shard()
    async with routed_shards([address]) as routed:
        pool = routed.pools.ensure_pool(address)
        await add_tenant(pool, ("ann", "main"))
        routed.register(("ann", "main"), SHARD_ID)
        gateway = UnknowingGateway(routed.directory, routed.locator, routed.pools, tenant_wait=TENANT_WAIT)
        async with open_handler(gateway) as handler:
            await make_touchy(pool)
            body = json.dumps({"type": "CREATE", "orderId": "o1", "data": {"raise": "P0001"}})
            bad = msgspec.structs.replace(order("ann", "o1"), body=body)
            assert await handler.handle([bad]) == [RetryHeld(1.0)]
            (given_up,) = await handler.handle([bad])
            assert isinstance(given_up, ToDeadLetter)
            assert given_up.before_delete is not None
            gateway.error = RetryableError("unknown")
            with pytest.raises(RetryableError):
                await given_up.before_delete()
            gateway.error = None
            await given_up.before_delete()


CONTROLS = ["create", "create again", "rename", "admin", "destroy", "destroy all"]


@pytest.mark.parametrize("what", CONTROLS)
async def test_control_messages_are_done_once_they_are_safe(pair: Pair, what: str) -> None:
    address = await copy_shard(pair.primary)
    async with routed_shards([address]) as routed:
        pool = routed.pools.ensure_pool(address)
        if what != "create":
            await add_tenant(pool)
            routed.register(TENANT, SHARD_ID)
            assert isinstance(await routed.directory.find("-".join(TENANT)), ShardAddress)
            await writer_of(pool).apply([operation("create", "r1", "{}")])
        pair.standby.suspend()
        task = asyncio.ensure_future(change(routed, what))
        await eventually(
            lambda: [len(shard._waits) for part in commits_of(routed) for shard in part._shards.values()] == [1]
        )
        assert not task.done()
        pair.standby.resume()
        async with asyncio.timeout(20):
            assert await task in {"provisioned", "existed", "applied", "destroying"}


def commits_of(routed: RoutedShards) -> Iterator[ReplicationWaiter]:
    for part in (routed.provisioner, routed.changes, routed.destroyer):
        yield part._commits


async def change(routed: RoutedShards, what: str) -> str:
    match what:
        case "create" | "create again":
            return await routed.provisioner.provision(ProvisionRequest(*TENANT, "dental", AT))
        case "rename":
            return await routed.changes.rename(ResourceRename(*TENANT, "patient", "r1", "r2", None, AT))
        case "admin":
            return await routed.changes.add_admin(AdminAccount(*TENANT, "dental", "ann@clinic.example", "u1", AT))
        case "destroy":
            return await routed.destroyer.destroy(*TENANT, AT + timedelta(days=1))
        case _:
            (result,) = (await routed.destroyer.destroy_all(TENANT[0], AT + timedelta(days=1))).values()
            return result
