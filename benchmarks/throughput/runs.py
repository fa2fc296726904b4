"""One run of the throughput benchmark: a contender on fresh databases, and what it came to."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec
from support.processes.resource_usage import cpu_seconds, rss_bytes

from benchmarks.throughput.testbed import FOLDER, Bed, Kinesis, Target, clock
from simplu_worker.local.aws_server.faults import SetOptions
from simplu_worker.local.aws_server.server import send_commands
from simplu_worker.local.processes.watchdog import running_processes, with_descendants
from simplu_worker.local.processes.worker_process import log_tail
from simplu_worker.local.stack.aws import CREDENTIALS

WARM_UP_S = 0.7  # after the first commit
FIRST_WITHIN_S = 60.0
SAMPLE_S = 0.2
LOOK_S = 0.02
BEFORE_THE_TAIL = 0.9  # of the records: stream shards do not end at the same time
STOP_WITHIN_S = 35.0

# When what share of the rows was committed; the time is the transaction's, as Postgres keeps it.
TIMES_SQL = """
SELECT extract(epoch FROM at)::float8 AS at, count(*) AS count
FROM (SELECT pg_xact_commit_timestamp(xid::xid) AS at FROM operations) AS log
GROUP BY at
ORDER BY at
"""
LATENCIES_SQL = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xid::xid) - received_at)::float8 AS latency_s
FROM operations
"""
FAILED_SQL = "SELECT count(*) FROM operations WHERE status <> 'succeeded'"


class StalledError(Exception):
    """A contender committed next to nothing in a run."""


class Who(StrEnum):
    """Who is measured."""

    WORKER = "worker"
    TWO_WORKERS = "two workers"
    BARE = "bare loop"
    LANES = "async-kinesis, 64 lanes"
    SEQUENCE = "async-kinesis, in sequence"
    READ = "async-kinesis, reading only"


OURS = frozenset({Who.WORKER, Who.TWO_WORKERS})


class Cell(NamedTuple):
    """What is measured: who, on how many stream shards and Postgres shards, committing how."""

    who: Who
    stream_shards: int
    shards: int = 1
    commit: str = "on"


class Run(msgspec.Struct, frozen=True, rename="camel"):
    """What one run came to. Processor time is that of the client and of all backends, an operation in the window."""

    round: int
    who: Who
    stream_shards: int
    shards: int
    commit: str
    seconds: float
    operations: int
    client_us: float
    server_us: float
    rss_begin_bytes: int
    rss_most_bytes: int

    @property
    def cell(self) -> Cell:
        """What was measured."""
        return Cell(self.who, self.stream_shards, self.shards, self.commit)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def client_cores(self) -> float:
        """How much of a core the client took."""
        return self.client_us * self.rate / 1e6


class Usage(NamedTuple):
    """What the processes had used at a time."""

    at: float
    client_s: float
    server_s: float
    rss_bytes: int


class Sampler:
    """Looks again and again at what the clients and the Postgres server have used."""

    def __init__(self, pids: Sequence[int], server_pid: int) -> None:
        self._pids = tuple(pids)
        self._server_pid = server_pid
        self.samples: list[Usage] = []

    def look(self) -> None:
        """Take one sample."""
        backends = with_descendants([self._server_pid], running_processes())
        client_s = cpu_seconds(self._pids, lambda _: "client")["client"]
        server_s = cpu_seconds(backends, lambda _: "server", with_ended=True)["server"]
        rss = max((rss_bytes(pid) or 0 for pid in self._pids), default=0)
        self.samples.append(Usage(clock(), client_s, server_s, rss))

    async def run(self) -> None:
        """Look for ever; end it by cancelling."""
        while True:
            self.look()
            await asyncio.sleep(SAMPLE_S)

    def between(self, begin: float, end: float) -> tuple[float, float]:
        """Return what the clients and the server used between two times, between samples as if evenly."""
        first, last = self._at(begin), self._at(end)
        return last[0] - first[0], last[1] - first[1]

    def _at(self, at: float) -> tuple[float, float]:
        place = min(max(bisect_left(self.samples, at, key=lambda one: one.at), 1), len(self.samples) - 1)
        before, after = self.samples[place - 1], self.samples[place]
        share = (at - before.at) / (after.at - before.at)
        return (
            before.client_s + share * (after.client_s - before.client_s),
            before.server_s + share * (after.server_s - before.server_s),
        )


