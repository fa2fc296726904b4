"""The failure table of the architecture, with the real thing failing: a worker process, and the world around it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiohttp import web
from support.citrus.lying_citrus import Lie
from support.full_stack import Chain, FullStack, make_item, make_record, partition_key
from support.network.fault_proxy import FaultProxy, http_answer

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(6)]
BYSTANDER_S = 5.0  # for what has nothing to do with the trouble, and is put while it lasts
RECOVERY_S = 15.0  # backing off takes up to 5 s, and two tries may be needed
FROZEN_S = 8.0
LOCKED_S = 6.5  # longer than a batch waits for a lock
LOST_RACES = "simplu_shard_errors_total"

Trouble = Callable[[PostgresServer], AbstractAsyncContextManager[None]]
CitrusTrouble = Callable[[FullStack], AbstractAsyncContextManager[None]]
LineTrouble = Callable[[FaultProxy], AbstractAsyncContextManager[None]]
LetterTrouble = Callable[[FullStack], AbstractAsyncContextManager[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full_stack() -> AsyncIterator[FullStack]:
    """Give the stack and the worker of this module."""
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
    """Stop the server for FROZEN_S at least: it neither answers nor refuses."""
    server.suspend()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(FROZEN_S))
            yield
    finally:
        server.resume()


@asynccontextmanager
async def read_only(server: PostgresServer) -> AsyncIterator[None]:
    """Have the server refuse every write, as a primary does that became a replica."""
    connection = await asyncpg.connect(server.url)
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await connection.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()


@asynccontextmanager
async def full(server: PostgresServer) -> AsyncIterator[None]:
    """Take all connections that the server allows, those of the worker too."""
    async with AsyncExitStack() as hogs:

        async def connect() -> asyncpg.Connection[Any]:
            hog = await asyncpg.connect(server.url, server_settings={"application_name": "hog"})
            hogs.callback(hog.terminate)
            return hog

        first = await connect()
        others = "SELECT pid FROM pg_stat_activity WHERE datname IS NOT NULL AND application_name <> 'hog'"
        # Counted, since pg_stat_activity does not list a connection that is being made.
        left = int(await first.fetchval("SHOW max_connections")) - 1
        while left:
            try:
                await connect()
                left -= 1
            except asyncpg.TooManyConnectionsError:
                await first.execute(f"SELECT pg_terminate_backend(pid) FROM ({others}) AS other")
        yield


@pytest.mark.parametrize(
    "trouble",
    [killed, frozen, read_only, full],
)
async def test_worker_holds_one_shard_and_serves_the_others_when_it_is(full_stack: FullStack, trouble: Trouble) -> None:
    """A lost shard's operations wait, in order, and are applied when it is back; nobody else waits with them."""
    victim, *others = full_stack.steady
    victims = [Chain(victim), Chain(victim)]
    bystanders = [Chain(tenant) for tenant in others]
    new = [Chain(tenant) for tenant in await full_stack.take_fresh_tenants()]  # whose shards have to be asked first
    async with trouble(full_stack.homes[victim.tenant_id]):
        await full_stack.put(*victims, *new[:1], *bystanders)
        await full_stack.wait_until_applied(*bystanders, within_s=BYSTANDER_S)
        await full_stack.put(*bystanders, *new, *victims)
        await full_stack.wait_until_applied(*bystanders, *new[1:], within_s=BYSTANDER_S)
        if trouble is not frozen:  # a server that does not even refuse is only given up after half a minute
            assert await poll_until(lambda: _is_lost(full_stack, "shard-1"), within_s=BYSTANDER_S)
        assert (await full_stack.read_readiness())[0] == 200
    await full_stack.wait_until_applied(*victims, *new, within_s=RECOVERY_S)
    assert await poll_until(lambda: _is_well(full_stack, "shard-1"), within_s=BYSTANDER_S)  # the answer is kept for 1 s


async def _is_lost(full_stack: FullStack, shard_id: str) -> bool:
    return not await _is_well(full_stack, shard_id)


async def _is_well(full_stack: FullStack, shard_id: str) -> bool:
    shards = (await full_stack.read_status())["shards"]
    return bool(next(shard["healthy"] for shard in shards if shard["shardId"] == shard_id))


