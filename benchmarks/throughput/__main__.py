"""Measure the throughput of one core: of the worker as a user runs it, a bare loop, and async-kinesis.

    python -m benchmarks.throughput [--quick] [--rounds 3] [--seconds 4] [--json FILE] [--no-write] [--beside FOLDER]

First the worker on records as users have them (`mixes.py`), on tables with rows in use: the realistic mix, and one
factor at a time from it; of Postgres also the processor time, WAL and disk a record. `--beside` has the worker of
another checkout take turns with this one.

Then, in several rounds, the contenders run one after the other on fresh databases of one Postgres server (fsync on),
against one local Kinesis with the records: `worker` is `simplu-worker run` with its defaults, leases and metrics; `bare
loop` reads, decodes and writes without any guarantee; `async-kinesis` is a program of 100 lines on that library, in its
own environment. Rates come from Postgres's commit timestamps, processor time from the system. Ratios are of runs of the
same round, because other programs on the machine affect all runs of a round alike.

Then: p50 and p99 from arrival to commit at 1,000 records a second, the cost of idling, the times that programs take
to start, few records, a worker that is watched, two replicas, and SQS order events. The results are written into
docs/performance.md and its picture. Exit status 1 when a target is missed, unless `--quick`. `--only peers`
compares the worker with programs that users would write instead (`peers.py`).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table
from support.load.console import log_errors_only, open_console

from benchmarks.throughput.low_load import measure_low_load
from benchmarks.throughput.measures import measure_latency, measure_orders, measure_pair
from benchmarks.throughput.mixes import MIXES, QUICK_MIXES, REALISTIC, mix_of
from benchmarks.throughput.page import MIX_HEAD, RATES_HEAD, write_page
from benchmarks.throughput.peers import PEER_RECORDS, PEERS_HEAD, measure_peers, peer_lines
from benchmarks.throughput.results import BARE, BOUND_CELLS, WORKER, Machine, ThroughputResults
from benchmarks.throughput.runs import OURS_HERE, Cell, Checkout, Contender, Run, Runner, StalledError
from benchmarks.throughput.startup import measure_idle, measure_starts, start_range
from benchmarks.throughput.testbed import FOLDER, BenchmarkServers, run_servers
from benchmarks.throughput.watching import measure_watching

ROOT = FOLDER.parents[1]
PAGE = ROOT / "docs" / "performance.md"
MIX_RATIO_HEAD = ("this ÷ another worker", "the other", "records/s", "worker", "Postgres", "WAL", "disk")
USUAL_PARTS = ("mixes", "rates", "more", "low", "orders")
PARTS = (*USUAL_PARTS, "peers")
MIX_ROUNDS, MIX_SECONDS, MIX_RECORDS = 2, 3.0, 150_000
LOW_ROUNDS = 3
QUICK_MIX_RECORDS = 60_000
PAIRS = 7  # of one worker and two: with Postgres and Kinesis four processes share two cores, so these vary most
THEIR_STREAM_SHARDS = 4  # with 32 and a full queue async-kinesis skips records, or applies none
TENANTS = 200

CELLS = (
    *BOUND_CELLS,
    *(Cell(Contender.WORKER, stream_shards, 1, "off") for stream_shards in (1, 4, 16)),
    Cell(Contender.WORKER, 32, 8),
    Cell(Contender.BARE, 32, 8),
    Cell(Contender.LANES, THEIR_STREAM_SHARDS, 8),
)
QUICK_CELLS = tuple(cell for cell in BOUND_CELLS if cell.commit == "on")


def main() -> None:
    """Run the benchmark."""
    log_errors_only()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the main contenders, about a minute")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each run, after its warm-up")
    parser.add_argument("--records", type=int, help="in the stream")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=USUAL_PARTS, help="by default all but peers")
    parser.add_argument(
        "--mixes", nargs="+", metavar="NAME", choices=[mix.name for mix in MIXES], help="by default all"
    )
    parser.add_argument(
        "--beside", type=Path, metavar="FOLDER", help="a checkout with another worker, for the mixes and few records"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--write",
        action=argparse.BooleanOptionalAction,
        help=f"write them into {PAGE.relative_to(ROOT)}; default: yes, except with --quick",
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="write another page, with the same marks")
    parser.add_argument(
        "--who", nargs="+", type=Contender, choices=tuple(Contender), default=tuple(Contender), metavar="WHO"
    )
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing, read the figures from FILE")
    arguments = parser.parse_args()
    arguments.mix_rounds = arguments.rounds or (1 if arguments.quick else MIX_ROUNDS)
    defaults = (1, 1.5, 150_000) if arguments.quick else (3, 4.0, 400_000)
    for name, value in zip(("rounds", "seconds", "records"), defaults, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.write is None:
        arguments.write = not arguments.quick
    sys.exit(uvloop.run(run(arguments)))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write the figures, and return the exit status."""
    console = open_console()
    if arguments.from_json:
        results = msgspec.json.decode(arguments.from_json.read_bytes(), type=ThroughputResults)
    else:
        given = {"rounds": arguments.rounds, "seconds": arguments.seconds, "records": arguments.records}
        results = ThroughputResults(machine=machine(), **given)
        try:
            await measure(arguments, results, console)
        finally:  # figures measured before an error are useful too
            if arguments.json:
                arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    show(results, console)
    if arguments.write:
        write_page(results, arguments.page)
        console.print(f"written: {arguments.page}")
    missed = [one for one in results.targets() if not one.is_kept]
    return 1 if missed and not arguments.quick else 0


