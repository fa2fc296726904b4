"""One run of the throughput benchmark: a contender on fresh databases, and its measurements."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from support.peers.programs import JDBC_CONSUMER, PGX_CONSUMER, GoProgram, JavaProgram, is_built
from support.processes.resource_usage import ValueRange, cpu_seconds, rss_bytes

from benchmarks.throughput.mixes import Mix
from benchmarks.throughput.testbed import FOLDER, BenchmarkServers, FilledKinesis, RunDatabases, clock
from simplu_local.aws_server.faults import SetOptions
from simplu_local.aws_server.server import send_commands
from simplu_local.processes.watchdog import running_processes, with_descendants
from simplu_local.processes.worker_process import log_tail
from simplu_local.stack.aws import CREDENTIALS, STREAM_NAME

WARM_UP_S = 0.7  # after the first commit
JIT_WARM_UP_S = 20.0  # of a JVM: until then its compiler takes more than half of its processor time
FIRST_WITHIN_S = 150.0  # the KCL waits up to half a minute before it creates its leases
SAMPLE_S = 0.2
POLL_S = 0.02
BEFORE_THE_TAIL = 0.9  # of the records: stream shards do not reach their ends at the same time
STOP_WITHIN_S = 35.0
WRITERS = ("walwriter", "checkpointer", "background writer")  # in the command lines of Postgres's processes

# The number of rows by commit time, as Postgres keeps it.
TIMES_SQL = """
SELECT extract(epoch FROM at)::float8 AS at, count(*) AS count
FROM (SELECT pg_xact_commit_timestamp(xid::xid) AS at FROM operations WHERE completed_at > $1) AS log
GROUP BY at
ORDER BY at
"""
LATENCIES_SQL = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xid::xid) - received_at)::float8 AS latency_s
FROM operations
WHERE xid IS NOT NULL
"""
FAILED_SQL = "SELECT count(*) FROM operations WHERE status <> 'succeeded'"


class StalledError(Exception):
    """A contender committed almost no operations in a run."""


class Contender(StrEnum):
    """The measured programs."""

    WORKER = "worker"
    TWO_WORKERS = "two workers"
    BARE = "bare loop"
    LANES = "async-kinesis, 64 lanes"
    SEQUENCE = "async-kinesis, in sequence"
    READ = "async-kinesis, reading only"
    KCL = "KCL 3.5 with JDBC batches"
    PGX = "AWS SDK for Go with pgx"


class Checkout(NamedTuple):
    """The source of the worker: of this checkout, or of another one, to be compared in the same round."""

    name: str
    folder: Path | None

    @property
    def variables(self) -> dict[str, str]:
        """The variables with which this interpreter imports it."""
        return {} if self.folder is None else {"PYTHONPATH": str(self.folder)}


OURS_HERE = Checkout("", None)
OURS = frozenset({Contender.WORKER, Contender.TWO_WORKERS})
WITHIN_QUOTAS = OURS | {Contender.KCL, Contender.PGX}  # the others exceed Kinesis's
PEERS: Final = MappingProxyType[Contender, JavaProgram | GoProgram](
    {Contender.KCL: JDBC_CONSUMER, Contender.PGX: PGX_CONSUMER}
)  # that `python3 run.py peers` builds
# ParallelGC is the JVM's collector for throughput, G1 its default. The local Kinesis is slow with the SDK's CBOR.
JVM_OPTIONS = ("-Xmx1g", "-XX:+UseParallelGC", "-Daws.cborEnabled=false")
REPLY_RECORDS = 2000  # of the peers, as of the bare loop
KCL_CONNECTIONS = 5  # HikariCP, "About Pool Sizing": twice the cores, and one
KCL_FAILOVER_MS = 10_000  # its default


class Cell(NamedTuple):
    """One combination to measure: contender, stream shards, Postgres shards and synchronous_commit."""

    contender: Contender
    stream_shards: int
    shards: int = 1
    commit: str = "on"


class Run(msgspec.Struct, frozen=True, rename="camel"):
    """The measurements of one run. Processor time, WAL and disk are an operation's.

    `server_us` is that of all of Postgres; `writers_us` the part of it of the processes that write WAL and pages.
    `worker` is empty for the worker of this checkout, else the name of another one.
    """

    round: int
    contender: Contender = msgspec.field(name="who")
    stream_shards: int
    shards: int
    commit: str
    seconds: float
    operations: int
    client_us: float
    server_us: float
    rss_begin_bytes: int
    rss_most_bytes: int
    writers_us: float = 0.0
    wal_bytes: float = 0.0
    disk_bytes: float = 0.0
    mix: str = ""
    worker: str = ""

    @property
    def cell(self) -> Cell:
        """The combination that was measured."""
        return Cell(self.contender, self.stream_shards, self.shards, self.commit)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def client_cores(self) -> float:
        """The share of a core that the client used."""
        return self.client_us * self.rate / 1e6


