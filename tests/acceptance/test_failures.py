"""The failure table of the architecture, with the real thing failing: a worker process, and the world around it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiohttp import web
from support.citrus.lying_citrus import Lie
from support.full_stack import Chain, Scene, item_of, partition_key, record_of
from support.network.fault_proxy import FaultProxy, http_answer

from simplu_worker.local.postgres.server import PostgresServer
from simplu_worker.local.processes.loopback import until
from simplu_worker.local.processes.worker_process import WorkerProcess

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]  # together they take over a minute
BYSTANDER_S = 5.0  # for what has nothing to do with the trouble, and is put while it lasts
RECOVERY_S = 15.0  # backing off takes up to 5 s, and two tries may be needed
FROZEN_S = 8.0
LOCKED_S = 6.5  # longer than a batch waits for a lock
LOST_RACES = "simplu_shard_errors_total"

Trouble = Callable[[PostgresServer], AbstractAsyncContextManager[None]]
CitrusTrouble = Callable[[Scene], AbstractAsyncContextManager[None]]
LineTrouble = Callable[[FaultProxy], AbstractAsyncContextManager[None]]
LetterTrouble = Callable[[Scene], AbstractAsyncContextManager[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Give the stack and the worker of this module."""
    async with Scene() as opened:
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
        while True:
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    await connect()
            if not await first.fetch(others):
                break
            await first.execute(f"SELECT pg_terminate_backend(pid) FROM ({others}) AS other")
        yield


@pytest.mark.parametrize(
    "trouble",
    [killed, frozen, read_only, full],
)
async def test_worker_holds_one_shard_and_serves_the_others_when_it_is(scene: Scene, trouble: Trouble) -> None:
    """A lost shard's operations wait, in order, and are applied when it is back; nobody else waits with them."""
    victim, *others = scene.steady
    victims = [Chain(victim), Chain(victim)]
    bystanders = [Chain(tenant) for tenant in others]
    new = [Chain(tenant) for tenant in await scene.fresh_tenants()]  # whose shards have to be asked first
    async with trouble(scene.homes[victim.tenant_id]):
        await scene.put(*victims, *new[:1], *bystanders)
        await scene.settled(*bystanders, within_s=BYSTANDER_S)
        await scene.put(*bystanders, *new, *victims)
        await scene.settled(*bystanders, *new[1:], within_s=BYSTANDER_S)
        if trouble is not frozen:  # a server that does not even refuse is only given up after half a minute
            assert await until(lambda: _is_lost(scene, "shard-1"), within_s=BYSTANDER_S)
        assert (await scene.readiness())[0] == 200
    await scene.settled(*victims, *new, within_s=RECOVERY_S)
    assert not await _is_lost(scene, "shard-1")


async def _is_lost(scene: Scene, shard_id: str) -> bool:
    shards = (await scene.status())["shards"]
    return not next(shard["healthy"] for shard in shards if shard["shardId"] == shard_id)


async def test_worker_tries_again_when_another_transaction_holds_a_resource(scene: Scene) -> None:
    """A batch gives up waiting for a row's lock and is tried until it gets it; other shards do not wait."""
    victim, *others = scene.steady
    locked = Chain(victim)
    bystanders = [Chain(tenant) for tenant in others]
    await scene.put(locked)
    await scene.settled(locked, within_s=BYSTANDER_S)
    races = await scene.metric(LOST_RACES, shard_id="shard-1", kind="lost_race")
    async with scene.connected(victim) as connection, connection.transaction():
        await connection.execute('SELECT FROM resources WHERE "resourceId" = $1 FOR UPDATE', locked.resource_id)
        await scene.put(locked, *bystanders)
        await scene.settled(*bystanders, within_s=BYSTANDER_S)
        await asyncio.sleep(LOCKED_S)
        assert not await scene.is_settled(locked)
    await scene.settled(locked, within_s=RECOVERY_S)
    assert await scene.metric(LOST_RACES, shard_id="shard-1", kind="lost_race") > races