async def measure(arguments: argparse.Namespace, results: ThroughputResults, console: Console) -> None:
    """Measure the requested figures into *results*."""
    more_s = 5.0 if arguments.quick else 20.0
    async with run_servers(TENANTS) as servers:
        if "mixes" in arguments.only:
            await measure_mixes(servers, arguments, results, console)
        if "rates" in arguments.only:
            await measure_rates(servers, arguments, results, console)
        if "more" in arguments.only:
            results.starts = await measure_starts(servers, rounds=2 if arguments.quick else 7)
            console.print(
                "start to ready: {:.2f} s, a command: {:.2f} s, --help: {:.2f} s, imports: {:.2f} s".format(
                    *(
                        start_range(results.starts, name).median
                        for name in ("ready_s", "command_s", "help_s", "imports_s")
                    )
                )
            )
            results.latency = await measure_latency(servers, rate=1000, seconds=more_s)
            console.print(f"1,000/s: p50 {results.latency.p50_s:.3f} s, p99 {results.latency.p99_s:.3f} s")
            results.idle = await measure_idle(servers, seconds=more_s)
            console.print(f"idle: {results.idle.client_cores:.2%} of a core, polls {results.idle.plain_cores:.2%}")
        if "low" in arguments.only:
            await measure_low_loads(servers, arguments, results, console, seconds=more_s)
        if "peers" in arguments.only:
            records = arguments.records if arguments.quick else PEER_RECORDS
            await measure_peers(servers, results, console, who=arguments.who, records=records, latency_s=more_s)
        if "more" in arguments.only and not arguments.quick:
            await measure_replicas(servers, arguments, results, console)
    if "orders" in arguments.only:
        counts = (2000, 200, 1) if arguments.quick else (10_000, 1000, 3)
        results.orders = await measure_orders(events=counts[0], naive_events=counts[1], runs=counts[2], latency_ms=5)


async def measure_mixes(
    servers: BenchmarkServers, arguments: argparse.Namespace, results: ThroughputResults, console: Console
) -> None:
    """Measure the worker on every mix, and on the realistic one the bare loop; by round, one after the other."""
    is_quick = arguments.quick
    results.mix_rounds = arguments.mix_rounds
    results.mix_seconds, results.mix_records = MIX_SECONDS, QUICK_MIX_RECORDS if is_quick else MIX_RECORDS
    mixes = [mix_of(name) for name in arguments.mixes] if arguments.mixes else QUICK_MIXES if is_quick else MIXES
    checkouts = checkouts_of(arguments)
    for mix in mixes:
        async with (
            servers.as_for(mix) as own,
            own.run_kinesis(results.mix_records, WORKER.stream_shards, "--mix", mix.name) as kinesis,
        ):
            turns = [(WORKER, checkout) for checkout in checkouts]
            if mix is REALISTIC:
                turns.append((BARE, OURS_HERE))
            for number_of_round in range(1, results.mix_rounds + 1):
                for cell, checkout in turns if number_of_round % 2 else reversed(turns):
                    runner = Runner(
                        own,
                        kinesis,
                        records=results.mix_records,
                        seconds=results.mix_seconds,
                        round_number=number_of_round,
                        mix=mix,
                        checkout=checkout,
                    )
                    if (one := await measure_cell(runner, cell, results, console)) is None:
                        continue
                    results.mixes.append(one)
                    console.print(
                        f"{mix.name}, round {number_of_round}, {cell.contender} {checkout.name}: {one.rate:.0f}/s, "
                        f"{one.client_us:.1f} µs client, {one.server_us:.1f} µs Postgres ({one.writers_us:.1f} of its "
                        f"writers), {one.wal_bytes:.0f} bytes of WAL, {one.disk_bytes:.0f} of disk"
                    )


def checkouts_of(arguments: argparse.Namespace) -> list[Checkout]:
    """Return the workers that take turns: this one, and that of `--beside`."""
    if arguments.beside is None:
        return [OURS_HERE]
    return [OURS_HERE, Checkout(commit_of(arguments.beside), arguments.beside.resolve())]