async def test_worker_tries_again_when_another_transaction_holds_a_resource(full_stack: FullStack) -> None:
    """A batch gives up waiting for a row's lock and is tried until it gets it; other shards do not wait."""
    victim, *others = full_stack.steady
    locked = Chain(victim)
    bystanders = [Chain(tenant) for tenant in others]
    await full_stack.put(locked)
    await full_stack.wait_until_applied(locked, within_s=BYSTANDER_S)
    races = await full_stack.read_metric(LOST_RACES, shard_id="shard-1", kind="lost_race")
    async with full_stack.connect(victim) as connection, connection.transaction():
        await connection.execute('SELECT FROM resources WHERE "resourceId" = $1 FOR UPDATE', locked.resource_id)
        await full_stack.put(locked, *bystanders)
        await full_stack.wait_until_applied(*bystanders, within_s=BYSTANDER_S)
        await asyncio.sleep(LOCKED_S)
        assert not await full_stack.is_applied(locked)
    await full_stack.wait_until_applied(locked, within_s=RECOVERY_S)
    assert await full_stack.read_metric(LOST_RACES, shard_id="shard-1", kind="lost_race") > races


async def test_worker_tries_again_when_its_batch_is_the_victim_of_a_deadlock(full_stack: FullStack) -> None:
    """The batch that Postgres ends to break a deadlock is applied all the same, and once."""
    victim = full_stack.steady[0]
    key = partition_key(0)
    chains = [Chain(victim, key=key) for _ in range(3)]
    await full_stack.put(*chains)
    await full_stack.wait_until_applied(*chains, within_s=BYSTANDER_S)
    races = await full_stack.read_metric(LOST_RACES, shard_id="shard-1", kind="lost_race")
    first, middle, last = (chain.resource_id for chain in chains)
    async with full_stack.connect(victim) as connection, connection.transaction():
        await connection.execute("SET LOCAL deadlock_timeout = '1min'")  # the other one finds the deadlock, and loses
        await connection.execute('SELECT FROM resources WHERE "resourceId" = $1 FOR UPDATE', middle)
        await full_stack.put(
            *(item for changes in zip(*(chain.next_items() for chain in chains), strict=True) for item in changes)
        )

        async def waits_for_us() -> bool:
            return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

        assert await poll_until(waits_for_us, within_s=BYSTANDER_S)
        ids = 'SELECT "resourceId" FROM resources WHERE "resourceId" = ANY ($1) FOR UPDATE'
        free = await connection.fetchval(f"{ids} SKIP LOCKED", [first, last])
        assert free in {first, last}  # it locked the other, in whatever order it goes
        await connection.execute(ids, [first, last])  # only returns once it has given up
    await full_stack.wait_until_applied(*chains, within_s=RECOVERY_S)
    assert await full_stack.read_metric(LOST_RACES, shard_id="shard-1", kind="lost_race") > races


async def test_worker_fails_one_operation_alone_when_postgres_refuses_its_data(full_stack: FullStack) -> None:
    """Of a large batch only the operation that cannot be stored gets `invalid_data`; all others take effect."""
    tenant, run = full_stack.steady[0], Chain(full_stack.steady[0]).resource_id
    names = [f"{run}-{number}" for number in range(400)]
    data = {name: {"n": 1} for name in names} | {names[217]: {"text": "nul \0"}}
    records = [make_record(tenant, "create", name, resourceId=name, data=data[name]) for name in names]
    await full_stack.put(*(make_item(partition_key(0), record) for record in records))

    log = await full_stack.wait_for_rows(tenant, names, within_s=RECOVERY_S)
    assert {name: log[name]["error"] for name in names if log[name]["error"]} == {names[217]: "invalid_data"}
    count = 'SELECT count(*) FROM resources WHERE "resourceId" = ANY ($1)'
    assert await full_stack.fetchval(tenant, count, names) == 399


# Citrus


def html(_: web.Request) -> web.Response:
    """Answer as a proxy's page for people does."""
    return web.Response(text="<html><body>Please sign in</body></html>", content_type="text/html")


def half_an_answer(_: web.Request) -> web.Response:
    """Answer with JSON that ends in the middle."""
    return web.Response(text='{"shardId": "shard-1", "connectionSt', content_type="application/json")


def denied(_: web.Request) -> web.Response:
    """Refuse the API key."""
    return web.json_response({"error": "no"}, status=401)


def down(full_stack: FullStack) -> AbstractAsyncContextManager[None]:
    """Have nobody listen at Citrus's address."""
    return full_stack.citrus_proxy.refuse_connections()