class UsageSample(NamedTuple):
    """The resources that the processes had used at a time."""

    at: float
    client_s: float
    server_s: float
    writers_s: float
    rss_bytes: int


class WriteSample(NamedTuple):
    """How much WAL there was at a time, and how large the databases were."""

    at: float
    wal_bytes: int
    disk_bytes: int


class UsageSampler:
    """Samples the resources that the clients and the Postgres server have used."""

    def __init__(self, pids: Sequence[int], server_pid: int) -> None:
        self._pids = tuple(pids)
        self._server_pid = server_pid
        self.samples: list[UsageSample] = []
        self.writes: list[WriteSample] = []  # the caller adds them

    def take_sample(self) -> None:
        """Take one sample."""
        backends = with_descendants([self._server_pid], running_processes())
        client_s = cpu_seconds(self._pids, lambda _: "client")["client"]
        server_s = cpu_seconds(backends, server_part, with_ended=True)
        rss = max((rss_bytes(pid) or 0 for pid in self._pids), default=0)
        self.samples.append(UsageSample(clock(), client_s, server_s.total(), server_s["writers"], rss))

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            self.take_sample()
            await asyncio.sleep(SAMPLE_S)

    def used_between(self, begin: float, end: float) -> tuple[float, float, float]:
        """Return the processor time of the clients, the server and its writers between two times, by interpolation."""
        return (
            interpolate([(one.at, one.client_s) for one in self.samples], begin, end),
            interpolate([(one.at, one.server_s) for one in self.samples], begin, end),
            interpolate([(one.at, one.writers_s) for one in self.samples], begin, end),
        )

    def written_between(self, begin: float, end: float) -> tuple[float, float]:
        """Return the WAL and the growth of the databases between two times, in bytes, by interpolation.

        A transaction that has not ended has written as well: at both times, so that this is no part of the result.
        """
        return (
            interpolate([(one.at, one.wal_bytes) for one in self.writes], begin, end),
            interpolate([(one.at, one.disk_bytes) for one in self.writes], begin, end),
        )


def interpolate(samples: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Return by how much the value of *samples*, by time, has grown between two times."""
    first, last = (_value_at(samples, at) for at in (begin, end))
    return last - first


def _value_at(samples: Sequence[tuple[float, float]], at: float) -> float:
    place = min(max(bisect_left(samples, at, key=lambda one: one[0]), 1), len(samples) - 1)
    (before_at, before), (after_at, after) = samples[place - 1], samples[place]
    return before + (at - before_at) / (after_at - before_at) * (after - before)


def server_part(command: str) -> str:
    """Return the part of Postgres that a process with this command line is."""
    return "writers" if any(name in command for name in WRITERS) else "backends"


class Clients:
    """The processes of one contender; killed when the context is left."""

    def __init__(
        self, processes: Sequence[subprocess.Popen[bytes]], log_paths: Sequence[Path], application: str = ""
    ) -> None:
        """*application* is the name of the workers' lease table."""
        self.application = application
        self._processes = processes
        self.log_paths = log_paths

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self._processes]

    def log_tails(self) -> str:
        """Return the ends of their logs."""
        return "\n".join(log_tail(path) for path in self.log_paths)

    def check_running(self) -> None:
        """Raise SystemExit, with the end of its log, when one has ended."""
        for process, path in zip(self._processes, self.log_paths, strict=True):
            if process.poll() is not None:
                raise SystemExit(f"expected a contender to run, it ended with {process.poll()}:\n{log_tail(path)}")


@asynccontextmanager
async def run_clients(
    contender: Contender,
    servers: BenchmarkServers,
    kinesis_url: str,
    databases: RunDatabases,
    checkout: Checkout = OURS_HERE,
) -> AsyncIterator[Clients]:
    """Run the processes of a contender."""
    processes, log_paths, application = [], [], ""
    try:
        for command, env in client_commands(contender, servers, kinesis_url, databases):
            log_paths.append(servers.group.directory / f"client-{servers.next_number()}.log")
            application = env.get("KINESIS_APPLICATION_NAME", "")
            processes.append(servers.group.spawn(command, log_path=log_paths[-1], env=env | checkout.variables))
        yield Clients(processes, log_paths, application)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def client_commands(
    contender: Contender, servers: BenchmarkServers, kinesis_url: str, databases: RunDatabases
) -> list[tuple[list[str], dict[str, str]]]:
    """Return the commands of a contender, each with its environment."""
    own = inherited_env()
    stream = ["--kinesis-url", kinesis_url]
    if contender in OURS:
        env = own | servers.worker_env(kinesis_url, databases)
        command = [sys.executable, "-P", "-m", "simplu_worker", "run"]  # -P: of the checkout, not of this folder
        return [(command, env)] * (2 if contender is Contender.TWO_WORKERS else 1)
    if contender is Contender.BARE:
        program = [sys.executable, "-m", "benchmarks.throughput.bare_loop", "--map", str(databases.path)]
        return [([*program, *stream], own)]
    if contender in PEERS:
        return [peer_command(contender, servers, kinesis_url, databases)]
    form = {Contender.LANES: "lanes", Contender.SEQUENCE: "sequence", Contender.READ: "read"}[contender]
    urls = [shard.connection_string for shard in databases.shard_map.shards]
    program = [sys.executable, "-P", str(FOLDER / "async_kinesis.py"), "--form", form, "--postgres-urls", *urls]
    return [([*program, *stream], own | CREDENTIALS)]


