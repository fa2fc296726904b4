"""Workers, Postgres servers with standbys, AWS, Citrus, a receiver of the feed, and a door for faults between any two.

The doors are proxies: what is put into the environment, and into Citrus, leads to them.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import msgspec
from acceptance.feeding import SECRET, Webhook
from acceptance.moving import start_command
from acceptance.struck_shard import Struck, left_by, request_ids
from faults.history import History, read_events, read_log, read_rows
from support.load.testbed import Testbed
from support.network.fault_proxy import FaultProxy

from simplu_local.aws_server.faults import ClearFaults
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.loopback import StackError, poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.citrus_server import CitrusFaults
from simplu_local.workload.workload import Tenant

SHARDS: Final = 2
STREAM_SHARDS: Final = 2
TENANTS_PER_SHARD: Final = 3
WORKERS: Final = 2
STOP_WITHIN_S: Final = 60.0
MOVE_WITHIN_S: Final = 120.0
ALL_MOVED_WITHIN_S: Final = 300.0
MAX_PAUSE_S: Final = "10"  # of a move: a machine that has other work takes more than half a second
SAID_LENGTH: Final = 1000
MESSAGES: Final = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
AGES: Final = re.compile(
    r"^simplu_(?:kinesis_lag|held_age|catch_up_lag|feed_lag)_seconds(?:\{[^}]*\})? (\S+)", re.MULTILINE
)
AGE_S: Final = 1.0
SAFETY_EVENT: Final = b"commit_safety.changed"
SEEN_WITHIN_S: Final = 20.0  # by the prober or by a commit that waits; a worker that starts sees nothing for seconds
ASK_EVERY_S: Final = 0.1
ASKED_RECENT: Final = 150
LIBRARIES: Final = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
PLANTED: Final = Path(__file__).with_name("planted")


class MoverEnd(Enum):
    """How a mover ended."""

    MOVED = auto()
    KILLED = auto()
    FAILED = auto()


class UnseenError(Exception):
    """A worker has not seen the standby of a shard: the standby may lack what that worker acknowledges."""


class FaultyShard(Struck):
    """A shard that Citrus names by its door, which leads to whatever server is the primary."""

    def __init__(self, testbed: Testbed, number: int) -> None:
        super().__init__(testbed, number=number)
        self.door = FaultProxy(self.primary.url)
        self.in_use = asyncio.Lock()  # by what is done to its servers
        self.is_whole = asyncio.Event()  # its standby is there: a worker that starts now sees it
        self.is_whole.set()

    def is_seen_in(self, log: bytes) -> bool:
        lines = [line for line in log.splitlines() if SAFETY_EVENT in line and self.shard_id.encode() in line]
        name = self.standby._cluster_name
        return bool(lines) and any(name in standby for standby in msgspec.json.decode(lines[-1])["standbys"])

    def _name_address(self) -> None:
        self.door.lead_to(self.primary.url)
        url = self.primary.url.replace(f":{self.primary.port}/", f":{self.door.port}/")
        self._testbed.stack.citrus.registry.shards[self.shard_id].connection_string = url


class World:
    """Everything that runs, and what the nemeses do it to; up while it is entered.

    It is there for one history after the other, each with tenants of its own.
    """

    history: History
    chance: random.Random

    def __init__(self, chance: random.Random, *, planted: str | None = None) -> None:
        self.testbed = Testbed(shards=SHARDS, stream_shards=STREAM_SHARDS, tenants_per_shard=0, replicas=0)
        self.moving = asyncio.Lock()  # one move at a time, and no commits that get lost beside its end
        self.read = chance.choice(("polling", "fan-out"))
        self.is_clock_stepped = bool(LIBRARIES) and chance.random() < 0.25
        self.unmoved: dict[str, tuple[Any, int]] = {}
        self._planted = planted
        self._receiver_seed = chance.getrandbits(16)
        self._asked: list[dict[str, Any]] = []
        self._begun_at = 0.0
        self._letter_count = 0
        self._log_sizes: list[int] = []
        self._begin_of_run = [0] * WORKERS  # in the worker's log
        self._in_use = [asyncio.Lock() for _ in range(WORKERS)]
        self._resharding, self._is_split = asyncio.Lock(), False
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self.testbed)
            self.stack = self.testbed.stack
            self.shards = [FaultyShard(self.testbed, number) for number in range(SHARDS)]
            env = self.stack.env
            self.doors = {
                "kinesis": FaultProxy(env["AWS_ENDPOINT_URL_KINESIS"]),
                "sqs": FaultProxy(env["AWS_ENDPOINT_URL_SQS"]),
                "dynamodb": FaultProxy(env["DYNAMODB_ENDPOINT"]),
                "citrus": FaultProxy(env["CITRUS_SERVER_URL"]),
            }
            self.receiver = Webhook(self.testbed, "receiver", "--seed", str(self._receiver_seed))
            receiver_url = await self.receiver.url()
            self.doors["receiver"] = FaultProxy(receiver_url)
            for door in (*self.doors.values(), *(shard.door for shard in self.shards)):
                await entered.enter_async_context(door)
            env |= {
                "AWS_ENDPOINT_URL_KINESIS": self.doors["kinesis"].url,
                "AWS_ENDPOINT_URL": self.doors["dynamodb"].url,
                "DYNAMODB_ENDPOINT": self.doors["dynamodb"].url,
                "CITRUS_SERVER_URL": self.doors["citrus"].url,
            }
            for shard in self.shards:
                await shard.prepare()
            feed = self._feed_file(self.doors["receiver"].url + urlsplit(receiver_url).path)
            for number in range(WORKERS):
                await self.testbed.start_worker(self._worker_env(number) | feed)
            self._exit = entered.pop_all()
        return self

    async def begin(self, history: History, chance: random.Random, name: str) -> None:
        self.history, self.chance = history, chance
        self.unmoved.clear()
        self._asked.clear()
        self._begun_at, self._letter_count = time.time(), len(self.testbed.dead_letters)
        self._log_sizes = [worker.log_path.stat().st_size for worker in self.workers]
        registry, homes = self.stack.citrus.registry, self.testbed.homes
        homes.clear()
        for shard_id, server in self.stack.servers.items():
            tenants = [Tenant(f"{name}-{shard_id}-{one}", "main", "dental") for one in range(TENANTS_PER_SHARD)]
            self.testbed.tenants[shard_id] = tenants
            for tenant in tenants:
                registry.place(tenant.tenant_id, registry.shards[shard_id])
                homes[tenant.tenant_id] = server.url
                history.note("placed", tenant=tenant.tenant_id, shard=shard_id)
        await self.testbed.register(self.testbed.tenants_of())

    async def ending(self) -> list[dict[str, Any]]:
        """Return what there is of the history now, in rows, events, dead letters and logs, as lines."""
        tenant_ids = self.testbed.homes.keys()
        lines = await read_rows(self.stack.servers, tenant_ids)
        lines += read_events(self.receiver.journal, tenant_ids, since=self._begun_at)
        letters = self.testbed.dead_letters[self._letter_count :]
        lines += [{"what": "dead letter", "text": repr(letter)} for letter in letters]
        for worker, offset in zip(self.workers, self._log_sizes, strict=True):
            lines += read_log(worker.log_path, offset=offset)
        return lines

    async def __aexit__(self, *_: object) -> None:
        for shard in self.shards:
            shard.primary.resume()
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
        await self._exit.aclose()

    @property
    def workers(self) -> list[WorkerProcess]:
        return self.testbed.workers

    @property
    def directory(self) -> Path:
        return self.stack.group.directory

    async def left_in_sources(self) -> str:
        """Return what was put and not read or not decided yet, for people; empty if nothing is left."""
        url = self.stack.env["SQS_ORDER_EVENTS_QUEUE_URL"]
        async with self.stack.aws_client("sqs") as sqs:
            attributes = (await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(MESSAGES)))["Attributes"]
        age_s = max([await _age_s(worker) for worker in self.workers])
        count = sum(map(int, attributes.values()))
        return f"{count} messages, and records or events of {age_s:.0f} s" if count or age_s >= AGE_S else ""

    def clock_file(self, number: int) -> Path:
        return self.directory / f"clock-{number}"

    def _worker_env(self, number: int) -> dict[str, str]:
        env = {
            "AWS_ENDPOINT_URL_SQS": self.doors["sqs"].url,
            "KINESIS_LEASE_DURATION_SECONDS": "5",
            "KINESIS_READ": self.read,
            "FEED_ALLOWED_HOSTS": "127.0.0.1",
        }
        if self._planted is not None:
            env |= {"PLANTED": self._planted, "PYTHONPATH": str(PLANTED)}
        if self.is_clock_stepped:
            self.clock_file(number).write_text("+0")
            env |= {"LD_PRELOAD": str(LIBRARIES[-1]), "FAKETIME_TIMESTAMP_FILE": str(self.clock_file(number))}
            env |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
        return env

    def _feed_file(self, receiver_url: str) -> dict[str, str]:
        secret, path = self.directory / "secret", self.directory / "feed.json"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        destination = {"name": "all", "kind": "webhook", "target": receiver_url, "allTenants": True}
        destination |= {"secretFiles": [str(secret)], "begin": "oldest"}
        path.write_bytes(msgspec.json.encode({"destinations": [destination]}))
        return {"FEED_FILE": str(path)}

    # What nemeses use

    @asynccontextmanager
    async def one_shard(self) -> AsyncIterator[FaultyShard]:
        shard = self.chance.choice(self.shards)
        async with shard.in_use:
            yield shard

    @asynccontextmanager
    async def one_worker(self) -> AsyncIterator[WorkerProcess]:
        number = self.chance.randrange(WORKERS)
        async with self._in_use[number]:
            yield self.workers[number]

    @asynccontextmanager
    async def shard_losing_standby(self) -> AsyncIterator[FaultyShard]:
        """Yield a shard whose standby may be away meanwhile, when every worker awaits it; it is there in the end.

        No worker starts meanwhile: it would not know of the standby. Raises `UnseenError`.
        """
        async with self.one_shard() as shard:
            if not await poll_until(partial(self._is_seen, shard), within_s=SEEN_WITHIN_S):
                raise UnseenError
            shard.is_whole.clear()
            try:
                yield shard
            finally:
                await shard.standby.wait_streaming()
                shard.is_whole.set()

    async def _is_seen(self, shard: FaultyShard) -> bool:
        for worker, begin in zip(self.workers, self._begin_of_run, strict=True):
            if not shard.is_seen_in(await asyncio.to_thread(_read_from, worker.log_path, begin)):
                return False
        return True

    async def start_again(self, worker: WorkerProcess) -> None:
        """Start a worker that has ended, once every shard has its standby."""
        while away := [shard for shard in self.shards if not shard.is_whole.is_set()]:
            await away[0].is_whole.wait()
        self._begin_of_run[self.workers.index(worker)] = worker.log_path.stat().st_size
        worker.start()

    async def reshard(self) -> None:
        async with self._resharding:
            self._is_split = not self._is_split
            await self.testbed.reshard(STREAM_SHARDS * (2 if self._is_split else 1))

    async def promote(self, shard: FaultyShard, *, lacking_s: float) -> int:
        """Let the standby take the primary's place, without the commits of the last *lacking_s*; 0: it has all.

        Return how many operations it lacks.
        """
        if lacking_s:
            await shard.standby.fall_behind()
            await asyncio.sleep(lacking_s)
        else:
            await shard.standby.catch_up()
        began_at = time.time()
        await shard.primary.kill()
        await shard.standby.fall_behind()
        kept = await request_ids(shard.standby.url)
        earlier, _ = await shard.promote()
        until = time.time()
        lost = sorted(await left_by(earlier) - kept)
        self.history.note("promoted", at=began_at, until=until, shard=shard.shard_id, lost=lost)
        await shard.renew(earlier)
        return len(lost)

    async def move(self, tenant: Any, number: int, *, killed_after_s: float | None = None) -> MoverEnd:
        """Run one mover; return how it ended. Unless the tenant has moved, it is moved in the end."""
        shard_id = self.shards[number].shard_id
        command = ("tenants", "move", tenant.business_id, tenant.location_id, "--to", shard_id)
        process = await start_command(self.testbed, *command, "--max-pause", MAX_PAUSE_S, "--apply", "--json")
        try:
            async with asyncio.timeout(killed_after_s or MOVE_WITHIN_S):
                output, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            output = errors = b""
        said, wrote = output.decode()[-SAID_LENGTH:], errors.decode()[-SAID_LENGTH:]
        self.history.note(
            "mover", tenant=tenant.tenant_id, shard=shard_id, status=process.returncode, said=said, errors=wrote
        )
        if process.returncode == 0 and b'"moved"' in output:
            self.unmoved.pop(tenant.tenant_id, None)
            self.testbed.homes[tenant.tenant_id] = self.shards[number].primary.url
            self.history.note("moved", tenant=tenant.tenant_id, shard=shard_id)
            return MoverEnd.MOVED
        self.unmoved[tenant.tenant_id] = (tenant, number)
        return MoverEnd.KILLED if process.returncode == -signal.SIGKILL else MoverEnd.FAILED

    def next_move(self) -> tuple[Any, int]:
        """Return a tenant and the number of another shard; first one whose mover has not come to its end."""
        for tenant, number in self.unmoved.values():
            return tenant, number
        tenant = self.chance.choice(self.testbed.tenants_of())
        home = self.testbed.homes[tenant.tenant_id]
        return tenant, next(number for number, one in enumerate(self.shards) if one.primary.url != home)

    # The end

    async def heal(self) -> None:
        self.stack.citrus.faults = CitrusFaults()
        for url in (self.stack.kinesis_url, self.stack.sqs_url):
            await send_commands(url, ClearFaults())
        for number, worker in enumerate(self.workers):
            if self.is_clock_stepped:
                self.clock_file(number).write_text("+0")
            worker.check_running()
        for worker in self.workers:
            await worker.wait_ready()

        async def all_moved() -> bool:
            for tenant, number in list(self.unmoved.values()):
                await self.move(tenant, number)
            return not self.unmoved

        if not await poll_until(all_moved, within_s=ALL_MOVED_WITHIN_S):
            raise StackError(f"moves do not come to their end: {list(self.unmoved)}")

    async def ask(self) -> None:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for worker in self.workers:
                tasks.create_task(self._ask_one(session, worker))

    async def _ask_one(self, session: aiohttp.ClientSession, worker: WorkerProcess) -> None:
        asked = self._asked
        chance = random.Random(self.chance.getrandbits(64))
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            puts = [line for line in self.history.lines if line["what"] == "put"]
            if not puts:
                continue
            # Half of the time one that was asked for before.
            put = chance.choice(asked if asked and chance.random() < 0.5 else puts[-ASKED_RECENT:])
            asked.append(put)
            del asked[:-60]
            await self._ask_for(session, worker, put)

    async def _ask_for(self, session: aiohttp.ClientSession, worker: WorkerProcess, put: dict[str, Any]) -> None:
        tenant = next(one for one in self.testbed.tenants_of() if one.tenant_id == put["tenant"])
        parameters = {"businessId": tenant.business_id, "locationId": tenant.location_id}
        url, at = f"{worker.url}/operations/{put['request']}", time.time()
        try:
            async with session.get(url, params=parameters, headers=worker.operator) as answer:
                body = await answer.json()
        except (aiohttp.ClientError, TimeoutError):
            return
        if "status" in body and not body.get("shardsWithoutAnswer"):
            members = {name: body.get(name) for name in ("status", "error", "reason", "readUpTo", "shardId")}
            members |= {"tenant": put["tenant"], "request": put["request"], "port": worker.port}
            self.history.note("answer", at=at, until=time.time(), **members)


def _read_from(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()


async def _age_s(worker: WorkerProcess) -> float:
    """Return the age of the oldest record or event that a worker has not finished; infinite without an answer."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(f"{worker.url}/metrics") as answer,
        ):
            return max(map(float, AGES.findall(await answer.text())), default=0.0)
    except (aiohttp.ClientError, TimeoutError):
        return float("inf")


async def lock_rows(url: str, query: str, *arguments: object) -> asyncpg.Connection[Any]:
    connection = await asyncpg.connect(url, timeout=10, command_timeout=10)
    await connection.execute("BEGIN")
    await connection.fetch(query, *arguments)
    return connection
