"""Measure the cost of each trouble of one Postgres shard for the others, and how soon the shard recovers.

    python -m benchmarks.isolation [--rate 400] [--seconds 12] [--rounds 1] [--troubles down,frozen] [--json]

Starts the embedded stack, a worker and a producer, each a separate process. Each trouble has a control just before it:
the same load without trouble. Compared with it are operations a second and arrival → committed of tenants on the other
shards, both from the shards' own rows. A shard is back when a client that connects can change a row of its
`operations`. From then on the benchmark measures when the first operation that had arrived before is committed (on the
stream shard where that takes longest), and when the last one is. At the end every row of every shard is compared with
the records that were put. Exit status 1 when a target is missed (of several rounds: costs by their median, recovery by
the slowest) or a row differs.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from rich.console import Console
from rich.table import Table
from support.load.chain_checker import count_completed, count_held
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Flow, PhaseResult, Testbed
from support.postgres.faults import frozen, in_recovery, killed, read_only, slowed, without_connections

from benchmarks.small_disk import NoDiskError, is_writable, on_small_disk, without_disk
from benchmarks.targets import (
    MISSING,
    PerformanceTarget,
    add_kinds,
    format_number,
    print_differences,
    ratio_of,
    report_runs,
    targets_table,
)
from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until

P99_MOST_RATIO = 2.0
RATE_LEAST_RATIO = 0.9
FIRST_WITHIN_S = 2.0
LAST_WITHIN_S = 30.0
APPLIED_WITHIN_S = 120.0
BACK_WITHIN_S = 30.0
WARM_UP_S = 5.0
CATCH_UP_S = 10.0
SETTLE_S = 1.0  # after a trouble, before the next control
STATEMENT_S = 1.0
ROW_BYTES = 1024  # of an operation with its indexes and its effects, with a margin
DISK_LEAST_BYTES = 32 * 1024 * 1024
TROUBLES = {
    "down": "killed with -9",
    "frozen": "SIGSTOP",
    "slow": "each statement that writes the log takes a second longer",
    "connections": "other clients use all its connections",
    "disk": "no space on the disk of its tables",
    "read-only": "default_transaction_read_only",
    "standby": "started as a standby, promoted at the end",
}
# A client's write that changes no value.
WRITE_SQL = "UPDATE log_batches SET row_count = row_count WHERE ctid = (SELECT ctid FROM log_batches LIMIT 1)"
FIRST_SQL = """
SELECT extract(epoch FROM max(first_at) - $1)::float8
FROM (
    SELECT min(completed_at) AS first_at FROM operations WHERE received_at < $1 AND completed_at >= $1
    GROUP BY stream_shard_id
) AS by_stream_shard
"""

FaultContext = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class TroubleRun:
    """One trouble in one round. *own_rate* is that of the shard in trouble; durations are from its return."""

    trouble: str
    shard: str
    control: PhaseResult
    during: PhaseResult
    after: PhaseResult
    own_rate: float
    held_count: int
    first_s: float | None
    last_s: float | None

    @property
    def rate_ratio(self) -> float | None:
        """The throughput of the other shards ÷ the control's."""
        return ratio_of(self.during.rate, self.control.rate)

    @property
    def p99_ratio(self) -> float | None:
        """The p99 of the other shards ÷ the control's."""
        return ratio_of(self.during.p99_s, self.control.p99_s)

    def as_json(self) -> dict[str, Any]:
        """Return the run for `--json`."""
        phases = (self.control, self.during, self.after)
        return {
            "trouble": self.trouble,
            "shard": self.shard,
            "phases": [one.as_json() for one in phases],
            "throughputRatio": self.rate_ratio,
            "p99Ratio": self.p99_ratio,
            "ownOperationsPerSecond": self.own_rate,
            "held": self.held_count,
            "firstSeconds": self.first_s,
            "lastSeconds": self.last_s,
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=400.0, help="operations/s of all shards together")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each control and each trouble")
    parser.add_argument("--rounds", type=int, default=1)
    add_kinds(parser, "--troubles", TROUBLES)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--stream-shards", type=int, default=8)
    parser.add_argument("--p99-ratio", type=float, default=P99_MOST_RATIO, help="maximum, relative to the control")
    parser.add_argument("--rate-ratio", type=float, default=RATE_LEAST_RATIO, help="minimum, relative to the control")
    parser.add_argument("--first-seconds", type=float, default=FIRST_WITHIN_S, help="maximum until a shard commits")
    parser.add_argument("--last-seconds", type=float, default=LAST_WITHIN_S, help="maximum until it has caught up")
    parser.add_argument("--worker-log", type=Path, metavar="FILE", help="keep the worker's log")
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json, piped_width=150)
    runs, skipped, differences = await measure(arguments, console)
    targets = list(make_targets(runs, arguments))
    print_results(console, runs, targets, skipped, differences)
    return report_runs(runs, targets, differences, as_json=arguments.json, skipped=skipped)


