"""The nemeses: each is there while it is entered. A seeded plan has them alone, in pairs and in mixtures."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import msgspec
from faults.world import STOP_WITHIN_S, World, lock_rows
from support.network.fault_proxy import FaultProxy, http_answer
from support.postgres import faults as postgres

from simplu_local.aws_server.faults import ClearFaults
from simplu_local.aws_server.server import send_commands
from simplu_local.kinesis.faults import ExpireIterators, KinesisFault
from simplu_local.sqs.faults import ExpireReceipts, SqsFault

Nemesis = Callable[[World], AbstractAsyncContextManager[None]]

MANY: Final = 100_000  # calls: all until the faults are cleared
LATENCY_S: Final = (0.02, 0.3)
BROKEN_SHARE: Final = 0.1
LACKING_S: Final = (0.3, 2.0)
BRIEFLY_S: Final = 0.1  # shorter than any move
CUT_EVERY_S: Final = 0.4
THROTTLED: Final = http_answer(
    400, b'{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"slow"}'
)
EXPIRED: Final = http_answer(400, b'{"__type":"ExpiredTokenException","message":"The security token has expired"}')
LOCKED_SQL: Final = "SELECT id FROM tenants WHERE id = ANY($1) FOR UPDATE"
LOCKED_RESOURCES_SQL: Final = "SELECT id FROM resources WHERE id = ANY($1) FOR UPDATE"


# Workers


@asynccontextmanager
async def killed(world: World) -> AsyncIterator[None]:
    """End a worker with SIGKILL; another one takes its place."""
    async with world.one_worker() as worker:
        worker.kill()
        try:
            yield
        finally:
            worker.start()


@asynccontextmanager
async def paused(world: World) -> AsyncIterator[None]:
    """Stop a worker for longer than its leases, or shorter, and let it go on."""
    async with world.one_worker() as worker:
        worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            worker.send_signal(signal.SIGCONT)


@asynccontextmanager
async def terminated(world: World) -> AsyncIterator[None]:
    """End a worker with SIGTERM, which has to end with status 0."""
    async with world.one_worker() as worker:
        await worker.stop(within_s=STOP_WITHIN_S)
        try:
            yield
        finally:
            worker.start()


# The network


def _door(world: World, name: str) -> FaultProxy:
    return world.chance.choice(world.shards).door if name == "postgres" else world.doors[name]


@asynccontextmanager
async def cut(world: World, name: str) -> AsyncIterator[None]:
    """Cut all connections again and again."""
    door = _door(world, name)

    async def keep_cutting() -> None:
        while True:
            door.cut()
            await asyncio.sleep(CUT_EVERY_S)

    cutting = asyncio.create_task(keep_cutting())
    try:
        yield
    finally:
        cutting.cancel()


@asynccontextmanager
async def refused(world: World, name: str) -> AsyncIterator[None]:
    """Refuse all connections."""
    async with _door(world, name).refuse_connections():
        yield


@asynccontextmanager
async def slow(world: World, name: str) -> AsyncIterator[None]:
    """Delay all requests."""
    with _door(world, name).add_latency(world.chance.uniform(*LATENCY_S)):
        yield


@asynccontextmanager
async def one_way(world: World, name: str) -> AsyncIterator[None]:
    """Hold back all answers; in the end they come, or never."""
    door = _door(world, name)
    with door.hold_answers():
        yield
        if world.chance.random() < 0.5:
            door.cut()


@asynccontextmanager
async def half_answered(world: World, name: str) -> AsyncIterator[None]:
    """Cut connections in the middle of answers."""
    with _door(world, name).break_answers(BROKEN_SHARE, world.chance):
        yield


# Postgres


@asynccontextmanager
async def frozen(world: World) -> AsyncIterator[None]:
    """Let a server hang."""
    async with world.one_shard() as shard, postgres.frozen(shard.primary):
        yield


@asynccontextmanager
async def crashed(world: World) -> AsyncIterator[None]:
    """End a server as a crash does, and start it again."""
    async with world.one_shard() as shard, postgres.killed(shard.primary):
        yield


@asynccontextmanager
async def restarted(world: World) -> AsyncIterator[None]:
    """Stop a server in order, and start it again."""
    async with world.one_shard() as shard:
        await shard.primary.stop()
        try:
            yield
        finally:
            await shard.primary.start()


@asynccontextmanager
async def read_only(world: World) -> AsyncIterator[None]:
    """Let a server take no writes."""
    async with world.one_shard() as shard, postgres.read_only(shard.primary):
        yield


@asynccontextmanager
async def full(world: World) -> AsyncIterator[None]:
    """Take all connections of a server."""
    async with world.one_shard() as shard, postgres.without_connections(shard.primary):
        yield


@asynccontextmanager
async def locked(world: World) -> AsyncIterator[None]:
    """Lock the rows of two tenants, or of their resources."""
    async with world.one_shard() as shard:
        tenants = [one.tenant_id for one in world.chance.sample(world.testbed.tenants_of(), 2)]
        query = world.chance.choice((LOCKED_SQL, LOCKED_RESOURCES_SQL))
        connection = await lock_rows(shard.primary.url, query, tenants)
        try:
            yield
        finally:
            connection.terminate()


@asynccontextmanager
async def promoted_stale(world: World) -> AsyncIterator[None]:
    """Promote a standby that lacks commits; sometimes the workers are killed with the primary."""
    # Without a move: where the standby lacks the end of a move, and nobody knew of it, two shards have the tenant.
    async with world.moving, world.one_shard() as shard, AsyncExitStack() as workers:
        if world.chance.random() < 0.3:
            await workers.enter_async_context(killed(world))
        await world.promote(shard, lacking_s=world.chance.uniform(*LACKING_S))
    yield


@asynccontextmanager
async def promoted(world: World) -> AsyncIterator[None]:
    """Promote a standby that has everything."""
    async with world.moving, world.one_shard() as shard:
        await world.promote(shard, lacking_s=0.0)
    yield


# Citrus


@asynccontextmanager
async def citrus_wrong(world: World) -> AsyncIterator[None]:
    """Let Citrus name another shard for some tenants, or none."""
    faults = world.stack.citrus.faults
    ids = [shard.shard_id for shard in world.shards]
    for tenant in world.chance.sample(world.testbed.tenants_of(), 3):
        faults.wrong_shards[tenant.tenant_id] = world.chance.choice((*ids, None))
    try:
        yield
    finally:
        faults.wrong_shards.clear()


@asynccontextmanager
async def citrus_failing(world: World) -> AsyncIterator[None]:
    """Let Citrus answer with an error, late, or not."""
    faults = world.stack.citrus.faults
    match world.chance.randrange(3):
        case 0:
            faults.status = world.chance.choice((500, 503, 429, 401))
        case 1:
            faults.latency_s = 3.0
        case _:
            faults.is_unreachable = True
    try:
        yield
    finally:
        faults.status, faults.latency_s, faults.is_unreachable = None, 0.0, False


@asynccontextmanager
async def citrus_flapping(world: World) -> AsyncIterator[None]:
    """Let Citrus fail and answer by turns."""
    faults = world.stack.citrus.faults

    async def flap() -> None:
        while True:
            faults.status = 503 if faults.status is None else None
            await asyncio.sleep(0.3)

    flapping = asyncio.create_task(flap())
    try:
        yield
    finally:
        flapping.cancel()
        faults.status = None


# AWS


@asynccontextmanager
async def _commanded(url: str, *commands: msgspec.Struct) -> AsyncIterator[None]:
    await send_commands(url, *commands)
    try:
        yield
    finally:
        await send_commands(url, ClearFaults())


@asynccontextmanager
async def kinesis_throttled(world: World) -> AsyncIterator[None]:
    """Throttle all reads, and what describes the stream."""
    actions = ("GetRecords", "GetShardIterator", "SubscribeToShard", "ListShards")
    faults = [KinesisFault(action=action, kind="throttle", count=MANY) for action in actions]
    async with _commanded(world.stack.kinesis_url, *faults):
        yield


@asynccontextmanager
async def kinesis_lying(world: World) -> AsyncIterator[None]:
    """Let iterators expire; then reads fail, hang, are late or empty, and pushed events come twice or never."""
    reads: Final = ("fail", "empty", "hang", "cut", "delay")
    pushes: Final = ("end", "repeat", "silent", "cut")
    faults = [
        KinesisFault(action="GetRecords", kind=world.chance.choice(reads), count=3, delay_ms=900) for _ in range(4)
    ]
    faults += [KinesisFault(action="SubscribeToShard", kind=world.chance.choice(pushes)) for _ in range(4)]
    async with _commanded(world.stack.kinesis_url, ExpireIterators(), *faults):
        yield


@asynccontextmanager
async def sqs_throttled(world: World) -> AsyncIterator[None]:
    """Throttle all calls of a queue's consumer."""
    actions = ("ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")
    faults = [SqsFault(action=action, kind="throttle", count=MANY) for action in actions]
    async with _commanded(world.stack.sqs_url, *faults):
        yield


