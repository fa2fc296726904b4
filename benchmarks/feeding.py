"""Measure what the feed costs, how late its events arrive, and how many a replica publishes.

    python -m benchmarks.feeding [--rate 1000] [--seconds 30] [--rounds 3] [--turns 5]

Puts a load on one shard and one replica, with a webhook, and measures the time from the commit to the arrival. Then the
file gets a stream as a second destination, which begins with the oldest event, so that all of them are published at
once, as fast as one replica can. The processor time is compared between two stacks at the same time, which take turns:
in one the worker has the stream as its destination, in the other none: a webhook's request for each event would take a
third of a core from what is measured. What an idle worker takes more is measured by `bench idling`. Prints medians, and
each value. Exit status 1 when a target is missed, or the receivers do not hold what the log has.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec
from acceptance.feeding import SECRET, STREAM, StreamReader, Webhook
from acceptance.moving import run_command
from support.feed.expected_events import Change, ShardLogs, find_differences
from support.feed.follower import Follower
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Flow, Testbed
from support.postgres.databases import execute
from support.rows import fetch_value

from benchmarks.targets import MISSING, PerformanceTarget, format_number
from simplu_local.processes.loopback import poll_until
from simplu_local.verify.comparison import percentile
from simplu_worker.feed.events import RENEW_S

WARM_UP_S: Final = 10.0
TURN_S: Final = 10.0
WORKER_ENV: Final = {"KINESIS_READ": "fan-out"}
ARRIVED_WITHIN_S: Final = 120.0
POSTGRES_MOST: Final = 1.15
P99_MOST_S: Final = 0.2
RATE_LEAST: Final = 5000.0
PUBLISHED_SQL: Final = "SELECT batch_id >= $2 FROM feed_cursors WHERE destination = $1"
TO_STREAM, TO_WEBHOOK = "stream", "webhook"  # names of destinations
Env: TypeAlias = dict[str, str]
Processors: TypeAlias = Mapping[str, float]  # shares of one, by program
Turns: TypeAlias = tuple[tuple[Processors, Processors], tuple[Processors, Processors]]
FIRST: Final = "commit to arrival, first event after a rest, webhook"
MEDIAN: Final = "commit to arrival, median, webhook"
P99: Final = "commit to arrival, p99, webhook"
PUBLISHER: Final = "worker, an event at that rate, with all else that it does"
RATE: Final = "events/s of one replica, stream"
WORKER: Final = "worker, an operation more, stream"
POSTGRES: Final = "Postgres, of an operation without, stream"


class Feed:
    """The file with the destinations, and their receivers."""

    def __init__(self, testbed: Testbed) -> None:
        self.webhook = Webhook(testbed, "webhook", "--faults", "0")
        self._directory = testbed.stack.group.directory
        self._secret = self._directory / "secret"
        self._secret.write_text(SECRET)
        self._secret.chmod(0o600)

    async def env(self, *names: str) -> dict[str, str]:
        """Write the file with the destinations *names*; return what tells a worker of it."""
        targets: dict[str, dict[str, object]] = {
            TO_STREAM: {"kind": "kinesis", "target": STREAM},
            TO_WEBHOOK: {"kind": "webhook", "target": await self.webhook.url(), "secretFiles": [str(self._secret)]},
        }
        usual = {"allTenants": True, "begin": "oldest"}
        path = self._directory / "feed.json"
        path.write_bytes(
            msgspec.json.encode({"destinations": [usual | targets[name] | {"name": name} for name in names]})
        )
        return {"FEED_FILE": str(path), "FEED_ALLOWED_HOSTS": "127.0.0.1"}


class Trial:
    """The runs of the load, without the feed or with a destination."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.found: defaultdict[str, list[float]] = defaultdict(list)  # by what was measured, of each round
        self.differences: list[str] = []

    async def publish(self) -> None:
        """Measure when events arrive at the webhook, and how fast they are published to the stream."""
        testbed = Testbed(shards=1, stream_shards=2, tenants_per_shard=4, replicas=0)
        async with self._started(testbed, TO_WEBHOOK) as (feed, stream):
            await asyncio.sleep(WARM_UP_S)
            flow = self._start_flow(testbed)
            await asyncio.sleep(self._arguments.seconds)
            changes = await self._changes(testbed, flow)
            await self._note_arrivals(feed, len(changes))
            self._note_differences(changes, TO_WEBHOOK, feed.webhook.follower(), flow)
            await self._publish_to_stream(testbed, feed, changes)
            self._note_differences(changes, TO_STREAM, await self._stream_follower(stream, len(changes)), flow)
            self.found[RATE].append(len(changes) / stream.seconds if stream.seconds else 0.0)
            await testbed.stop_workers()

    async def measure_cost(self) -> None:
        """Measure what a worker with the stream takes more than one without, under the same load."""
        stacks = [Testbed(shards=1, stream_shards=2, tenants_per_shard=4, replicas=0) for _ in range(2)]
        async with self._started(stacks[0]) as one, self._started(stacks[1]) as other:
            for testbed in stacks:  # the passes, equal in both, would fall into the time of one
                await execute(testbed.server().url, "ALTER SYSTEM SET autovacuum = off")
                await execute(testbed.server().url, "SELECT pg_reload_conf()")
            flows = [self._start_flow(testbed) for testbed in stacks]
            feeds = [await feed.env(TO_STREAM) for feed, _ in (one, other)]
            for turns in await self._take_turns(stacks, feeds):
                self.found[WORKER].append(_mean_more(turns) / self._arguments.rate * 1e6)
                ratios = [with_feed["Postgres"] / without["Postgres"] for with_feed, without in turns]
                self.found[POSTGRES].append(statistics.geometric_mean(ratios))
            await stacks[0].replace_worker(WORKER_ENV | feeds[0])
            for testbed, (_, stream), flow in zip(stacks, (one, other), flows, strict=True):
                changes = await self._changes(testbed, flow)
                self._note_differences(changes, TO_STREAM, await self._stream_follower(stream, len(changes)), flow)
                await testbed.stop_workers()

    async def _take_turns(self, stacks: Sequence[Testbed], feeds: Sequence[Env]) -> Sequence[Turns]:
        """Run a worker with the feed in one stack beside one without in the other, and then the other way round.

        Returns the shares of a processor, with and without, of each pair of turns.
        """
        costs: list[tuple[Processors, Processors]] = []
        for number in [0, 1] * self._arguments.turns:
            chosen, beside = stacks[number], stacks[1 - number]
            await asyncio.gather(chosen.replace_worker(WORKER_ENV | feeds[number]), beside.replace_worker(WORKER_ENV))
            await asyncio.sleep(WARM_UP_S)  # in which they catch up
            async with chosen.phase("with"), beside.phase("without"):
                await asyncio.sleep(TURN_S)
            costs.append((chosen.phases[-1].processors, beside.phases[-1].processors))
        return [*zip(costs[::2], costs[1::2], strict=True)]

    @asynccontextmanager
    async def _started(self, testbed: Testbed, *destinations: str) -> AsyncIterator[tuple[Feed, StreamReader]]:
        async with testbed, testbed.stack.aws_client("kinesis") as kinesis:
            stream, feed = StreamReader(kinesis), Feed(testbed)
            await stream.begin()
            await run_command(testbed, "shards", "upgrade", *testbed.stack.servers, "--apply", "--json")
            await testbed.start_worker(WORKER_ENV | (await feed.env(*destinations) if destinations else {}))
            await testbed.register(testbed.tenants_of())
            yield feed, stream

    def _start_flow(self, testbed: Testbed) -> Flow:
        plan = ChainPlan("load", testbed.tenants_of(), types=16, resources=32)
        return testbed.start_flow(plan, rate=self._arguments.rate, interval_s=0.05)

    async def _changes(self, testbed: Testbed, flow: Flow) -> Sequence[Change]:
        """End the load, and return what the log has once all of it is applied."""
        await flow.producer.stop()
        await testbed.wait_until_applied(testbed.urls, within_s=ARRIVED_WITHIN_S)
        return await ShardLogs().changes(dict(zip(testbed.stack.servers, testbed.urls, strict=True)))

    def _note_differences(self, changes: Sequence[Change], name: str, follower: Follower, flow: Flow) -> None:
        self.differences += find_differences(name, follower, changes, flow.plan.number_of)

    async def _stream_follower(self, stream: StreamReader, count: int) -> Follower:
        async def has_come() -> bool:
            return len((await stream.follower()).holding) >= count

        await poll_until(has_come, within_s=ARRIVED_WITHIN_S)
        return await stream.follower()

    async def _publish_to_stream(self, testbed: Testbed, feed: Feed, changes: Sequence[Change]) -> None:
        newest = max(change.batch for change in changes)

        async def is_published() -> bool:
            return bool(await fetch_value(testbed.urls[0], PUBLISHED_SQL, TO_STREAM, newest))

        await feed.env(TO_WEBHOOK, TO_STREAM)
        async with testbed.phase("publish"):
            testbed.worker.send_signal(signal.SIGHUP)
            await poll_until(is_published, within_s=ARRIVED_WITHIN_S)
        phase = testbed.phases[-1]
        self.found[PUBLISHER].append(phase.processors["worker"] * phase.seconds / len(changes) * 1e6)

    async def _note_arrivals(self, feed: Feed, count: int) -> None:
        async def has_arrived() -> bool:
            return len(feed.webhook.follower().holding) >= count

        await poll_until(has_arrived, within_s=ARRIVED_WITHIN_S)
        arrivals = [(written_at(event), arrived) for arrived, event in feed.webhook.accepted() if is_load(event)]
        begun_at, first_at = min(arrivals)
        # Until then a feed at rest may not have looked.
        delays = sorted(arrived - written for written, arrived in arrivals if written - begun_at >= RENEW_S)
        self.found[FIRST].append(first_at - begun_at)
        self.found[MEDIAN].append(percentile(delays, 0.5) or float("inf"))
        self.found[P99].append(percentile(delays, 0.99) or float("inf"))