async def measure(
    arguments: argparse.Namespace, console: Console
) -> tuple[list[TroubleRun], Mapping[str, str], Sequence[str]]:
    """Make all troubles, round after round; return the runs, the skipped troubles with reasons, and the differences."""
    async with AsyncExitStack() as entered:
        testbed = await entered.enter_async_context(
            Testbed(shards=arguments.shards, stream_shards=arguments.stream_shards)
        )
        servers = {name: testbed.server(place % arguments.shards) for place, name in enumerate(arguments.troubles)}
        faults, skipped = await prepare_faults(testbed, servers, arguments, entered)
        tasks = await entered.enter_async_context(asyncio.TaskGroup())
        sampling = tasks.create_task(testbed.memory.run(), name="memory")
        steady = testbed.start_flow(ChainPlan("steady", testbed.tenants_of()), rate=arguments.rate)
        await asyncio.sleep(WARM_UP_S)
        runs = []
        try:
            for _ in range(arguments.rounds):
                for name, fault in faults.items():
                    console.print(f"{name}: {servers[name].database}, {TROUBLES[name]}")
                    runs.append(await measure_trouble(testbed, steady, (name, servers[name], fault), arguments.seconds))
            await steady.producer.stop()
            was_applied = await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S)
            await testbed.stop_workers()
        finally:
            sampling.cancel()
            if arguments.worker_log is not None:
                shutil.copyfile(testbed.worker.log_path, arguments.worker_log)
        differences = await testbed.find_differences()
        if not was_applied:
            differences.append(f"some operations were not applied {APPLIED_WITHIN_S:g} s after the last trouble")
        if testbed.dead_letters:
            differences.append(f"{len(testbed.dead_letters)} dead letters, such as {testbed.dead_letters[0]}")
        return runs, skipped, differences


async def prepare_faults(
    testbed: Testbed,
    servers: Mapping[str, PostgresServer],
    arguments: argparse.Namespace,
    entered: AsyncExitStack,
) -> tuple[dict[str, FaultContext], dict[str, str]]:
    """Return the fault of each trouble, and by trouble the reason why it cannot be made here."""
    faults: dict[str, FaultContext] = {}
    skipped: dict[str, str] = {}
    for name, server in servers.items():
        match name:
            case "down":
                faults[name] = partial(killed, server)
            case "frozen":
                faults[name] = partial(frozen, server)
            case "slow":
                faults[name] = partial(slowed, server, "log_rows", statement_s=STATEMENT_S)
            case "connections":
                faults[name] = partial(without_connections, server)
            case "read-only":
                faults[name] = partial(read_only, server)
            case "standby":
                faults[name] = partial(in_recovery, server)
            case _:
                seconds = arguments.rounds * len(servers) * (2 * arguments.seconds + CATCH_UP_S)
                size = DISK_LEAST_BYTES + round(arguments.rate / arguments.shards * seconds) * ROW_BYTES
                try:
                    disk = await entered.enter_async_context(on_small_disk(server, testbed.stack.group, size))
                except NoDiskError as reason:
                    skipped[name] = str(reason)
                else:
                    faults[name] = partial(without_disk, server, disk, "log_batches", "log_rows")
    return faults, skipped