@asynccontextmanager
async def sqs_lying(world: World) -> AsyncIterator[None]:
    """Let messages in flight come again, and deletions fail that were done, or were not."""
    expire = ExpireReceipts(queue="order-events.fifo")
    faults = [
        SqsFault(action="DeleteMessageBatch", kind=kind, count=4, entries=3, applied=world.chance.random() < 0.5)
        for kind in ("entries", "cut", "fail")
    ]
    async with _commanded(world.stack.sqs_url, expire, *faults):
        yield


@asynccontextmanager
async def dynamodb_throttled(world: World) -> AsyncIterator[None]:
    """Throttle the lease table."""
    with world.doors["dynamodb"].answer_all(THROTTLED):
        yield


@asynccontextmanager
async def expired(world: World) -> AsyncIterator[None]:
    """Let the credentials be expired, for one service."""
    with world.doors[world.chance.choice(("kinesis", "sqs", "dynamodb"))].answer_all(EXPIRED):
        yield


@asynccontextmanager
async def resharded(world: World) -> AsyncIterator[None]:
    """Split the stream's shards, or merge them."""
    await world.reshard()
    yield


# Tenants, the feed, the clock


@asynccontextmanager
async def moved(world: World) -> AsyncIterator[None]:
    """Move a tenant; often its mover is killed."""

    async def move() -> None:
        async with world.moving:
            tenant, number = world.next_move()
            killed_after_s = world.chance.uniform(0.7, 3.0) if world.chance.random() < 0.4 else None
            await world.move(tenant, number, killed_after_s=killed_after_s)

    moving = asyncio.create_task(move())
    yield
    await moving


