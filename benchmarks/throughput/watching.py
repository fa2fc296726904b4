"""What it costs a worker that someone watches it: a listener to the page's events, and a scrape of Prometheus.

The page and `simplu-worker top` get `/events`, which have `/status` and `/fleet`; Prometheus scrapes `/metrics` every
15 s.
The reports of the fleet are attributes of the lease rows that a worker writes in any case: they are in all figures.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
import msgspec

from benchmarks.throughput.runs import Cell, Clients, Contender, Run, Runner, run_clients
from benchmarks.throughput.startup import measure_rest
from benchmarks.throughput.testbed import API_TOKEN, BenchmarkServers
from simplu_local.processes.loopback import HOST, StackError, poll_until

SCRAPE_EVERY_S = 15.0  # a usual scrape_interval; Prometheus's own default is a minute
STARTED_WITHIN_S = 20.0
STREAM_SHARDS = 16


class WatchFigures(msgspec.Struct, frozen=True, rename="camel"):
    """The cores that an idle worker uses, without listener and scrapes and with them; as many pairs as rounds.

    `pairs` has runs at full speed, each without and with them.
    """

    stream_shards: int
    idle_cores: list[tuple[float, float]]
    pairs: list[tuple[Run, Run]]

    @property
    def idle_more(self) -> list[float]:
        """By how many cores an idle worker uses more when it is watched."""
        return [watched - alone for alone, watched in self.idle_cores]

    @property
    def record_ratios(self) -> list[float]:
        """The processor time of a record when the worker is watched ÷ when it is not."""
        return [watched.client_us / alone.client_us for alone, watched in self.pairs]


async def measure_watching(
    servers: BenchmarkServers, *, rounds: int, records: int, seconds: float, idle_s: float
) -> WatchFigures:
    """Return the figures of *rounds*; idle each is measured for *idle_s*, at full speed for *seconds*."""
    idle_cores = []
    async with (
        servers.run_kinesis(0, STREAM_SHARDS) as kinesis,
        servers.make_databases(1, commit="on") as databases,
        run_clients(Contender.WORKER, servers, kinesis.url, databases) as clients,
    ):
        for _ in range(rounds):
            alone = await measure_rest(servers, clients, idle_s)
            async with watch(await read_port(clients)):
                watched = await measure_rest(servers, clients, idle_s)
            idle_cores.append((alone.client_cores, watched.client_cores))
    pairs = []
    async with servers.run_kinesis(records, STREAM_SHARDS) as kinesis:
        for number_of_round in range(1, rounds + 1):
            runner = Runner(servers, kinesis, records=records, seconds=seconds, round_number=number_of_round)
            pairs.append(await _measure_pair(runner))
    return WatchFigures(STREAM_SHARDS, idle_cores, pairs)


async def _measure_pair(runner: Runner) -> tuple[Run, Run]:
    cell = Cell(Contender.WORKER, STREAM_SHARDS)
    async with AsyncExitStack() as watching:

        async def begin(_: str, clients: Clients) -> None:
            await watching.enter_async_context(watch(await read_port(clients)))

        return await runner.measure(cell), await runner.measure(cell, begin=begin)


async def read_port(clients: Clients) -> int:
    """Return the port of the worker's HTTP server, from its log."""
    (path,) = clients.log_paths
    ports: list[int] = []

    async def has_started() -> bool:
        clients.check_running()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                if (event := json.loads(line)).get("event") == "http.started":
                    ports.append(event["port"])
        return bool(ports)

    if not await poll_until(has_started, within_s=STARTED_WITHIN_S):
        raise StackError(f"expected the worker to serve HTTP within {STARTED_WITHIN_S:g} s:\n{clients.log_tails()}")
    return ports[0]


@asynccontextmanager
async def watch(port: int) -> AsyncIterator[None]:
    """Listen to the worker's events, and scrape its metrics, for as long as the context.

    The worker may end before the context does. Raises StackError when it sent no events or no metrics.
    """
    headers = {"Authorization": f"Bearer {API_TOKEN}"}
    url = f"http://{HOST}:{port}"
    seen = Counter[str]()
    async with (
        aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as session,
        asyncio.TaskGroup() as tasks,
    ):
        watchers = [tasks.create_task(_listen(session, seen)), tasks.create_task(_scrape(session, seen))]
        yield
        for watcher in watchers:
            watcher.cancel()
    if not seen["events"] or not seen["scrapes"]:
        raise StackError(f"expected events and metrics of the worker, got {dict(seen)}")


async def _listen(session: aiohttp.ClientSession, seen: Counter[str]) -> None:
    """Read events until the worker ends."""
    with suppress(aiohttp.ClientError):
        async with session.get("/events", timeout=aiohttp.ClientTimeout(total=None)) as events:
            async for _ in events.content.iter_any():
                seen["events"] += 1


async def _scrape(session: aiohttp.ClientSession, seen: Counter[str]) -> None:
    """Read the metrics every SCRAPE_EVERY_S until the worker ends."""
    with suppress(aiohttp.ClientError):
        while True:
            async with session.get("/metrics") as answer:
                await answer.read()
            seen["scrapes"] += 1
            await asyncio.sleep(SCRAPE_EVERY_S)