async def measure_trouble(
    testbed: Testbed, steady: Flow, case: tuple[str, PostgresServer, FaultContext], seconds: float
) -> TroubleRun:
    """Measure a control, make a trouble, and wait until the shard has caught up."""
    name, server, fault = case
    async with testbed.phase("control"):
        await asyncio.sleep(seconds)
    async with AsyncExitStack() as troubled:
        # The begin and the end of a trouble are part of its phase: they may cost most.
        async with testbed.phase(name):
            await troubled.enter_async_context(fault())
            begun_at = datetime.now(UTC)
            await asyncio.sleep(seconds)
        async with testbed.phase("afterwards"):
            ends_at = datetime.now(UTC)  # before the end: a server that only hung commits waiting statements at once
            await troubled.aclose()
            if not await poll_until(partial(is_writable, server, WRITE_SQL), within_s=BACK_WITHIN_S):
                raise SystemExit(f"expected {server.database} to accept writes {BACK_WITHIN_S:g} s after {name}")
            back_at = datetime.now(UTC)
            await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S)
            await asyncio.sleep(SETTLE_S)
    others = testbed.urls_without(server)
    control, during, after = [await testbed.measure_phase(phase, steady.plan, others) for phase in testbed.phases[-3:]]
    own_count = await count_completed([server.url], steady.plan, begun_at, during.phase.end)
    return TroubleRun(
        trouble=name,
        shard=server.database,
        control=control,
        during=during,
        after=after,
        own_rate=own_count / (during.phase.end - begun_at).total_seconds(),
        held_count=(await count_held(server.url, ends_at)).count,
        first_s=await read_first_s(server.url, back_at),
        last_s=(await count_held(server.url, back_at)).seconds,
    )


async def read_first_s(url: str, back_at: datetime) -> float | None:
    """Return how long after *back_at* every stream shard had committed an operation that had arrived before.

    None without such operations.
    """
    connection = await asyncpg.connect(url, timeout=10)
    try:
        seconds: float | None = await connection.fetchval(FIRST_SQL, back_at)
    finally:
        await connection.close()
    return seconds


def make_targets(runs: Sequence[TroubleRun], arguments: argparse.Namespace) -> Iterable[PerformanceTarget]:
    """Yield the targets of each trouble: of costs by the median of its rounds, of recovery by the slowest round."""
    for name in dict.fromkeys(one.trouble for one in runs):
        same = [one for one in runs if one.trouble == name]
        rate, p99 = median(one.rate_ratio for one in same), median(one.p99_ratio for one in same)
        yield PerformanceTarget(f"{name}: throughput of other shards ÷ control's", rate, least=arguments.rate_ratio)
        yield PerformanceTarget(f"{name}: p99 of other shards ÷ control's", p99, most=arguments.p99_ratio)
        if held_up := [one for one in same if one.held_count]:
            first = max(one.first_s or 0.0 for one in held_up)
            last = max(one.last_s or 0.0 for one in held_up)
            yield PerformanceTarget(
                f"{name}: first commit after the shard is back", first, arguments.first_seconds, unit="s"
            )
            yield PerformanceTarget(f"{name}: the shard has caught up", last, arguments.last_seconds, unit="s")


def median(values: Iterable[float | None]) -> float | None:
    """Return the median; none when a value is missing because a run could not measure it."""
    known = list(values)
    return None if None in known else statistics.median(value for value in known if value is not None)


def print_results(
    console: Console,
    runs: Sequence[TroubleRun],
    targets: Sequence[PerformanceTarget],
    skipped: Mapping[str, str],
    differences: Sequence[str],
) -> None:
    """Print tables for people."""
    table = Table(
        "trouble of", "phase", "seconds", "others' op/s", "p50", "p99", "longest", "shard's own op/s", "worker MiB"
    )
    for one in runs:
        for measured, own in ((one.control, None), (one.during, one.own_rate), (one.after, None)):
            rss = measured.rss_bytes
            table.add_row(
                one.shard,
                measured.phase.name,
                f"{measured.phase.seconds:.1f}",
                f"{measured.rate:.0f} ({format_number(ratio_of(measured.rate, one.control.rate))}×)",
                format_number(measured.p50_s, "s"),
                f"{format_number(measured.p99_s, 's')} ({format_number(ratio_of(measured.p99_s, one.control.p99_s))}×)",
                format_number(measured.longest_s, "s"),
                MISSING if own is None else format_number(own),
                MISSING if rss is None else f"{rss.most / 1024**2:.0f}",
                end_section=measured is one.after,
            )
    console.print(table)
    table = Table("trouble", "operations held", "first committed", "last committed", "(after the shard was back)")
    for one in runs:
        table.add_row(one.trouble, str(one.held_count), format_number(one.first_s, "s"), format_number(one.last_s, "s"))
    console.print(table)
    if p99s := [one.control.p99_s for one in runs if one.control.p99_s is not None]:
        # When they are far apart, other programs used the machine, and no comparison is reliable.
        console.print(f"p99 of the controls: {format_number(min(p99s), 's')} to {format_number(max(p99s), 's')}")
    console.print(targets_table(targets))
    for name, reason in skipped.items():
        console.print(f"skipped: {name}: {reason}", markup=False)
    print_differences(console, differences)


if __name__ == "__main__":
    main()