def _mean_more(turns: Turns) -> float:
    return statistics.mean(with_feed["worker"] - without["worker"] for with_feed, without in turns)


def written_at(event: Mapping[str, Any]) -> float:
    """Return when the change was written."""
    return datetime.fromisoformat(event["time"]).timestamp()


def is_load(event: Mapping[str, Any]) -> bool:
    """Return whether the event is of the load: the others were there before the feed."""
    return str(event.get("simplurequest")).startswith("load-")


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console, trial = open_console(piped_width=120), Trial(arguments)
    for _ in range(arguments.rounds):
        await trial.publish()
    await trial.measure_cost()
    medians = {what: statistics.median(values) for what, values in trial.found.items()}
    targets = [
        PerformanceTarget(FIRST, medians[FIRST], unit="s"),
        PerformanceTarget(MEDIAN, medians[MEDIAN], unit="s"),
        PerformanceTarget(P99, medians[P99], most=P99_MOST_S, unit="s"),
        PerformanceTarget(RATE, medians[RATE], least=RATE_LEAST),
        PerformanceTarget(PUBLISHER, medians[PUBLISHER], unit="µs"),
        PerformanceTarget(WORKER, medians[WORKER], unit="µs"),
        PerformanceTarget(POSTGRES, medians[POSTGRES], most=POSTGRES_MOST),
    ]
    for target in targets:
        rounds = ", ".join(format_number(value, target.unit) for value in trial.found[target.what])
        found = format_number(target.value, target.unit)
        console.print(f"{target.what}: {found} ({rounds}); target: {str(target) or MISSING}")
    console.print(f"differences: {len(trial.differences) or 'none'}")
    for difference in trial.differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    return 0 if not trial.differences and all(target.is_kept for target in targets) else 1


def main() -> None:
    """Run the benchmark and end with its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
