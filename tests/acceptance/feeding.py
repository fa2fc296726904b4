"""Tenants move, shards fail over and publishers are killed under load: what the feed's receivers hold in the end.

    python tests/acceptance/feeding.py [--moves 50] [--fail-overs 20] [--kill-every 10] [--seed 1]

Starts the embedded stack, two replicas of the worker with `FEED_FILE`, and receivers: a webhook for all tenants and one
for a single tenant, which fail at random (`support/feed/webhook_receiver.py`), and a stream. Creates, updates, patches
and deletes come by the stream, order events and control messages by queues. Tenants move from shard to shard at random.
A quarter of the fail-overs happen during a move, a quarter to a standby that lacks the commits of a second, for which
the publisher still waits. For the others no publisher knows of the standby, so that what it lacks was published; in
half of these the publishers are killed together with the primary: then events of before a move may come again behind
those of after it. A replica is killed with -9 every so many seconds, one after the other, and the webhook for all has
an outage in the middle.

In the end each receiver must hold exactly what the shards' logs contain: nothing missing or invented, each change under
one id, in the order of its resource, a tenant's changes on the source before those on the target. Exit status 0 only
then.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from acceptance.moving import FILL_SQL, move, run_command
from acceptance.struck_shard import Struck
from rich.console import Console
from support.feed.expected_events import Change, ShardLogs, find_differences
from support.feed.follower import Event, Follower
from support.load.console import open_console
from support.load.operation_chains import LOGGED, ChainPlan
from support.load.tenant_messages import TenantMessages
from support.load.testbed import Testbed
from support.rows import fetch, fetch_value

from simplu_local.processes.loopback import poll_until
from simplu_local.workload.producer import open_client, put_items, wait_for_stream
from simplu_local.workload.workload import Item, Tenant

SECRET: Final = "whsec_" + b64encode(bytes(range(32))).decode()
STREAM: Final = "changes"
STREAM_SHARDS: Final = 2
LACKING_S: Final = 1.0  # of commits that a standby lacks, while no tenant moves
OUTAGE_S: Final = 10.0
UPDATES_PER_S: Final = 10.0
UPDATE_CYCLE: Final = ("create", "update", "update", "delete")
EVENTS_PER_S: Final = 5.0
STARTED_WITHIN_S: Final = 60.0
APPLIED_WITHIN_S: Final = 120.0
SETTLED_S: Final = 2.0
PUBLISHED_WITHIN_S: Final = 120.0
NEWEST_SQL: Final = "SELECT coalesce(max(batch_id), 0) FROM log_batches"
PUBLISHED_SQL: Final = "SELECT max(batch_id) > $1 FROM feed_cursors"
APPLIED_SQL: Final = "SELECT count(*) FROM operations WHERE starts_with(request_id, $1) AND tenant_id = ANY($2)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--fail-overs", type=int, default=20)
    parser.add_argument("--kill-every", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--rate", type=float, default=50.0, help="operations/s of the stream")
    parser.add_argument("--hang-every", type=int, default=1000, help="of the webhooks' requests; 0: none")
    parser.add_argument("--outage", type=float, default=OUTAGE_S, metavar="SECONDS")
    parser.add_argument("--within", type=float, default=180.0, help="seconds until everything must have arrived")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the workers' logs, what arrived and what was expected")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    testbed = Testbed(shards=arguments.shards, stream_shards=2, tenants_per_shard=3, replicas=0)
    async with testbed:
        trial = Trial(testbed, arguments, open_console(piped_width=160))
        try:
            return await trial.run()
        finally:
            trial.keep_files()


class Webhook:
    """The process of a receiver, and what it accepted."""

    def __init__(self, testbed: Testbed, name: str, *options: str) -> None:
        self.name = name
        directory = testbed.stack.group.directory
        self.journal, self._log = directory / f"{name}.jsonl", directory / f"{name}.log"
        argv = [sys.executable, "-m", "support.feed.webhook_receiver", str(self.journal), SECRET, *options]
        self._process = testbed.stack.group.spawn(argv, log_path=self._log)

    async def url(self) -> str:
        async def listens() -> bool:
            return self._log.read_bytes().startswith(b"http") and self._log.read_bytes().endswith(b"\n")

        if not await poll_until(listens, within_s=STARTED_WITHIN_S):
            raise SystemExit(f"no receiver within {STARTED_WITHIN_S:g} s: {self._log.read_text()}")
        return self._log.read_text().splitlines()[0]

    def toggle_outage(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def follower(self) -> Follower:
        follower = Follower()
        for _, members in self.accepted():
            follower.take(Event.of(members))
        return follower

    def accepted(self) -> list[tuple[float, dict[str, Any]]]:
        lines = [line.split(b" ", 1) for line in self.journal.read_bytes().splitlines()]
        return [(float(moment), json.loads(event)) for moment, event in lines]


class StreamReader:
    """What arrived in the stream of a destination, by stream shard."""

    def __init__(self, kinesis: Any) -> None:
        self._kinesis = kinesis
        self._iterators: dict[str, str] = {}
        self._events: dict[str, list[Event]] = {}
        self._times: list[float] = []

    async def begin(self) -> None:
        await self._kinesis.create_stream(StreamName=STREAM, ShardCount=STREAM_SHARDS)
        await wait_for_stream(self._kinesis, STREAM)

    async def _begin_reading(self) -> None:
        for shard in (await self._kinesis.list_shards(StreamName=STREAM))["Shards"]:
            answer = await self._kinesis.get_shard_iterator(
                StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )
            self._iterators[shard["ShardId"]], self._events[shard["ShardId"]] = answer["ShardIterator"], []

    @property
    def seconds(self) -> float:
        return max(self._times, default=0.0) - min(self._times, default=0.0)

    def events(self) -> Iterator[Event]:
        return itertools.chain(*self._events.values())

    async def follower(self) -> Follower:
        if not self._iterators:  # not before: an iterator that is not used expires within five minutes
            await self._begin_reading()
        for shard in self._iterators:
            records: Sequence[Any] = ["first"]
            while records:
                answer = await self._kinesis.get_records(ShardIterator=self._iterators[shard], Limit=5000)
                self._iterators[shard], records = answer["NextShardIterator"], answer["Records"]
                self._events[shard] += [Event.of(json.loads(record["Data"])) for record in records]
                self._times += [record["ApproximateArrivalTimestamp"].timestamp() for record in records]
                await asyncio.sleep(0.25)  # a stream shard allows five reads a second
        follower = Follower()
        for event in self.events():
            follower.take(event)
        return follower


class Trial:
    """The load, what happens beside it, and the comparison."""

    def __init__(self, testbed: Testbed, arguments: argparse.Namespace, console: Console) -> None:
        self._testbed = testbed
        self._arguments = arguments
        self._console = console
        self._chance = random.Random(arguments.seed)
        self._logs = ShardLogs()
        self._struck = [Struck(testbed, number=number) for number in range(arguments.shards)]
        self._chosen = testbed.tenants_of()[0]
        options = ("--hang-every", str(arguments.hang_every), "--seed", str(arguments.seed))
        self._all = Webhook(testbed, "all", *options)
        self._one = Webhook(testbed, "one", *options)
        self._plan = ChainPlan("chain", testbed.tenants_of(), types=4, resources=2)
        self._gone_back: set[str] = set()
        self._changes: Sequence[Change] = ()
        self._stream: StreamReader | None = None
        self._moves = self._fail_overs = self._kills = 0

    async def run(self) -> int:
        """Go through moves and fail-overs under load; return the exit status."""
        testbed = self._testbed
        async with testbed.stack.aws_client("kinesis") as kinesis:
            self._stream = stream = StreamReader(kinesis)
            await stream.begin()
            env = {"FEED_FILE": await self._feed_file(), "FEED_ALLOWED_HOSTS": "127.0.0.1"}
            for shard in self._struck:
                await run_command(testbed, "shards", "upgrade", shard.shard_id, "--apply", "--json")
                await shard.prepare()
            for _ in range(2):
                await testbed.start_worker(env | {"KINESIS_LEASE_DURATION_SECONDS": "5"})
            await testbed.register(testbed.tenants_of())
            await fetch(testbed.urls[0], FILL_SQL, self._chosen.tenant_id, 1000)
            begun_at = time.monotonic()
            async with self._load():
                killing = asyncio.create_task(self._kill_in_turn())
                try:
                    await self._disturb()
                finally:
                    killing.cancel()
                await asyncio.gather(killing, return_exceptions=True)
            duration_s = time.monotonic() - begun_at
            stopped_at = time.monotonic()
            differences, followers = await self._compared(stream)
        settled_s = time.monotonic() - stopped_at
        self._console.print(
            f"{self._moves} moves, {self._fail_overs} fail-overs, {self._kills} kills of a replica in {duration_s:.0f}"
            f" s; {len(self._changes)} events; all had arrived {settled_s:.0f} s after the load"
        )
        for name, one in followers.items():
            self._console.print(describe(name, one))
        self._console.print(f"differences: {len(differences) or 'none'}")
        for difference in differences:
            self._console.print(f"  {difference}", markup=False, soft_wrap=True)
        await testbed.stop_workers()
        return 1 if differences else 0

    async def _feed_file(self) -> str:
        directory = self._testbed.stack.group.directory
        secret, path = directory / "secret", directory / "feed.json"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        webhook = {"kind": "webhook", "secretFiles": [str(secret)], "begin": "oldest"}
        destinations = [
            webhook | {"name": "all", "target": await self._all.url(), "allTenants": True},
            webhook | {"name": "one", "target": await self._one.url(), "tenants": [self._chosen.tenant_id]},
            {"name": "stream", "kind": "kinesis", "target": STREAM, "allTenants": True, "begin": "oldest"}
            | {"data": "current"},
        ]
        path.write_bytes(msgspec.json.encode({"destinations": destinations}))
        return str(path)

    @asynccontextmanager
    async def _load(self) -> AsyncIterator[None]:
        testbed = self._testbed
        flow = testbed.start_flow(self._plan, rate=self._arguments.rate)
        messages = TenantMessages(testbed.stack.env, self._chosen, rate=EVENTS_PER_S, name="filler")
        stopping = asyncio.Event()
        async with messages.sent(), asyncio.TaskGroup() as tasks, open_client("kinesis", testbed.stack.env) as kinesis:
            stream, items = testbed.stack.env["KINESIS_STREAM_NAME"], updates(testbed.tenants_of(), stopping)
            sending = tasks.create_task(put_items(kinesis, stream, items, on_put=lambda _: None, rate=UPDATES_PER_S))
            yield
            stopping.set()
            messages.stop()
            await sending
        await flow.producer.stop()

    async def _disturb(self) -> None:
        arguments, chance = self._arguments, self._chance
        kinds = itertools.cycle(("published", "published, publishers killed", "move and fail-over", "unpublished"))
        steps = list(itertools.islice(kinds, arguments.fail_overs))
        steps += ["move"] * max(arguments.moves - steps.count("move and fail-over"), 0)
        chance.shuffle(steps)
        for number, step in enumerate(steps):
            if number == len(steps) // 2 and arguments.outage:
                outage = asyncio.create_task(self._have_outage())
            begun_at = time.monotonic()
            if step.startswith("move"):
                await self._move(fails_over=step != "move")
            else:
                await self._fail_over(step)
            self._console.print(f"{number + 1} of {len(steps)}: {step}, {time.monotonic() - begun_at:.1f} s")
        if arguments.outage:
            await outage

    async def _have_outage(self) -> None:
        self._all.toggle_outage()
        await asyncio.sleep(self._arguments.outage)
        self._all.toggle_outage()

    async def _move(self, *, fails_over: bool) -> None:
        testbed, chance = self._testbed, self._chance
        tenant = chance.choice([self._chosen, *testbed.tenants_of()])
        home = testbed.homes[tenant.tenant_id]
        number = chance.choice([number for number, url in enumerate(testbed.urls) if url != home])
        await self._logs.keep(self._struck[number].shard_id, testbed.urls[number], tenant.tenant_id)
        home_number = testbed.urls.index(home)
        struck = [self._struck[number], self._struck[home_number]] if fails_over else []
        await move(testbed, tenant, number, chance if fails_over else None, struck)
        self._moves += 1
        self._fail_overs += fails_over

    async def _fail_over(self, kind: str) -> None:
        shard = self._chance.choice(self._struck)
        await shard.standby.fall_behind()
        if kind.startswith("published"):
            self._gone_back.add(shard.shard_id)
            newest = await fetch_value(shard.primary.url, NEWEST_SQL)
            self._restart_workers()  # others know of no standby

            async def is_published() -> bool:
                return bool(await fetch_value(shard.primary.url, PUBLISHED_SQL, newest))

            if not await poll_until(is_published, within_s=PUBLISHED_WITHIN_S):
                raise SystemExit(f"nothing is published within {PUBLISHED_WITHIN_S:g} s")
        await asyncio.sleep(LACKING_S)
        await shard.primary.kill()
        if kind.endswith("killed"):
            self._restart_workers()
        earlier, _ = await shard.promote()
        await shard.renew(earlier)
        self._fail_overs += 1

    def _restart_workers(self) -> None:
        for worker in self._testbed.workers:
            worker.kill()
            worker.start()
            self._kills += 1

    async def _kill_in_turn(self) -> None:
        for worker in itertools.cycle(self._testbed.workers):
            await asyncio.sleep(self._arguments.kill_every)
            worker.kill()
            worker.start()
            self._kills += 1

    async def _compared(self, stream: StreamReader) -> tuple[list[str], Mapping[str, Follower]]:
        differences: list[str] = []
        followers: dict[str, Follower] = {}
        if not await poll_until(self._is_applied, within_s=APPLIED_WITHIN_S):
            differences.append("not all operations were applied in the end")
        urls = {one.shard_id: one.primary.url for one in self._struck}

        async def are_equal() -> bool:
            nonlocal differences
            before = len(self._changes)
            self._changes = changes = await self._logs.changes(urls)
            followers.update(all=self._all.follower(), one=self._one.follower(), stream=await stream.follower())
            found = []
            for name, follower in followers.items():
                expected = [one for one in changes if name != "one" or one.tenant == self._chosen.tenant_id]
                found += find_differences(name, follower, expected, self._plan.number_of, self._gone_back)
            differences = found
            await asyncio.sleep(SETTLED_S if not found and before != len(changes) else 0)
            return not found and before == len(changes)

        await poll_until(are_equal, within_s=self._arguments.within)
        if self._testbed.dead_letters:
            differences.append(f"{len(self._testbed.dead_letters)} dead letters")
        return differences, followers

    async def _is_applied(self) -> bool:
        flow = self._testbed.flows[0]
        for url in self._testbed.urls:
            tenants = [tenant_id for tenant_id, home in self._testbed.homes.items() if home == url]
            wanted = self._plan.count_of(frozenset(tenants), flow.producer.put_count)
            if await fetch_value(url, APPLIED_SQL, f"{self._plan.name}-", tenants) != wanted:
                return False
        return True

    def keep_files(self) -> None:
        if (folder := self._arguments.keep) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in (self._all.journal, self._one.journal, *(one.log_path for one in self._testbed.workers)):
                (folder / path.name).write_bytes(path.read_bytes())
            arrived = () if self._stream is None else self._stream.events()
            (folder / "stream.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(arrived))
            (folder / "changes.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(self._changes))


def describe(name: str, follower: Follower) -> str:
    return (
        f"{name}: {follower.arrived} arrived, {follower.repeated} repeated, {len(follower.late)} late,"
        f" {len(follower.taken_back)} taken back"
    )


def updates(tenants: Sequence[Tenant], stopping: asyncio.Event) -> Iterator[Item]:
    for number in itertools.count():
        if stopping.is_set():
            return
        step, index = divmod(number, len(tenants))
        cycle, in_cycle = divmod(step, len(UPDATE_CYCLE))
        tenant, operation = tenants[index], UPDATE_CYCLE[in_cycle]
        members = {
            "operation": operation,
            "businessId": tenant.business_id,
            "locationId": tenant.location_id,
            "resourceType": "note",
            "resourceId": f"note-{cycle % 4}",
            "requestId": f"note-{number}",
            "timestamp": datetime.now(UTC).isoformat(),
            **({} if operation == "delete" else {"data": {"n": number}}),
        }
        yield Item(f"{tenant.tenant_id}-note", json.dumps(members).encode(), LOGGED)


if __name__ == "__main__":
    main()