class Clients:
    """The processes of one contender; killed when the context is left."""

    def __init__(
        self, processes: Sequence[subprocess.Popen[bytes]], log_paths: Sequence[Path], application: str = ""
    ) -> None:
        """*application* is the name under which workers share their leases."""
        self.application = application
        self._processes = processes
        self._log_paths = log_paths

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self._processes]

    def words(self) -> str:
        """Return the ends of their logs."""
        return "\n".join(log_tail(path) for path in self._log_paths)

    def check(self) -> None:
        """Raise SystemExit, with the end of its log, when one has ended."""
        for process, path in zip(self._processes, self._log_paths, strict=True):
            if process.poll() is not None:
                raise SystemExit(f"a program that was measured ended with {process.poll()}:\n{log_tail(path)}")


@asynccontextmanager
async def running(who: Who, bed: Bed, kinesis_url: str, target: Target, lanes_python: str) -> AsyncIterator[Clients]:
    """Have the processes of a contender."""
    processes, log_paths, application = [], [], ""
    try:
        for command, env in commands(who, bed, kinesis_url, target, lanes_python):
            log_paths.append(bed.group.directory / f"client-{bed.number()}.log")
            application = env.get("KINESIS_APPLICATION_NAME", "")
            processes.append(bed.group.spawn(command, log_path=log_paths[-1], env=env))
        yield Clients(processes, log_paths, application)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def commands(
    who: Who, bed: Bed, kinesis_url: str, target: Target, lanes_python: str
) -> list[tuple[list[str], dict[str, str]]]:
    """Return what to start, each with its environment."""
    own = inherited()
    stream = ["--kinesis-url", kinesis_url]
    if who in OURS:
        env = own | bed.worker_env(kinesis_url, target)
        command = [sys.executable, "-m", "simplu_worker", "run"]
        return [(command, env)] * (2 if who is Who.TWO_WORKERS else 1)
    if who is Who.BARE:
        program = [sys.executable, "-m", "benchmarks.throughput.bare_loop", "--map", str(target.path)]
        return [([*program, *stream], own)]
    form = {Who.LANES: "lanes", Who.SEQUENCE: "sequence", Who.READ: "read"}[who]
    urls = [shard.connection_string for shard in target.shard_map.shards]
    program = [lanes_python, "-P", str(FOLDER / "async_kinesis.py"), "--form", form, "--postgres-urls", *urls]
    return [([*program, *stream], own | CREDENTIALS)]


def inherited() -> dict[str, str]:
    """Return what a process needs of this one's environment; nothing of the user's settings."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "PYTHONPATH") if name in os.environ}


class Range(NamedTuple):
    """How the figures of several rounds lie."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Return the range of *values*."""
        return cls(min(values), statistics.median(values), max(values))


Begin = Callable[[str, Clients], Awaitable[None]]


