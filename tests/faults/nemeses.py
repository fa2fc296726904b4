"""The nemeses: each is there while it is entered. A seeded plan has them alone, in pairs and in mixtures.

A nemesis yields its `Effect`: how often it hit something, such as a connection, a call or a process. Beside others of
the same kind it may count what these hit.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import msgspec
from faults.world import STOP_WITHIN_S, FaultyShard, MoverEnd, UnseenError, World, lock_rows
from support.network.fault_proxy import FaultProxy, http_answer
from support.postgres import faults as postgres

from simplu_local.aws_server.faults import ClearFaults, Fault
from simplu_local.aws_server.server import send_commands
from simplu_local.kinesis.faults import ExpireIterators, KinesisFault
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.sqs.faults import ExpireReceipts, SqsFault
from simplu_local.sqs.server import EXPIRED_RECEIPTS


@dataclass
class Effect:
    """How often a nemesis hit something, so far."""

    count: int = 0


Nemesis = Callable[[World], AbstractAsyncContextManager[Effect]]

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
WAITERS_SQL: Final = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
WAITERS_EVERY_S: Final = 0.2
STEP_LEAST_S: Final = 2.0


@contextmanager
def _counted(count: Callable[[], int]) -> Iterator[Effect]:
    effect, before = Effect(), count()
    try:
        yield effect
    finally:
        effect.count += count() - before


# Workers


@asynccontextmanager
async def killed(world: World) -> AsyncIterator[Effect]:
    """End a worker with SIGKILL; another one takes its place."""
    async with world.one_worker() as worker:
        effect = Effect(int(worker.pid is not None))
        worker.kill()
        try:
            yield effect
        finally:
            await world.start_again(worker)


@asynccontextmanager
async def paused(world: World) -> AsyncIterator[Effect]:
    async with world.one_worker() as worker:
        worker.send_signal(signal.SIGSTOP)
        try:
            yield Effect(int(worker.pid is not None))
        finally:
            worker.send_signal(signal.SIGCONT)


@asynccontextmanager
async def terminated(world: World) -> AsyncIterator[Effect]:
    async with world.one_worker() as worker:
        effect = Effect(int(worker.pid is not None))
        await poll_until(partial(_heeds_sigterm, worker), within_s=STOP_WITHIN_S)
        await worker.stop(within_s=STOP_WITHIN_S)
        try:
            yield effect
        finally:
            await world.start_again(worker)


async def _heeds_sigterm(worker: WorkerProcess) -> bool:
    status = await asyncio.to_thread(Path(f"/proc/{worker.pid}/status").read_text)
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


# The network


def _door(world: World, name: str) -> FaultProxy:
    return world.chance.choice(world.shards).door if name == "postgres" else world.doors[name]


@asynccontextmanager
async def cut(world: World, name: str) -> AsyncIterator[Effect]:
    door = _door(world, name)

    async def keep_cutting() -> None:
        while True:
            door.cut()
            await asyncio.sleep(CUT_EVERY_S)

    with _counted(lambda: door.struck_count) as effect:
        cutting = asyncio.create_task(keep_cutting())
        try:
            yield effect
        finally:
            cutting.cancel()


@asynccontextmanager
async def refused(world: World, name: str) -> AsyncIterator[Effect]:
    door = _door(world, name)
    with _counted(lambda: door.struck_count) as effect:
        async with door.refuse_connections():
            yield effect


@asynccontextmanager
async def slow(world: World, name: str) -> AsyncIterator[Effect]:
    door = _door(world, name)
    with _counted(lambda: door.struck_count) as effect, door.add_latency(world.chance.uniform(*LATENCY_S)):
        yield effect


@asynccontextmanager
async def one_way(world: World, name: str) -> AsyncIterator[Effect]:
    """Hold back all answers; in the end they come, or never."""
    door = _door(world, name)
    with _counted(lambda: door.struck_count) as effect, door.hold_answers():
        yield effect
        if world.chance.random() < 0.5:
            door.cut()


@asynccontextmanager
async def half_answered(world: World, name: str) -> AsyncIterator[Effect]:
    door = _door(world, name)
    with _counted(lambda: door.struck_count) as effect, door.break_answers(BROKEN_SHARE, world.chance):
        yield effect


# Postgres


@asynccontextmanager
async def _struck(opening: AbstractAsyncContextManager[FaultyShard]) -> AsyncIterator[tuple[FaultyShard, Effect]]:
    async with opening as shard:
        with _counted(lambda: shard.door.asked_count) as effect:
            yield shard, effect


@asynccontextmanager
async def frozen(world: World) -> AsyncIterator[Effect]:
    async with _struck(world.one_shard()) as (shard, effect), postgres.frozen(shard.primary):
        yield effect


@asynccontextmanager
async def crashed(world: World) -> AsyncIterator[Effect]:
    async with _struck(world.shard_losing_standby()) as (shard, effect), postgres.killed(shard.primary):
        yield effect


@asynccontextmanager
async def restarted(world: World) -> AsyncIterator[Effect]:
    async with _struck(world.shard_losing_standby()) as (shard, effect):
        await shard.primary.stop()
        try:
            yield effect
        finally:
            await shard.primary.start()


@asynccontextmanager
async def read_only(world: World) -> AsyncIterator[Effect]:
    async with _struck(world.one_shard()) as (shard, effect), postgres.read_only(shard.primary):
        yield effect


@asynccontextmanager
async def full(world: World) -> AsyncIterator[Effect]:
    async with _struck(world.one_shard()) as (shard, effect), postgres.without_connections(shard.primary):
        yield effect


@asynccontextmanager
async def locked(world: World) -> AsyncIterator[Effect]:
    async with world.one_shard() as shard:
        tenants = [one.tenant_id for one in world.chance.sample(world.testbed.tenants_of(), 2)]
        query = world.chance.choice((LOCKED_SQL, LOCKED_RESOURCES_SQL))
        connection, effect = await lock_rows(shard.primary.url, query, tenants), Effect()

        async def watch() -> None:
            while True:
                effect.count += await connection.fetchval(WAITERS_SQL)
                await asyncio.sleep(WAITERS_EVERY_S)

        watching = asyncio.create_task(watch())
        try:
            yield effect
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            connection.terminate()


@asynccontextmanager
async def promoted_stale(world: World) -> AsyncIterator[Effect]:
    """Promote a standby that lacks commits; sometimes the workers are killed with the primary."""
    # Without a move: where the standby lacks the end of a move, and nobody knew of it, two shards have the tenant.
    async with world.moving, AsyncExitStack() as exit_stack:
        struck = [await exit_stack.enter_async_context(world.one_worker())] if world.chance.random() < 0.3 else []
        async with world.shard_losing_standby() as shard:
            for worker in struck:
                worker.kill()
            lost_count = await world.promote(shard, lacking_s=world.chance.uniform(*LACKING_S))
        for worker in struck:
            await world.start_again(worker)
    yield Effect(lost_count)


@asynccontextmanager
async def promoted(world: World) -> AsyncIterator[Effect]:
    async with world.moving, world.shard_losing_standby() as shard:
        await world.promote(shard, lacking_s=0.0)
    yield Effect(1)


# Citrus


@asynccontextmanager
async def citrus_wrong(world: World) -> AsyncIterator[Effect]:
    faults = world.stack.citrus.faults
    ids = [shard.shard_id for shard in world.shards]
    for tenant in world.chance.sample(world.testbed.tenants_of(), 3):
        faults.wrong_shards[tenant.tenant_id] = world.chance.choice((*ids, None))
    with _counted(lambda: faults.struck_count) as effect:
        try:
            yield effect
        finally:
            faults.wrong_shards.clear()


@asynccontextmanager
async def citrus_failing(world: World) -> AsyncIterator[Effect]:
    faults = world.stack.citrus.faults
    match world.chance.randrange(3):
        case 0:
            faults.status = world.chance.choice((500, 503, 429, 401))
        case 1:
            faults.latency_s = 3.0
        case _:
            faults.is_unreachable = True
    with _counted(lambda: faults.struck_count) as effect:
        try:
            yield effect
        finally:
            faults.status, faults.latency_s, faults.is_unreachable = None, 0.0, False


@asynccontextmanager
async def citrus_flapping(world: World) -> AsyncIterator[Effect]:
    faults = world.stack.citrus.faults

    async def flap() -> None:
        while True:
            faults.status = 503 if faults.status is None else None
            await asyncio.sleep(0.3)

    flapping = asyncio.create_task(flap())
    with _counted(lambda: faults.struck_count) as effect:
        try:
            yield effect
        finally:
            flapping.cancel()
            faults.status = None


# AWS


@asynccontextmanager
async def _commanded(url: str, *commands: msgspec.Struct) -> AsyncIterator[Effect]:
    kinds = {EXPIRED_RECEIPTS} | {f"{one.kind} {one.action}" for one in commands if isinstance(one, Fault)}
    effect = Effect(-_count(await send_commands(url), kinds))
    await send_commands(url, *commands)
    try:
        yield effect
    finally:
        effect.count += _count(await send_commands(url, ClearFaults()), kinds)


def _count(state: Mapping[str, Any], kinds: AbstractSet[str]) -> int:
    return sum(count for kind, count in state["struck"].items() if kind in kinds)


@asynccontextmanager
async def kinesis_throttled(world: World) -> AsyncIterator[Effect]:
    actions = ("GetRecords", "GetShardIterator", "SubscribeToShard", "ListShards")
    faults = [KinesisFault(action=action, kind="throttle", count=MANY) for action in actions]
    async with _commanded(world.stack.kinesis_url, *faults) as effect:
        yield effect


@asynccontextmanager
async def kinesis_lying(world: World) -> AsyncIterator[Effect]:
    """Let iterators expire; then reads fail, hang, are late or empty, and pushed events come twice or never."""
    reads: Final = ("fail", "empty", "hang", "cut", "delay")
    pushes: Final = ("end", "repeat", "silent", "cut")
    faults = [
        KinesisFault(action="GetRecords", kind=world.chance.choice(reads), count=3, delay_ms=900) for _ in range(4)
    ]
    faults += [KinesisFault(action="SubscribeToShard", kind=world.chance.choice(pushes)) for _ in range(4)]
    async with _commanded(world.stack.kinesis_url, ExpireIterators(), *faults) as effect:
        yield effect


@asynccontextmanager
async def sqs_throttled(world: World) -> AsyncIterator[Effect]:
    actions = ("ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")
    faults = [SqsFault(action=action, kind="throttle", count=MANY) for action in actions]
    async with _commanded(world.stack.sqs_url, *faults) as effect:
        yield effect


@asynccontextmanager
async def sqs_lying(world: World) -> AsyncIterator[Effect]:
    """Let messages in flight come again, and deletions fail that were done, or were not."""
    expire = ExpireReceipts(queue="order-events.fifo")
    faults = [
        SqsFault(action="DeleteMessageBatch", kind=kind, count=4, entries=3, applied=world.chance.random() < 0.5)
        for kind in ("entries", "cut", "fail")
    ]
    async with _commanded(world.stack.sqs_url, expire, *faults) as effect:
        yield effect


@asynccontextmanager
async def dynamodb_throttled(world: World) -> AsyncIterator[Effect]:
    door = world.doors["dynamodb"]
    with _counted(lambda: door.struck_count) as effect, door.answer_all(THROTTLED):
        yield effect


@asynccontextmanager
async def expired(world: World) -> AsyncIterator[Effect]:
    door = world.doors[world.chance.choice(("kinesis", "sqs", "dynamodb"))]
    with _counted(lambda: door.struck_count) as effect, door.answer_all(EXPIRED):
        yield effect


@asynccontextmanager
async def resharded(world: World) -> AsyncIterator[Effect]:
    await world.reshard()
    yield Effect(1)


# Tenants, the feed, the clock


@asynccontextmanager
async def moved(world: World) -> AsyncIterator[Effect]:
    """Move a tenant; often its mover is killed."""
    effect = Effect()

    async def move() -> None:
        async with world.moving:
            tenant, number = world.next_move()
            killed_after_s = world.chance.uniform(0.7, 3.0) if world.chance.random() < 0.4 else None
            end = await world.move(tenant, number, killed_after_s=killed_after_s)
            effect.count = int(end is not MoverEnd.FAILED)

    moving = asyncio.create_task(move())
    yield effect
    await moving


@asynccontextmanager
async def moved_and_promoted(world: World) -> AsyncIterator[Effect]:
    async with world.moving, world.shard_losing_standby() as shard, asyncio.TaskGroup() as tasks:
        tenant, number = world.next_move()
        tasks.create_task(world.move(tenant, number, killed_after_s=15.0))
        await asyncio.sleep(world.chance.uniform(0.2, 1.5))
        await world.promote(shard, lacking_s=BRIEFLY_S)
    yield Effect(1)


@asynccontextmanager
async def receiver_down(world: World) -> AsyncIterator[Effect]:
    world.receiver.toggle_outage()
    with _counted(lambda: world.doors["receiver"].asked_count) as effect:
        try:
            yield effect
        finally:
            world.receiver.toggle_outage()


@asynccontextmanager
async def clock_stepped(world: World) -> AsyncIterator[Effect]:
    number, effect = world.chance.randrange(len(world.workers)), Effect()
    file = world.clock_file(number)
    file.write_text(world.chance.choice(("+30", "-30", "+3", "-3")))
    try:
        yield effect
    finally:
        effect.count = int(abs(await _clock_error_s(world.workers[number].url)) >= STEP_LEAST_S)
        file.write_text("+0")


async def _clock_error_s(url: str) -> float:
    """Return by how much a worker's clock is ahead, as its answers tell; 0 without an answer."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http, http.get(url) as answer:
            return parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()
    except (aiohttp.ClientError, TimeoutError):
        return 0.0


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
DOORS: Final = ("postgres", "kinesis", "sqs", "dynamodb", "citrus", "receiver")
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
    async def have(name: str, after_s: float, for_s: float) -> None:
        await asyncio.sleep(after_s)
        world.history.note("nemesis", name=name, phase="begins")
        effect = Effect()
        with suppress(UnseenError):
            async with WITH_CLOCKS[name](world) as effect:
                await asyncio.sleep(for_s)
        world.history.note("nemesis", name=name, phase="ended", struck=effect.count)

    await asyncio.sleep(episode.pause_s)
    async with asyncio.TaskGroup() as tasks:
        for part in episode.parts:
            tasks.create_task(have(*part))
