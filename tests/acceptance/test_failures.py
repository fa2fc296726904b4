"""The failure table of the architecture, with the real thing failing: a worker process, and the world around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from support.citrus.lying_citrus import Lie
from support.full_stack import Chain, FullStack, make_item, partition_key

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(6)]
BYSTANDER_S = 5.0  # for what has nothing to do with a shard in trouble: as long as a connection to one is tried
BYSTANDER_TIMES = 10  # as long as without trouble, on a machine where that is more
PATIENCE_S = 30.0  # for what could not be while the trouble lasts if that were in its way
RECOVERY_S = 60.0  # backing off takes up to 5 s, and two tries may be needed; the rest is for a busy machine
FROZEN_S = 8.0

Trouble = Callable[[PostgresServer], AbstractAsyncContextManager[None]]
CitrusTrouble = Callable[[FullStack], AbstractAsyncContextManager[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full_stack() -> AsyncIterator[FullStack]:
    async with FullStack() as opened:
        yield opened


# A Postgres shard


@asynccontextmanager
async def killed(server: PostgresServer) -> AsyncIterator[None]:
    """Kill the server with -9, with all its backends; start it again on the same data at the end."""
    await server.kill()
    try:
        yield
    finally:
        await server.start()


@asynccontextmanager
async def frozen(server: PostgresServer) -> AsyncIterator[None]:
    server.suspend()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(FROZEN_S))
            yield
    finally:
        server.resume()


@pytest.mark.parametrize("trouble", [killed, frozen])
async def test_worker_holds_one_shard_and_serves_the_others_when_it_is(full_stack: FullStack, trouble: Trouble) -> None:
    victim, *others = full_stack.steady
    victims = [Chain(victim), Chain(victim)]
    bystanders = [Chain(tenant) for tenant in others]
    new = [Chain(tenant) for tenant in await full_stack.take_fresh_tenants()]  # whose shards have to be asked first
    limit_s = await bystander_limit_s(full_stack)
    async with trouble(full_stack.homes[victim.tenant_id]):
        await full_stack.put(*victims, *new[:1], *bystanders)
        await full_stack.wait_until_applied(*bystanders, within_s=limit_s)
        await full_stack.put(*bystanders, *new, *victims)
        await full_stack.wait_until_applied(*bystanders, *new[1:], within_s=limit_s)
        if trouble is not frozen:  # a server that does not even refuse is only given up after half a minute
            assert await poll_until(lambda: _is_lost(full_stack, "shard-1"), within_s=PATIENCE_S)
        assert (await full_stack.read_readiness())[0] == 200
    await full_stack.wait_until_applied(*victims, *new, within_s=RECOVERY_S)
    assert await poll_until(lambda: _is_well(full_stack, "shard-1"), within_s=PATIENCE_S)  # the answer is kept for 1 s


async def bystander_limit_s(full_stack: FullStack) -> float:
    """Return how long operations may take that do not wait for trouble: on a busy machine all take longer."""
    begun = time.monotonic()
    chains = [Chain(tenant) for tenant in full_stack.steady]
    await full_stack.put(*chains)
    await full_stack.wait_until_applied(*chains, within_s=RECOVERY_S)
    return max(BYSTANDER_S, BYSTANDER_TIMES * (time.monotonic() - begun))


async def _is_lost(full_stack: FullStack, shard_id: str) -> bool:
    return not await _is_well(full_stack, shard_id)


async def _is_well(full_stack: FullStack, shard_id: str) -> bool:
    shards = (await full_stack.read_status())["shards"]
    return bool(next(shard["healthy"] for shard in shards if shard["shardId"] == shard_id))


# Citrus


def denied(_: web.Request) -> web.Response:
    return web.json_response({"error": "no"}, status=401)


def down(full_stack: FullStack) -> AbstractAsyncContextManager[None]:
    return full_stack.citrus_proxy.refuse_connections()


def lying(lie: Lie) -> CitrusTrouble:
    @asynccontextmanager
    async def trouble(full_stack: FullStack) -> AsyncIterator[None]:
        with full_stack.citrus.lying(lie):
            yield

    return trouble


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        pytest.param(down, 200, id="down"),
        pytest.param(lying(denied), 503, id="denied"),
    ],
)
async def test_known_tenants_go_on_and_new_ones_wait_when_citrus_is(
    full_stack: FullStack, trouble: CitrusTrouble, status: int
) -> None:
    known, new = [Chain(tenant) for tenant in full_stack.steady], Chain((await full_stack.take_fresh_tenants())[0])
    since = full_stack.log_end
    async with trouble(full_stack):
        await full_stack.put(new, *known)
        await full_stack.wait_until_applied(*known, within_s=PATIENCE_S)
        held = await held_line(full_stack, new, since)
        assert "Citrus get_shard" in held["error"]
        reason = await full_stack.wait_for_readiness(status, within_s=PATIENCE_S)
        assert ("CITRUS_API_KEY" in reason) is (status == 503)
        async with full_stack.http.get(f"{full_stack.worker.url}/readyz") as answer:
            word = {"status": "ok"} if status == 200 else {"status": "unavailable", "reason": "citrus_refuses_key"}
            assert await answer.json() == word
        assert await full_stack.is_untouched(new)
    await full_stack.wait_until_applied(new, within_s=RECOVERY_S)
    await full_stack.wait_for_readiness(200, within_s=PATIENCE_S)


async def held_line(full_stack: FullStack, chain: Chain, since: int) -> dict[str, Any]:
    business_id = chain.tenant.business_id
    return await full_stack.wait_for_log_event("tenant.held", since=since, within_s=PATIENCE_S, business_id=business_id)


# The sources, leases and dead letters


@asynccontextmanager
async def deleted(full_stack: FullStack) -> AsyncIterator[None]:
    url = full_stack.stack.env["SQS_DEAD_LETTER_QUEUE_URL"]
    await full_stack.sqs.delete_queue(QueueUrl=url)
    try:
        yield
    finally:
        await full_stack.sqs.create_queue(QueueName=url.rpartition("/")[2])


async def test_nothing_is_passed_over_while_letters_cannot_be_stored(full_stack: FullStack) -> None:
    waiting, other = (Chain(full_stack.steady[0], key=partition_key(number)) for number in (0, 1))
    async with deleted(full_stack):
        bad = make_item(waiting.key, b"not JSON")
        since = full_stack.log_end
        (position,) = await full_stack.put(bad)
        # What comes behind it is not in its batch.
        await full_stack.wait_for_log_event("dead_letter.deferred", since=since, within_s=PATIENCE_S)
        await full_stack.put(waiting, other)
        await full_stack.wait_until_applied(other, within_s=PATIENCE_S)
        await full_stack.make_tenants(1)
        await asyncio.sleep(2)  # some renewals, each of which may write a checkpoint
        assert await full_stack.is_untouched(waiting)
        assert await full_stack.read_checkpoint(position[0]) < int(position[1])
        full_stack.worker.kill()
        full_stack.worker.start()
        await full_stack.worker.wait_ready()
        await asyncio.sleep(1)
        assert await full_stack.read_checkpoint(position[0]) < int(position[1])
    letters = await full_stack.wait_for_dead_letters([position], within_s=RECOVERY_S)
    assert [(letter.reason, letter.record) for letter in letters.values()] == [("invalid_json", b"not JSON")]
    await full_stack.wait_until_applied(waiting, within_s=RECOVERY_S)
    await full_stack.wait_for_checkpoint(position, within_s=PATIENCE_S)