class Runner:
    """Measures cells against one Kinesis, whose stream has *records* records."""

    def __init__(
        self, bed: Bed, kinesis: Kinesis, *, records: int, seconds: float, lanes_python: str, round_number: int
    ) -> None:
        self._bed = bed
        self._kinesis = kinesis
        self._url = kinesis.url
        self._records = records
        self._seconds = seconds
        self._lanes_python = lanes_python
        self._round = round_number

    async def measure(self, cell: Cell, *, begin: Begin | None = None) -> Run:
        """Run *cell* for the given seconds, or until the stream is applied.

        *begin* is awaited before the first commit is, with the name of the workers' application. Raises StalledError.
        """
        await send_commands(self._url, SetOptions({"read_throttling": cell.who in OURS}))
        async with (
            self._bed.target(cell.shards, commit=cell.commit) as target,
            running(cell.who, self._bed, self._url, target, self._lanes_python) as clients,
        ):
            if begin is not None:
                await begin(clients.application, clients)
            sampler = Sampler(clients.pids, self._bed.server_pid)
            async with asyncio.TaskGroup() as tasks:
                sampling = tasks.create_task(sampler.run())
                first_at = await self._first(target, clients)
                await self._rest(target, clients, until=first_at + WARM_UP_S + self._seconds)
                sampler.look()
                sampling.cancel()
            return await self._measured(cell, target, sampler, clients)

    async def _first(self, target: Target, clients: Clients) -> float:
        """Wait for the first commit; return when it was seen."""
        began = clock()
        while not await target.has_any():
            clients.check()
            if clock() - began > FIRST_WITHIN_S:
                raise StalledError(f"nothing was committed within {FIRST_WITHIN_S:g} s:\n{clients.words()}")
            await asyncio.sleep(LOOK_S)
        return clock()

    async def _rest(self, target: Target, clients: Clients, *, until: float) -> None:
        """Wait until that time, or until all is applied."""
        written = await target.wal_bytes()
        while (left_s := until - clock()) > 0:
            await asyncio.sleep(min(SAMPLE_S, left_s))
            clients.check()
            before, written = written, await target.wal_bytes()
            if written == before and await target.count() >= self._records:
                return

    async def _measured(self, cell: Cell, target: Target, sampler: Sampler, clients: Clients) -> Run:
        times = await target.rows(TIMES_SQL)
        failed = sum([row[0] for row in await target.rows(FAILED_SQL)])
        if failed:
            raise SystemExit(f"{cell}: {failed} operations failed, expected all of them to take effect")
        begin, end, operations = window([(row["at"], row["count"]) for row in times], self._records)
        if not operations:
            raise StalledError(f"{cell}: too few commits to measure, {len(times)} in all:\n{clients.words()}")
        client_s, server_s = sampler.between(begin, end)
        after = [one.rss_bytes for one in sampler.samples if one.at >= begin]
        return Run(
            round=self._round,
            who=cell.who,
            stream_shards=cell.stream_shards,
            shards=cell.shards,
            commit=cell.commit,
            seconds=end - begin,
            operations=operations,
            client_us=client_s / operations * 1e6,
            server_us=server_s / operations * 1e6,
            rss_begin_bytes=after[0],
            rss_most_bytes=max(after),
        )


def window(commits: Sequence[tuple[float, int]], records: int) -> tuple[float, float, int]:
    """Return from when to when to measure, and how many operations were committed after the one and until the other.

    From the warm-up's end to the last commit, or to before the tail where all records are applied.
    """
    ordered = sorted(commits)
    first_at, last_at = ordered[0][0], ordered[-1][0]
    counted = 0
    for at, count in ordered:
        counted += count
        if counted >= BEFORE_THE_TAIL * records:
            last_at = at
            break
    begin = next((at for at, _ in ordered if at >= first_at + WARM_UP_S), first_at)
    if begin >= last_at:  # all was done within the warm-up
        begin = first_at
    operations = sum(count for at, count in ordered if begin < at <= last_at)
    return begin, last_at, operations


def of(runs: Sequence[Run], cell: Cell, value: Callable[[Run], float]) -> Range | None:
    """Return the range of what *value* takes from the runs of *cell*; None where there are none."""
    values = [value(run) for run in runs if run.cell == cell]
    return Range.of(values) if values else None


def ratios(
    runs: Sequence[Run], cell: Cell, other: Cell, value: Callable[[Run], float] = lambda run: run.rate
) -> Range | None:
    """Return the range of what *value* takes from *cell* ÷ the same of *other*, round by round."""
    values = {(run.round, run.cell): value(run) for run in runs}
    found = [
        own / values[number, other]
        for (number, mine), own in values.items()
        if mine == cell and (number, other) in values
    ]
    return Range.of(found) if found else None