@asynccontextmanager
async def moved_and_promoted(world: World) -> AsyncIterator[None]:
    """Move a tenant, while a standby that lacks the last commits takes its primary's place."""
    async with world.moving, world.one_shard() as shard, asyncio.TaskGroup() as tasks:
        tenant, number = world.next_move()
        tasks.create_task(world.move(tenant, number, killed_after_s=15.0))
        await asyncio.sleep(world.chance.uniform(0.2, 1.5))
        await world.promote(shard, lacking_s=BRIEFLY_S)
    yield


@asynccontextmanager
async def receiver_down(world: World) -> AsyncIterator[None]:
    """Let the feed's receiver have an outage."""
    world.receiver.toggle_outage()
    try:
        yield
    finally:
        world.receiver.toggle_outage()


@asynccontextmanager
async def clock_stepped(world: World) -> AsyncIterator[None]:
    """Step the clock of a worker, to and fro."""
    file = world.clock_file(world.chance.randrange(len(world.workers)))
    file.write_text(world.chance.choice(("+30", "-30", "+3", "-3")))
    try:
        yield
    finally:
        file.write_text("+0")


PLAIN: Final[Mapping[str, Nemesis]] = {
    "kill": killed,
    "pause": paused,
    "terminate": terminated,
    "freeze postgres": frozen,
    "crash postgres": crashed,
    "restart postgres": restarted,
    "read-only postgres": read_only,
    "full postgres": full,
    "locked rows": locked,
    "promote stale": promoted_stale,
    "promote": promoted,
    "wrong citrus": citrus_wrong,
    "failing citrus": citrus_failing,
    "flapping citrus": citrus_flapping,
    "throttle kinesis": kinesis_throttled,
    "lying kinesis": kinesis_lying,
    "throttle sqs": sqs_throttled,
    "lying sqs": sqs_lying,
    "throttle dynamodb": dynamodb_throttled,
    "expired credentials": expired,
    "reshard": resharded,
    "move": moved,
    "move and promote": moved_and_promoted,
    "receiver down": receiver_down,
}
OF_DOORS: Final = {"cut": cut, "refuse": refused, "slow": slow, "one-way": one_way, "half-answered": half_answered}
DOORS: Final = ("postgres", "kinesis", "sqs", "dynamodb", "citrus")
NEMESES: Final[Mapping[str, Nemesis]] = {
    **PLAIN,
    **{f"{kind} {door}": partial(nemesis, name=door) for kind, nemesis in OF_DOORS.items() for door in DOORS},
}
# What takes longest to go wrong comes more often.
OFTEN: Final = ("move", "move", "move", "promote stale", "move and promote", "kill", "lying sqs")
WITH_CLOCKS: Final[Mapping[str, Nemesis]] = {**NEMESES, "clock": clock_stepped}


class Episode(NamedTuple):
    """Nemeses at the same time, each begun *after_s* and there for *for_s*."""

    pause_s: float
    parts: tuple[tuple[str, float, float], ...]


def plan(chance: random.Random, names: list[str]) -> Callable[[], Episode]:
    """Return what draws one episode after the other: one nemesis, two, or three to five."""
    left: list[str] = []

    def episode() -> Episode:
        count = min(chance.choice((1, 1, 2, 2, 3, 4, 5)), len(names))
        if len(left) < count:
            left[:] = chance.sample(names, len(names))
        chosen = [left.pop() for _ in range(count)]
        parts = [(name, chance.uniform(0.0, 1.5) if count > 1 else 0.0, chance.uniform(1.0, 5.0)) for name in chosen]
        return Episode(chance.uniform(0.1, 1.5), tuple(parts))

    return episode


async def run_episode(world: World, episode: Episode) -> None:
    """Have all nemeses of an episode, and note when each began and ended."""

    async def have(name: str, after_s: float, for_s: float) -> None:
        await asyncio.sleep(after_s)
        world.history.note("nemesis", name=name, phase="begins")
        async with WITH_CLOCKS[name](world):
            await asyncio.sleep(for_s)
        world.history.note("nemesis", name=name, phase="ended")

    await asyncio.sleep(episode.pause_s)
    async with asyncio.TaskGroup() as tasks:
        for part in episode.parts:
            tasks.create_task(have(*part))