def peer_command(
    contender: Contender,
    servers: BenchmarkServers,
    kinesis_url: str,
    databases: RunDatabases,
    *,
    failover_ms: int = KCL_FAILOVER_MS,
) -> tuple[list[str], dict[str, str]]:
    """Return the command of a peer with its environment; it writes to one Postgres shard."""
    (shard,) = databases.shard_map.shards
    env = inherited_env() | CREDENTIALS
    if contender is Contender.PGX:
        variables = {"AWS_ENDPOINT_URL_KINESIS": kinesis_url, "DATABASE_URL": shard.connection_string}
        return [*PGX_CONSUMER.command(), STREAM_NAME, str(REPLY_RECORDS)], env | variables
    url = urlsplit(shard.connection_string)
    application = f"peer-{servers.next_number()}"
    options = {
        "kinesis": kinesis_url,
        "dynamodb": servers.urls["aws"],
        "postgres": f"jdbc:postgresql://{url.hostname}:{url.port}{url.path}?user={url.username}&password={url.password}",
        "application": application,
        "stream": STREAM_NAME,
        "worker": application,
        "failover": str(failover_ms),
        "records": str(REPLY_RECORDS),
        "pool": str(KCL_CONNECTIONS),
    }
    return [*JDBC_CONSUMER.command(JVM_OPTIONS), *(f"{key}={value}" for key, value in options.items())], env


def is_missing(contender: Contender) -> bool:
    """Return whether a contender is a peer that is not built here."""
    program = PEERS.get(contender)
    return program is not None and not (is_built(program) and (program is not JDBC_CONSUMER or shutil.which("java")))


def warm_up_s(contender: Contender) -> float:
    """Return how long a contender runs, from its first commit, before it is measured."""
    return JIT_WARM_UP_S if contender is Contender.KCL else WARM_UP_S