async def test_worker_tries_again_when_its_batch_is_the_victim_of_a_deadlock(scene: Scene) -> None:
    """The batch that Postgres ends to break a deadlock is applied all the same, and once."""
    victim = scene.steady[0]
    key = partition_key(0)
    chains = [Chain(victim, key=key) for _ in range(3)]
    await scene.put(*chains)
    await scene.settled(*chains, within_s=BYSTANDER_S)
    races = await scene.metric(LOST_RACES, shard_id="shard-1", kind="lost_race")
    first, middle, last = (chain.resource_id for chain in chains)
    async with scene.connected(victim) as connection, connection.transaction():
        await connection.execute("SET LOCAL deadlock_timeout = '1min'")  # the other one finds the deadlock, and loses
        await connection.execute('SELECT FROM resources WHERE "resourceId" = $1 FOR UPDATE', middle)
        await scene.put(
            *(item for changes in zip(*(chain.next() for chain in chains), strict=True) for item in changes)
        )

        async def waits_for_us() -> bool:
            return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))

        assert await until(waits_for_us, within_s=BYSTANDER_S)
        ids = 'SELECT "resourceId" FROM resources WHERE "resourceId" = ANY ($1) FOR UPDATE'
        free = await connection.fetchval(f"{ids} SKIP LOCKED", [first, last])
        assert free in {first, last}  # it locked the other, in whatever order it goes
        await connection.execute(ids, [first, last])  # only returns once it has given up
    await scene.settled(*chains, within_s=RECOVERY_S)
    assert await scene.metric(LOST_RACES, shard_id="shard-1", kind="lost_race") > races


async def test_worker_fails_one_operation_alone_when_postgres_refuses_its_data(scene: Scene) -> None:
    """Of a large batch only the operation that cannot be stored gets `invalid_data`; all others take effect."""
    tenant, run = scene.steady[0], Chain(scene.steady[0]).resource_id
    names = [f"{run}-{number}" for number in range(400)]
    data = {name: {"n": 1} for name in names} | {names[217]: {"text": "nul \0"}}
    records = [record_of(tenant, "create", name, resourceId=name, data=data[name]) for name in names]
    await scene.put(*(item_of(partition_key(0), record) for record in records))

    log = await scene.logged_all(tenant, names, within_s=RECOVERY_S)
    assert {name: log[name]["error"] for name in names if log[name]["error"]} == {names[217]: "invalid_data"}
    count = 'SELECT count(*) FROM resources WHERE "resourceId" = ANY ($1)'
    assert await scene.fetchval(tenant, count, names) == 399


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


def down(scene: Scene) -> AbstractAsyncContextManager[None]:
    """Have nobody listen at Citrus's address."""
    return scene.citrus_line.refusing()


@asynccontextmanager
async def late(scene: Scene) -> AsyncIterator[None]:
    """Let Citrus take 5 s for an answer, more than CITRUS_TIMEOUT."""
    with scene.citrus.slow(5.0):
        yield


def lying(lie: Lie) -> CitrusTrouble:
    """Let Citrus answer so."""

    @asynccontextmanager
    async def trouble(scene: Scene) -> AsyncIterator[None]:
        with scene.citrus.lying(lie):
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
    scene: Scene, trouble: CitrusTrouble, status: int
) -> None:
    """Routes once found serve on; who has none waits, and is served when Citrus answers; only 401 is for a person."""
    known, new = [Chain(tenant) for tenant in scene.steady], Chain((await scene.fresh_tenants())[0])
    since = scene.log_end
    async with trouble(scene):
        await scene.put(new, *known)
        await scene.settled(*known, within_s=BYSTANDER_S)
        held = await held_line(scene, new, since)
        assert held["error"] == "no answer yet" if trouble is late else "Citrus get_shard" in held["error"]
        reason = await scene.becomes_ready(status, within_s=1)
        assert ("CITRUS_API_KEY" in reason) is (status == 503)
        assert await scene.untouched(new)
    await scene.settled(new, within_s=RECOVERY_S)
    await scene.becomes_ready(200, within_s=1)


async def held_line(scene: Scene, chain: Chain, since: int) -> dict[str, Any]:
    """Return the log's line about the tenant of *chain* being held."""
    business_id = chain.tenant.business_id
    return await scene.logged("tenant.held", since=since, within_s=2 * BYSTANDER_S, business_id=business_id)