async def measure_low_loads(
    servers: BenchmarkServers,
    arguments: argparse.Namespace,
    results: ThroughputResults,
    console: Console,
    *,
    seconds: float,
) -> None:
    """Measure the cost of few records, and of a worker that is watched."""
    rounds = 1 if arguments.quick else LOW_ROUNDS
    for number_of_round in range(1, rounds + 1):
        checkouts = checkouts_of(arguments)
        for checkout in checkouts if number_of_round % 2 else reversed(checkouts):
            one = await measure_low_load(servers, seconds=seconds, round_number=number_of_round, checkout=checkout)
            results.low_loads.append(one)
            console.print(f"{one.rate:.0f}/s {one.worker}: {one.client_us:.0f} µs a record")
    results.watching = await measure_watching(
        servers, rounds=rounds, records=arguments.records, seconds=arguments.seconds, idle_s=seconds
    )
    more = ", ".join(f"{one:.2%}" for one in results.watching.idle_more)
    console.print(f"watched: {more} of a core more when idle")


async def measure_replicas(
    servers: BenchmarkServers, arguments: argparse.Namespace, results: ThroughputResults, console: Console
) -> None:
    """Measure one worker and two, in *PAIRS* rounds."""
    for number_of_round in range(1, PAIRS + 1):
        try:
            pair = await measure_pair(
                servers,
                records_count=arguments.records,
                seconds=arguments.seconds,
                stream_shards=16,
                round_number=number_of_round,
            )
        except StalledError as exc:
            note_stall(exc, results, console)
            continue
        results.replicas.append(pair)
        console.print(f"round {number_of_round}: two workers ÷ one: {pair[1].rate / pair[0].rate:.2f}")


async def measure_cell(runner: Runner, cell: Cell, results: ThroughputResults, console: Console) -> Run | None:
    """Measure a cell once; None if its contender stalled, which is recorded."""
    try:
        return await runner.measure(cell)
    except StalledError as exc:
        note_stall(exc, results, console)
        return None


def note_stall(exc: StalledError, results: ThroughputResults, console: Console) -> None:
    """Record that a contender stalled: a result too, and no reason to lose the others."""
    results.stalls.append(str(exc).partition(":\n")[0])
    console.print(str(exc), markup=False)


async def measure_rates(
    servers: BenchmarkServers, arguments: argparse.Namespace, results: ThroughputResults, console: Console
) -> None:
    """Measure every cell once a round; cells that are compared are adjacent, and so measured at about the same time."""
    cells = [cell for cell in (QUICK_CELLS if arguments.quick else CELLS) if cell.contender in arguments.who]
    async with AsyncExitStack() as streams:
        kinesis = {
            count: await streams.enter_async_context(servers.run_kinesis(arguments.records, count))
            for count in sorted({cell.stream_shards for cell in cells})
        }
        for number_of_round in range(1, arguments.rounds + 1):
            for cell in cells:
                runner = Runner(
                    servers,
                    kinesis[cell.stream_shards],
                    records=arguments.records,
                    seconds=arguments.seconds,
                    round_number=number_of_round,
                )
                if (one := await measure_cell(runner, cell, results, console)) is None:
                    continue
                results.runs.append(one)
                console.print(
                    f"round {number_of_round}: {cell.contender}, {cell.stream_shards} stream shards, "
                    f"{cell.shards} shards, synchronous_commit {cell.commit}: {one.rate:.0f}/s, "
                    f"{one.client_us:.1f} µs client, {one.server_us:.1f} µs Postgres"
                )


def commit_of(folder: Path) -> str:
    """Return the commit of a checkout."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(describe, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> Machine:
    """Return the description of this machine."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return Machine(
        at=datetime.now(UTC).date().isoformat(),
        model=model,
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        commit=commit_of(ROOT),
        load=os.getloadavg()[0],
    )


def show_table(head: Sequence[str], lines: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table."""
    table = Table(*head)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def show(results: ThroughputResults, console: Console) -> None:
    """Print tables for people."""
    if results.mixes:
        show_table(MIX_HEAD, results.mix_lines(), console)
    if ratios := results.mix_ratios():
        show_table(MIX_RATIO_HEAD, ratios, console)
    if any(one.worker for one in results.low_loads):
        show_table(("few records, this ÷ worker of", "worker"), results.low_load_ratios(), console)
    if results.runs:
        show_table(RATES_HEAD, results.lines(), console)
    if results.peers:
        show_table(PEERS_HEAD, peer_lines(results), console)
    table = Table("target", "measured", "wanted", "")
    for one in results.targets():
        kept = "kept" if one.is_kept else "[bold red]MISSED[/]"
        table.add_row(one.what, one.measured, str(one), kept)
    console.print(table)


if __name__ == "__main__":
    main()