@asynccontextmanager
async def late(full_stack: FullStack) -> AsyncIterator[None]:
    """Let Citrus take 5 s for an answer, more than CITRUS_TIMEOUT."""
    with full_stack.citrus.slow(5.0):
        yield


def lying(lie: Lie) -> CitrusTrouble:
    """Let Citrus answer so."""

    @asynccontextmanager
    async def trouble(full_stack: FullStack) -> AsyncIterator[None]:
        with full_stack.citrus.lying(lie):
            yield

    return trouble


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        pytest.param(down, 200, id="down"),
        pytest.param(late, 200, id="late"),
        pytest.param(lying(html), 200, id="html"),
        pytest.param(lying(half_an_answer), 200, id="half"),
        pytest.param(lying(denied), 503, id="denied"),
    ],
)
async def test_worker_serves_known_tenants_and_holds_new_ones_when_citrus_is(
    full_stack: FullStack, trouble: CitrusTrouble, status: int
) -> None:
    """Routes once found serve on; who has none waits, and is served when Citrus answers; only 401 is for a person."""
    known, new = [Chain(tenant) for tenant in full_stack.steady], Chain((await full_stack.take_fresh_tenants())[0])
    since = full_stack.log_end
    async with trouble(full_stack):
        await full_stack.put(new, *known)
        await full_stack.wait_until_applied(*known, within_s=BYSTANDER_S)
        held = await held_line(full_stack, new, since)
        assert held["error"] == "no answer yet" if trouble is late else "Citrus get_shard" in held["error"]
        reason = await full_stack.wait_for_readiness(status, within_s=1)
        assert ("CITRUS_API_KEY" in reason) is (status == 503)
        async with full_stack.http.get(f"{full_stack.worker.url}/readyz") as answer:
            word = {"status": "ok"} if status == 200 else {"status": "unavailable", "reason": "citrus_refuses_key"}
            assert await answer.json() == word
        assert await full_stack.is_untouched(new)
    await full_stack.wait_until_applied(new, within_s=RECOVERY_S)
    await full_stack.wait_for_readiness(200, within_s=1)


async def held_line(full_stack: FullStack, chain: Chain, since: int) -> dict[str, Any]:
    """Return the log's line about the tenant of *chain* being held."""
    business_id = chain.tenant.business_id
    return await full_stack.wait_for_log_event(
        "tenant.held", since=since, within_s=2 * BYSTANDER_S, business_id=business_id
    )