async def test_worker_asks_citrus_no_sooner_than_it_is_told_by_retry_after(scene: Scene) -> None:
    """After a 429 the same question is not asked again before the time that Citrus wishes, however often it says so."""
    new = Chain((await scene.fresh_tenants())[0])
    wish_s = 1

    def busy(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": str(wish_s)})

    with scene.citrus.lying(busy):
        asked_before = len(scene.citrus.asked_at(new.tenant.tenant_id))
        await scene.put(new)
        await asyncio.sleep(5 * wish_s)  # more than the tries that one call makes
        asked = scene.citrus.asked_at(new.tenant.tenant_id)[asked_before:]
    await scene.settled(new, within_s=RECOVERY_S)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(pauses) > 2  # so that one of them is between two calls
    assert [pause for pause in pauses if pause < wish_s] == []


async def test_worker_follows_the_shard_when_citrus_names_another_than_before(scene: Scene) -> None:
    """The shard that has the tenant's row is followed, and what Citrus says against it is logged."""
    chain = Chain((await scene.fresh_tenants())[0])
    tenant_id = chain.tenant.tenant_id
    registry = scene.stack.citrus.registry
    home = registry.homes[tenant_id]
    other = next(shard for shard in registry.shards.values() if shard is not home)
    registry.place(tenant_id, other)
    since = scene.log_end
    await scene.put(chain)
    await scene.settled(chain, within_s=BYSTANDER_S)
    conflict = await scene.logged("route.conflict", since=since, within_s=1)
    assert (conflict["named_shard_id"], conflict["shard_id"]) == (other.shard_id, home.shard_id)


async def test_worker_never_connects_when_the_host_of_a_shard_is_not_allowed(scene: Scene) -> None:
    """A connection string to another host than DATABASE_ALLOWED_HOSTS is refused before anything is sent there."""
    known, new = [Chain(tenant) for tenant in scene.steady], Chain((await scene.fresh_tenants())[0])
    visits = 0

    def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    async with await asyncio.start_server(visited, "127.0.0.2", 0) as elsewhere:
        port = elsewhere.sockets[0].getsockname()[1]
        url = f"postgresql://postgres:planted@127.0.0.2:{port}/shard_1"
        answer = {"shardId": "shard-1", "connectionString": url, "isActive": True}
        since = scene.log_end
        with scene.citrus.lying(lambda request: web.json_response(answer) if "/shard/" in request.path else None):
            await scene.put(new, *known)
            await scene.settled(*known, within_s=BYSTANDER_S)
            held = await held_line(scene, new, since)
        await scene.settled(new, within_s=RECOVERY_S)
    assert held["error"] == "connection string of shard shard-1: host 127.0.0.2 is not in DATABASE_ALLOWED_HOSTS"
    assert visits == 0


# The sources, leases and dead letters

THROTTLED = http_answer(
    400, b'{"__type": "com.amazonaws.kinesis.v20131202#ProvisionedThroughputExceededException", "message": "later"}'
)


@asynccontextmanager
async def refused(line: FaultProxy) -> AsyncIterator[None]:
    """Cut all connections and refuse new ones for two seconds."""
    async with line.refusing():
        yield
        await asyncio.sleep(2)


@asynccontextmanager
async def silent(line: FaultProxy) -> AsyncIterator[None]:
    """Swallow all requests until they are given up."""
    with line.silent():
        yield
        await asyncio.sleep(7)


@asynccontextmanager
async def throttled(line: FaultProxy) -> AsyncIterator[None]:
    """Answer every request that there were too many."""
    with line.answering(THROTTLED):
        yield
        await asyncio.sleep(2)


@asynccontextmanager
async def cut(line: FaultProxy) -> AsyncIterator[None]:
    """Cut the connections again and again, in the middle of requests, which are made to take a while."""
    yield
    with line.slow(0.1):
        for _ in range(20):
            await asyncio.sleep(0.1)
            line.cut()


@pytest.mark.parametrize(
    "trouble",
    [refused, silent, throttled, cut],
)
async def test_worker_reads_on_after_its_last_record_when_kinesis_was(scene: Scene, trouble: LineTrouble) -> None:
    """Nothing is lost or twice, the control queue is served meanwhile, and the failed reads are counted."""
    chains = [Chain(tenant) for tenant in (*scene.steady, *scene.steady)]
    await scene.put(*chains)
    failed = await scene.metric("simplu_retries_total", source="kinesis", reason="read_failed")
    throttled_before = await scene.metric("simplu_kinesis_throttled_total")
    async with trouble(scene.kinesis_line):
        await scene.put(*chains)
        await scene.make_tenants(1)
    await scene.settled(*chains, within_s=RECOVERY_S)
    assert await scene.metric("simplu_retries_total", source="kinesis", reason="read_failed") > failed
    assert (await scene.metric("simplu_kinesis_throttled_total") > throttled_before) is (trouble is throttled)


async def test_worker_stops_reading_until_dynamodb_is_back_when_its_leases_expire(scene: Scene) -> None:
    """Who cannot renew a lease stops reading; it takes the lease and goes on when the table answers again."""
    chains = [Chain(tenant) for tenant in scene.steady]
    await scene.put(*chains)
    await scene.settled(*chains, within_s=BYSTANDER_S)
    since = scene.log_end
    async with scene.dynamodb_line.refusing():
        for stream_shard_id in ("shardId-000000000000", "shardId-000000000001"):
            await scene.logged("lease.lost", since=since, within_s=BYSTANDER_S, stream_shard_id=stream_shard_id)
        reason = await scene.becomes_ready(503, within_s=BYSTANDER_S)
        await scene.put(*chains)
        await asyncio.sleep(1)
        assert [await scene.is_settled(chain) for chain in chains] == [False] * 3
        scene.worker.check_running()
    await scene.settled(*chains, within_s=RECOVERY_S)
    assert "EndpointConnectionError" in reason
    await scene.becomes_ready(200, within_s=BYSTANDER_S)


async def test_worker_applies_operations_and_makes_tenants_later_when_sqs_is_down(scene: Scene) -> None:
    """The stream goes on without the control queue; what was sent to that is done when it is back."""
    chains = [Chain(tenant) for tenant in scene.steady]
    tenants = [scene.new_tenant() for _ in range(3)]
    since = scene.log_end
    async with scene.sqs_line.refusing():
        await scene.logged("queue.unreachable", since=since, within_s=BYSTANDER_S)
        await scene.register(tenants)
        await scene.put(*chains)
        await scene.settled(*chains, within_s=BYSTANDER_S)
        assert (await scene.readiness())[0] == 200
    await scene.provisioned(tenants, within_s=RECOVERY_S)
    await scene.becomes_ready(200, within_s=BYSTANDER_S)


@asynccontextmanager
async def deleted(scene: Scene) -> AsyncIterator[None]:
    """Let there be no dead-letter queue: SQS refuses every letter."""
    url = scene.stack.env["SQS_DEAD_LETTER_QUEUE_URL"]
    await scene.sqs.delete_queue(QueueUrl=url)
    try:
        yield
    finally:
        await scene.sqs.create_queue(QueueName=url.rpartition("/")[2])


@asynccontextmanager
async def mute(scene: Scene) -> AsyncIterator[None]:
    """Let SQS not answer to anything about the dead-letter queue."""
    with scene.sqs_line.silent(about=b"/dead-letters"):
        yield


@pytest.mark.parametrize("trouble", [deleted, mute])
async def test_worker_passes_over_nothing_when_dead_letters_cannot_be_stored(
    scene: Scene, trouble: LetterTrouble
) -> None:
    """The stream shard waits at the record, over a kill -9 too; other sources go on; the letter comes in the end."""
    waiting, other = (Chain(scene.steady[0], key=partition_key(number)) for number in (0, 1))
    async with trouble(scene):
        bad = item_of(waiting.key, b"not JSON")
        (position,) = await scene.put(bad)
        await asyncio.sleep(1)
        await scene.put(waiting, other)
        await scene.settled(other, within_s=BYSTANDER_S)
        await scene.make_tenants(1)
        await asyncio.sleep(2)  # some renewals, each of which may write a checkpoint
        assert await scene.untouched(waiting)
        assert await scene.checkpoint(position[0]) < int(position[1])
        if trouble is deleted:
            scene.worker.kill()
            scene.worker.start()
            await scene.worker.wait_ready()
            await asyncio.sleep(1)
            assert await scene.checkpoint(position[0]) < int(position[1])
    letters = await scene.letters_of([position], within_s=2 * RECOVERY_S)
    assert [(letter.reason, letter.record) for letter in letters.values()] == [("invalid_json", b"not JSON")]
    await scene.settled(waiting, within_s=RECOVERY_S)
    await scene.checkpoint_passes(position, within_s=BYSTANDER_S)


async def test_worker_lives_and_is_not_ready_when_the_stream_is_deleted(scene: Scene) -> None:
    """A stream that is gone is for a person: not ready, an error in the log, and tried again for ever."""
    doomed = {"KINESIS_STREAM_NAME": "doomed", "KINESIS_APPLICATION_NAME": "doomed-leases"}
    worker = WorkerProcess(scene.stack.group, scene.worker_env | doomed, number=1)
    worker.start()
    await worker.wait_ready()  # it has made the stream
    await scene.kinesis.delete_stream(StreamName="doomed")
    assert "doomed" in await scene.becomes_ready(503, within_s=RECOVERY_S, worker=worker)
    await asyncio.sleep(2)
    worker.check_running()
    refused = await scene.readiness(worker)
    await worker.stop(within_s=RECOVERY_S)
    assert refused[0] == 503
    errors = [line for line in worker.log_path.read_text().splitlines() if '"level": "error"' in line]
    assert "doomed" in "".join(errors)
