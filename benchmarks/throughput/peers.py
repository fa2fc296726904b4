"""The worker beside programs that a user would write instead: on the KCL with JDBC, in Go with pgx, on async-kinesis.

`python3 run.py peers` builds the first two, from `tests/peers`. All have the realistic records, an empty log of plain
rows (ours for the worker), and their transactions of the replies of GetRecords.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Final, NamedTuple

from rich.console import Console
from support.peers.programs import HOW

from benchmarks.throughput.measures import measure_latency
from benchmarks.throughput.mixes import REALISTIC
from benchmarks.throughput.results import BARE, LANES, MB, WORKER, ThroughputResults
from benchmarks.throughput.runs import Cell, Contender, Runner, StalledError, is_missing
from benchmarks.throughput.testbed import BenchmarkServers

PEER_CELLS: Final = (WORKER, BARE, Cell(Contender.KCL, 32), Cell(Contender.PGX, 32), LANES)
GUARANTEES: Final = MappingProxyType(
    {
        Contender.WORKER: "once, in order, replicas; [more](correctness.md)",
        Contender.BARE: "none",
        Contender.KCL: "once, in order, replicas; a bad record stops its stream shard",
        Contender.PGX: "once, in order, one process; a bad record stops its stream shard",
        Contender.LANES: "once, in order, one process; starts at the oldest record",
    }
)
PEER_RECORDS = 700_000  # enough for the warm-up of a JVM
LATENCY_RATE = 1000


async def measure_peers(
    servers: BenchmarkServers,
    results: ThroughputResults,
    console: Console,
    *,
    who: Collection[Contender],
    records: int,
    latency_s: float,
) -> None:
    """Measure each contender once a round, in turns; then its latency."""
    cells = [cell for cell in PEER_CELLS if cell.contender in who]
    for cell in cells:
        if is_missing(cell.contender):
            console.print(f"{cell.contender}: left out, as it is not built; {HOW}")
    cells = [cell for cell in cells if not is_missing(cell.contender)]
    async with servers.as_for(REALISTIC) as own, AsyncExitStack() as streams:
        kinesis = {
            count: await streams.enter_async_context(own.run_kinesis(records, count, "--mix", REALISTIC.name))
            for count in sorted({cell.stream_shards for cell in cells})
        }
        for number_of_round in range(1, results.rounds + 1):
            for cell in cells if number_of_round % 2 else reversed(cells):
                runner = Runner(
                    own,
                    kinesis[cell.stream_shards],
                    records=records,
                    seconds=results.seconds,
                    round_number=number_of_round,
                    mix=REALISTIC,
                )
                try:
                    one = await runner.measure(cell)
                except StalledError as exc:
                    results.stalls.append(str(exc).partition(":\n")[0])
                    console.print(str(exc), markup=False)
                    continue
                results.peers.append(one)
                console.print(
                    f"round {number_of_round}: {cell.contender}: {one.rate:.0f}/s, {one.client_us:.1f} µs client, "
                    f"{one.server_us:.1f} µs Postgres, {one.rss_most_bytes / MB:.0f} MB"
                )
    for cell in cells:
        if cell.contender is Contender.LANES:  # its library does not give it the times of arrival
            continue
        latency = await measure_latency(servers, rate=LATENCY_RATE, seconds=latency_s, contender=cell.contender)
        results.peer_latencies.append(latency)
        console.print(f"{cell.contender}, 1,000/s: p50 {latency.p50_s:.3f} s, p99 {latency.p99_s:.3f} s")


class Measure(NamedTuple):
    """A column of the table: its digits, and whether more of it is better."""

    name: str
    digits: int
    is_more_better: bool = False


MEASURES: Final = (
    Measure("records/s", 0, is_more_better=True),
    Measure("client, µs", 1),
    Measure("Postgres, µs", 1),
    Measure("memory, MB", 0),
    Measure("p50, ms", 0),
    Measure("p99, ms", 0),
)
PEERS_HEAD = ("", *(measure.name for measure in MEASURES), "guarantees")


def peer_lines(results: ThroughputResults) -> list[list[str]]:
    """Return the rows of a table of all contenders, in the order of `PEER_CELLS`."""
    return [
        [str(contender), *map(_spell, MEASURES, figures), GUARANTEES[contender]]
        for contender, figures in _figures(results).items()
    ]


def lost_measures(results: ThroughputResults) -> str:
    """Return a sentence of what other contenders do better than the worker; empty without its figures."""
    figures = _figures(results)
    if (ours := figures.pop(Contender.WORKER, None)) is None:
        return ""
    parts = []
    for place, measure in enumerate(MEASURES):
        better = [
            f"{contender} ({_spell(measure, theirs[place])})"
            for contender, theirs in figures.items()
            if _is_better(measure, theirs[place], ours[place])
        ]
        if better:
            parts.append(f"{measure.name}: {', '.join(better)}")
    return f"**Better than the worker**: {'; '.join(parts) or 'none'}."


def _figures(results: ThroughputResults) -> dict[Contender, list[float | None]]:
    """Return the medians of each measured contender, in the order of MEASURES."""
    latencies = {one.contender: one for one in results.peer_latencies}
    found: dict[Contender, list[float | None]] = {}
    for cell in PEER_CELLS:
        runs = [run for run in results.peers if run.cell == cell]
        if runs:
            latency = latencies.get(cell.contender)
            found[cell.contender] = [
                statistics.median(run.rate for run in runs),
                statistics.median(run.client_us for run in runs),
                statistics.median(run.server_us for run in runs),
                statistics.median(run.rss_most_bytes for run in runs) / MB,
                None if latency is None else 1000 * latency.p50_s,
                None if latency is None else 1000 * latency.p99_s,
            ]
    return found


def _spell(measure: Measure, value: float | None) -> str:
    return "–" if value is None else f"{value:,.{measure.digits}f}"


def _is_better(measure: Measure, theirs: float | None, ours: float | None) -> bool:
    if theirs is None or ours is None:
        return False
    return theirs > ours if measure.is_more_better else theirs < ours