async def test_worker_asks_citrus_no_sooner_than_it_is_told_by_retry_after(full_stack: FullStack) -> None:
    """After a 429 the same question is not asked again before the time that Citrus wishes, however often it says so."""
    new = Chain((await full_stack.take_fresh_tenants())[0])
    wish_s = 1

    def busy(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": str(wish_s)})

    with full_stack.citrus.lying(busy):
        asked_before = len(full_stack.citrus.asked_at(new.tenant.tenant_id))
        await full_stack.put(new)
        await asyncio.sleep(5 * wish_s)  # more than the tries that one call makes
        asked = full_stack.citrus.asked_at(new.tenant.tenant_id)[asked_before:]
    await full_stack.wait_until_applied(new, within_s=RECOVERY_S)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(pauses) > 2  # so that one of them is between two calls
    assert [pause for pause in pauses if pause < wish_s] == []


async def test_worker_follows_the_shard_when_citrus_names_another_than_before(full_stack: FullStack) -> None:
    """The shard that has the tenant's row is followed, and what Citrus says against it is logged."""
    chain = Chain((await full_stack.take_fresh_tenants())[0])
    tenant_id = chain.tenant.tenant_id
    registry = full_stack.stack.citrus.registry
    home = registry.homes[tenant_id]
    other = next(shard for shard in registry.shards.values() if shard is not home)
    registry.place(tenant_id, other)
    since = full_stack.log_end
    await full_stack.put(chain)
    await full_stack.wait_until_applied(chain, within_s=BYSTANDER_S)
    conflict = await full_stack.wait_for_log_event("route.conflict", since=since, within_s=1)
    assert (conflict["named_shard_id"], conflict["shard_id"]) == (other.shard_id, home.shard_id)


async def test_worker_never_connects_when_the_host_of_a_shard_is_not_allowed(full_stack: FullStack) -> None:
    """A connection string to another host than DATABASE_ALLOWED_HOSTS is refused before anything is sent there."""
    known, new = [Chain(tenant) for tenant in full_stack.steady], Chain((await full_stack.take_fresh_tenants())[0])
    visits = 0

    def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    async with await asyncio.start_server(visited, "127.0.0.2", 0) as elsewhere:
        port = elsewhere.sockets[0].getsockname()[1]
        url = f"postgresql://postgres:planted@127.0.0.2:{port}/shard_1"
        answer = {"shardId": "shard-1", "connectionString": url, "isActive": True}
        since = full_stack.log_end
        with full_stack.citrus.lying(lambda request: web.json_response(answer) if "/shard/" in request.path else None):
            await full_stack.put(new, *known)
            await full_stack.wait_until_applied(*known, within_s=BYSTANDER_S)
            held = await held_line(full_stack, new, since)
        await full_stack.wait_until_applied(new, within_s=RECOVERY_S)
    assert held["error"] == "connection string of shard shard-1: host 127.0.0.2 is not in DATABASE_ALLOWED_HOSTS"
    assert visits == 0


# The sources, leases and dead letters

THROTTLED = http_answer(
    400, b'{"__type": "com.amazonaws.kinesis.v20131202#ProvisionedThroughputExceededException", "message": "later"}'
)


@asynccontextmanager
async def refused(line: FaultProxy) -> AsyncIterator[None]:
    """Cut all connections and refuse new ones for two seconds."""
    async with line.refuse_connections():
        yield
        await asyncio.sleep(2)


@asynccontextmanager
async def silent(line: FaultProxy) -> AsyncIterator[None]:
    """Swallow all requests until they are given up."""
    with line.hold_requests():
        yield
        await asyncio.sleep(7)


@asynccontextmanager
async def throttled(line: FaultProxy) -> AsyncIterator[None]:
    """Answer every request that there were too many."""
    with line.answer_all(THROTTLED):
        yield
        await asyncio.sleep(2)


@asynccontextmanager
async def cut(line: FaultProxy) -> AsyncIterator[None]:
    """Cut the connections again and again, in the middle of requests, which are made to take a while."""
    yield
    with line.add_latency(0.1):
        for _ in range(20):
            await asyncio.sleep(0.1)
            line.cut()


@pytest.mark.parametrize(
    "trouble",
    [refused, silent, throttled, cut],
)
async def test_worker_reads_on_after_its_last_record_when_kinesis_was(
    full_stack: FullStack, trouble: LineTrouble
) -> None:
    """Nothing is lost or twice, the control queue is served meanwhile, and the failed reads are counted."""
    chains = [Chain(tenant) for tenant in (*full_stack.steady, *full_stack.steady)]
    await full_stack.put(*chains)
    failed = await full_stack.read_metric("simplu_retries_total", source="kinesis", reason="read_failed")
    throttled_before = await full_stack.read_metric("simplu_kinesis_throttled_total")
    async with trouble(full_stack.kinesis_proxy):
        await full_stack.put(*chains)
        await full_stack.make_tenants(1)
    await full_stack.wait_until_applied(*chains, within_s=RECOVERY_S)
    assert await full_stack.read_metric("simplu_retries_total", source="kinesis", reason="read_failed") > failed
    assert (await full_stack.read_metric("simplu_kinesis_throttled_total") > throttled_before) is (trouble is throttled)


async def test_worker_stops_reading_until_dynamodb_is_back_when_its_leases_expire(full_stack: FullStack) -> None:
    """Who cannot renew a lease stops reading; it takes the lease and goes on when the table answers again."""
    chains = [Chain(tenant) for tenant in full_stack.steady]
    await full_stack.put(*chains)
    await full_stack.wait_until_applied(*chains, within_s=BYSTANDER_S)
    since = full_stack.log_end
    async with full_stack.dynamodb_proxy.refuse_connections():
        for stream_shard_id in ("shardId-000000000000", "shardId-000000000001"):
            await full_stack.wait_for_log_event(
                "lease.lost", since=since, within_s=BYSTANDER_S, stream_shard_id=stream_shard_id
            )
        reason = await full_stack.wait_for_readiness(503, within_s=BYSTANDER_S)
        await full_stack.put(*chains)
        await asyncio.sleep(1)
        assert [await full_stack.is_applied(chain) for chain in chains] == [False] * 3
        full_stack.worker.check_running()
    await full_stack.wait_until_applied(*chains, within_s=RECOVERY_S)
    assert "Connection refused" in reason
    assert "stream_unavailable" in reason
    await full_stack.wait_for_readiness(200, within_s=BYSTANDER_S)


async def test_worker_applies_operations_and_makes_tenants_later_when_sqs_is_down(full_stack: FullStack) -> None:
    """The stream goes on without the control queue; what was sent to that is done when it is back."""
    chains = [Chain(tenant) for tenant in full_stack.steady]
    tenants = [full_stack.new_tenant() for _ in range(3)]
    since = full_stack.log_end
    async with full_stack.sqs_proxy.refuse_connections():
        await full_stack.wait_for_log_event("queue.unreachable", since=since, within_s=BYSTANDER_S)
        await full_stack.register(tenants)
        await full_stack.put(*chains)
        await full_stack.wait_until_applied(*chains, within_s=BYSTANDER_S)
        assert (await full_stack.read_readiness())[0] == 200
    await full_stack.wait_until_provisioned(tenants, within_s=RECOVERY_S)
    await full_stack.wait_for_readiness(200, within_s=BYSTANDER_S)


@asynccontextmanager
async def deleted(full_stack: FullStack) -> AsyncIterator[None]:
    """Let there be no dead-letter queue: SQS refuses every letter."""
    url = full_stack.stack.env["SQS_DEAD_LETTER_QUEUE_URL"]
    await full_stack.sqs.delete_queue(QueueUrl=url)
    try:
        yield
    finally:
        await full_stack.sqs.create_queue(QueueName=url.rpartition("/")[2])


@asynccontextmanager
async def mute(full_stack: FullStack) -> AsyncIterator[None]:
    """Let SQS not answer to anything about the dead-letter queue."""
    with full_stack.sqs_proxy.hold_requests(about=b"/dead-letters"):
        yield


@pytest.mark.parametrize("trouble", [deleted, mute])
async def test_worker_passes_over_nothing_when_dead_letters_cannot_be_stored(
    full_stack: FullStack, trouble: LetterTrouble
) -> None:
    """The stream shard waits at the record, over a kill -9 too; other sources go on; the letter comes in the end."""
    waiting, other = (Chain(full_stack.steady[0], key=partition_key(number)) for number in (0, 1))
    async with trouble(full_stack):
        bad = make_item(waiting.key, b"not JSON")
        (position,) = await full_stack.put(bad)
        await asyncio.sleep(1)
        await full_stack.put(waiting, other)
        await full_stack.wait_until_applied(other, within_s=BYSTANDER_S)
        await full_stack.make_tenants(1)
        await asyncio.sleep(2)  # some renewals, each of which may write a checkpoint
        assert await full_stack.is_untouched(waiting)
        assert await full_stack.read_checkpoint(position[0]) < int(position[1])
        if trouble is deleted:
            full_stack.worker.kill()
            full_stack.worker.start()
            await full_stack.worker.wait_ready()
            await asyncio.sleep(1)
            assert await full_stack.read_checkpoint(position[0]) < int(position[1])
    letters = await full_stack.wait_for_dead_letters([position], within_s=2 * RECOVERY_S)
    assert [(letter.reason, letter.record) for letter in letters.values()] == [("invalid_json", b"not JSON")]
    await full_stack.wait_until_applied(waiting, within_s=RECOVERY_S)
    await full_stack.wait_for_checkpoint(position, within_s=BYSTANDER_S)


async def test_worker_lives_and_is_not_ready_when_the_stream_is_deleted(full_stack: FullStack) -> None:
    """A stream that is gone is for a person: not ready, an error in the log, and tried again for ever."""
    doomed = {"KINESIS_STREAM_NAME": "doomed", "KINESIS_APPLICATION_NAME": "doomed-leases"}
    worker = WorkerProcess(full_stack.stack.group, full_stack.worker_env | doomed, number=1)
    worker.start()
    await worker.wait_ready()  # it has made the stream
    await full_stack.kinesis.delete_stream(StreamName="doomed")
    assert "doomed" in await full_stack.wait_for_readiness(503, within_s=RECOVERY_S, worker=worker)
    await asyncio.sleep(2)
    worker.check_running()
    refused = await full_stack.read_readiness(worker)
    await worker.stop(within_s=RECOVERY_S)
    assert refused[0] == 503
    errors = [line for line in worker.log_path.read_text().splitlines() if '"level": "error"' in line]
    assert "doomed" in "".join(errors)