def inherited_env() -> dict[str, str]:
    """Return the variables that a child needs of this process's environment, without the user's settings."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "PYTHONPATH") if name in os.environ}


OnStarted = Callable[[str, Clients], Awaitable[None]]


class Runner:
    """Measures cells against one Kinesis with *records* records in its stream."""

    def __init__(
        self,
        servers: BenchmarkServers,
        kinesis: FilledKinesis,
        *,
        records: int,
        seconds: float,
        round_number: int,
        mix: Mix | None = None,
        checkout: Checkout = OURS_HERE,
    ) -> None:
        self._servers = servers
        self._mix = mix
        self._checkout = checkout
        self._kinesis = kinesis
        self._url = kinesis.url
        self._records = records
        self._seconds = seconds
        self._round = round_number

    async def measure(self, cell: Cell, *, begin: OnStarted | None = None) -> Run:
        """Run *cell* for the given seconds, or until the stream is applied.

        *begin* is called before the wait for the first commit, with the workers' application. Raises StalledError.
        """
        await send_commands(self._url, SetOptions({"read_throttling": cell.contender in WITHIN_QUOTAS}))
        async with (
            self._servers.make_databases(
                cell.shards, commit=cell.commit, has_plain_log=cell.contender not in OURS
            ) as databases,
            self._fill(databases),
            run_clients(cell.contender, self._servers, self._url, databases, self._checkout) as clients,
        ):
            if begin is not None:
                await begin(clients.application, clients)
            sampler = UsageSampler(clients.pids, self._servers.server_pid)
            async with asyncio.TaskGroup() as tasks:
                sampling = tasks.create_task(sampler.run())
                first_at = await self._wait_for_first(databases, clients)
                if first_at is not None:
                    until_s = first_at + warm_up_s(cell.contender) + self._seconds
                    await self._wait_for_rest(databases, clients, sampler, until_s=until_s)
                sampler.take_sample()
                sampling.cancel()
            if first_at is None:  # raised here, because a task group would wrap the error
                limit = f"{FIRST_WITHIN_S:g} s"
                raise StalledError(f"{cell}: expected a commit within {limit}, got none:\n{clients.log_tails()}")
            return await self._make_run(cell, databases, sampler, clients)

    @asynccontextmanager
    async def _fill(self, databases: RunDatabases) -> AsyncIterator[None]:
        """Write the rows that exist before the run, and begin it."""
        if self._mix is not None:
            await databases.fill(self._mix)
        await databases.begin()
        yield

    async def _wait_for_first(self, databases: RunDatabases, clients: Clients) -> float | None:
        """Wait for the first commit; return the time at which it was noticed, none when it did not come in time."""
        began = clock()
        while not await databases.has_operations():
            clients.check_running()
            if clock() - began > FIRST_WITHIN_S:
                return None
            await asyncio.sleep(POLL_S)
        return clock()

    async def _wait_for_rest(
        self, databases: RunDatabases, clients: Clients, sampler: UsageSampler, *, until_s: float
    ) -> None:
        """Wait until *until_s*, or until all records are applied; sample what is written."""
        written = await databases.read_wal_bytes()
        while (left_s := until_s - clock()) > 0:
            sampler.writes.append(WriteSample(clock(), written, await databases.read_size()))
            await asyncio.sleep(min(SAMPLE_S, left_s))
            clients.check_running()
            before, written = written, await databases.read_wal_bytes()
            if written == before and await databases.count_operations() >= self._records:
                break
        sampler.writes.append(WriteSample(clock(), written, await databases.read_size()))

    async def _make_run(self, cell: Cell, databases: RunDatabases, sampler: UsageSampler, clients: Clients) -> Run:
        times = await databases.fetch_rows(TIMES_SQL, databases.begun_at)
        failed = sum([row[0] for row in await databases.fetch_rows(FAILED_SQL)])
        if failed:
            raise SystemExit(f"{cell}: expected every operation to succeed, {failed} failed")
        begin, end, operations = window(
            [(row["at"], row["count"]) for row in times], self._records, warm_up_s(cell.contender)
        )
        if not operations:
            raise StalledError(f"{cell}: too few commits to measure, {len(times)} in all:\n{clients.log_tails()}")
        client_s, server_s, writers_s = sampler.used_between(begin, end)
        wal_bytes, disk_bytes = sampler.written_between(begin, end)
        after = [one.rss_bytes for one in sampler.samples if one.at >= begin]
        return Run(
            round=self._round,
            contender=cell.contender,
            stream_shards=cell.stream_shards,
            shards=cell.shards,
            commit=cell.commit,
            seconds=end - begin,
            operations=operations,
            client_us=client_s / operations * 1e6,
            server_us=server_s / operations * 1e6,
            rss_begin_bytes=after[0],
            rss_most_bytes=max(after),
            writers_us=writers_s / operations * 1e6,
            wal_bytes=wal_bytes / operations,
            disk_bytes=disk_bytes / operations,
            mix="" if self._mix is None else self._mix.name,
            worker=self._checkout.name,
        )


def window(commits: Sequence[tuple[float, int]], records: int, warm_up_s: float) -> tuple[float, float, int]:
    """Return the begin and the end of the time to measure, and the number of operations committed in it.

    It is from the warm-up's end to the last commit, or to the begin of the tail when all records are applied.
    """
    ordered = sorted(commits)
    first_at, last_at = ordered[0][0], ordered[-1][0]
    counted = 0
    for at, count in ordered:
        counted += count
        if counted >= BEFORE_THE_TAIL * records:
            last_at = at
            break
    begin = next((at for at, _ in ordered if at >= first_at + warm_up_s), first_at)
    if begin >= last_at:  # all records were applied within the warm-up
        begin = first_at
    operations = sum(count for at, count in ordered if begin < at <= last_at)
    return begin, last_at, operations


def range_of(runs: Sequence[Run], cell: Cell, value: Callable[[Run], float]) -> ValueRange | None:
    """Return the range of *value* over the runs of *cell*; none without a run."""
    values = [value(run) for run in runs if run.cell == cell]
    return ValueRange.from_values(values) if values else None


def ratio_range(
    runs: Sequence[Run], cell: Cell, other: Cell, value: Callable[[Run], float] = lambda run: run.rate
) -> ValueRange | None:
    """Return the range of *value* of *cell* ÷ that of *other*, by round; none without a common round."""
    values = {(run.round, run.cell): value(run) for run in runs}
    found = [
        own / values[number, other]
        for (number, mine), own in values.items()
        if mine == cell and (number, other) in values
    ]
    return ValueRange.from_values(found) if found else None
