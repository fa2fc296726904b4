"""Measure whether a worker that applies operations answers its probes in time while its HTTP server is flooded.

    python -m benchmarks.floods [--rate 300] [--seconds 8] [--rounds 1] [--floods metrics,shards] [--json]

Starts the embedded stack, a worker and a producer, and one process a flood. Each flood has a control just before it:
the same load and the same probes without a flood. A probe is a request of `/livez` or `/readyz` on a new connection,
and the event loop's lateness is the worker's own metric. Exit status 1 when a probe takes more than a second of wall
time or has another answer than 200, or the loop is later than in the control by more than 100 ms (the most of each
phase; of several rounds the median), or a row differs at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import aiohttp
from rich.console import Console
from rich.table import Table
from support.load.console import open_console
from support.load.operation_chains import ChainPlan
from support.load.testbed import Flow, PhaseResult, Testbed

from benchmarks import http_flood
from benchmarks.targets import (
    PerformanceTarget,
    add_kinds,
    format_number,
    print_differences,
    ratio_of,
    report_runs,
    targets_table,
)

PROBE_WITHIN_S: Final = 1.0
LATER_MOST_S: Final = 0.1
PROBE_INTERVAL_S: Final = 0.05
LATENESS_INTERVAL_S: Final = 0.5  # the worker's metrics are rendered once a second
TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
WARM_UP_S: Final = 5.0
SETTLE_S: Final = 1.0
APPLIED_WITHIN_S: Final = 120.0
PROBES: Final = ("/livez", "/readyz")
LATENESS: Final = re.compile(r"^simplu_event_loop_lag_seconds (\S+)", re.MULTILINE)
HALF_SENT: Final = "GET /livez HTTP/1.1\r\nHost: "


@dataclass(frozen=True, slots=True)
class Flood:
    """A flood: what it is, and the arguments of `benchmarks.http_flood`."""

    what: str
    how: str
    connections: int
    path: str | None = None

    def arguments(self, port: int, token: str, seconds: float) -> dict[str, Any]:
        """Return the arguments of the flood's program."""
        payload = HALF_SENT
        if self.path is not None:
            payload = f"GET {self.path} HTTP/1.1\r\nHost: worker\r\nAuthorization: Bearer {token}\r\n\r\n"
        return {
            "port": port,
            "how": self.how,
            "payload": payload,
            "connections": self.connections,
            "seconds": seconds,
        }


FLOODS: Final[Mapping[str, Flood]] = {
    "half-sent": Flood("1,000 connections with half a request", "hold", 1000),
    "again": Flood("half a request on one new connection after the other", "replace", 500),
    "metrics": Flood("50 clients of /metrics", "ask", 50, "/metrics"),
    "shards": Flood("100 clients of /shards with the token", "ask", 100, "/shards"),
}


@dataclass
class Answers:
    """The answers to the probes of a phase."""

    taken_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lateness_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class FloodRun:
    """One flood in one round, with its control."""

    name: str
    phases: tuple[PhaseResult, PhaseResult]
    answers: tuple[Answers, Answers]

    @property
    def later_s(self) -> float | None:
        """By how much the event loop was later than in the control."""
        control, during = (max(one.lateness_s, default=None) for one in self.answers)
        return None if control is None or during is None else during - control

    def as_json(self) -> dict[str, Any]:
        """Return the run for `--json`."""
        return {
            "flood": self.name,
            "phases": [
                one.as_json()
                | {"longestProbeSeconds": max(answers.taken_s, default=None), "failedProbes": answers.failed}
                | {"loopLatenessSeconds": max(answers.lateness_s, default=None)}
                for one, answers in zip(self.phases, self.answers, strict=True)
            ],
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=300.0, help="operations/s")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each control and each flood")
    parser.add_argument("--rounds", type=int, default=1)
    add_kinds(parser, "--floods", FLOODS)
    parser.add_argument("--probe-seconds", type=float, default=PROBE_WITHIN_S, help="maximum of a probe")
    parser.add_argument(
        "--later-seconds", type=float, default=LATER_MOST_S, help="maximum of the event loop's lateness"
    )
    parser.add_argument("--json", action="store_true")
    sys.exit(asyncio.run(run(parser.parse_args())))


async def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    console = open_console(as_json=arguments.json, piped_width=150)
    runs, differences = await measure(arguments, console)
    targets = list(make_targets(runs, arguments))
    print_results(console, runs, targets, differences)
    return report_runs(runs, targets, differences, as_json=arguments.json)


async def measure(arguments: argparse.Namespace, console: Console) -> tuple[list[FloodRun], list[str]]:
    """Make all floods, round after round; return the runs, and the differences of the rows."""
    async with Testbed(shards=2, stream_shards=2) as testbed, asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(testbed.memory.run(), name="memory")
        steady = testbed.start_flow(ChainPlan("steady", testbed.tenants_of()), rate=arguments.rate)
        await asyncio.sleep(WARM_UP_S)
        runs = []
        for _ in range(arguments.rounds):
            for name in arguments.floods:
                console.print(f"{name}: {FLOODS[name].what}")
                runs.append(await measure_flood(testbed, steady, name, arguments.seconds))
        await steady.producer.stop()
        is_applied = await testbed.wait_until_applied(testbed.urls, within_s=APPLIED_WITHIN_S)
        await testbed.stop_workers()
        sampling.cancel()
        differences = await testbed.find_differences()
        if not is_applied:
            differences.append(f"some operations were not applied {APPLIED_WITHIN_S:g} s after the last flood")
        return runs, differences


async def measure_flood(testbed: Testbed, steady: Flow, name: str, seconds: float) -> FloodRun:
    """Measure a control, then a flood."""
    answers = []
    async with testbed.phase("control"):
        answers.append(await probe(testbed.worker.url, seconds))
    config = FLOODS[name].arguments(testbed.worker.port, testbed.stack.env["API_TOKEN"], seconds + SETTLE_S)
    with flooding(config):
        async with testbed.phase(name):
            answers.append(await probe(testbed.worker.url, seconds))
    await asyncio.sleep(SETTLE_S)
    control, during = [await testbed.measure_phase(one, steady.plan, testbed.urls) for one in testbed.phases[-2:]]
    return FloodRun(name, (control, during), (answers[0], answers[1]))


@contextmanager
def flooding(config: Mapping[str, Any]) -> Iterator[None]:
    """Run a flood in a process of its own."""
    command = [sys.executable, http_flood.__file__, json.dumps(config)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


async def probe(url: str, seconds: float) -> Answers:
    """Probe a worker for *seconds*, and read its event loop's lateness."""
    answers = Answers()
    async with asyncio.TaskGroup() as tasks:
        for path in PROBES:
            tasks.create_task(repeat(partial(probe_once, f"{url}{path}", answers), PROBE_INTERVAL_S, seconds))
        tasks.create_task(repeat(partial(read_lateness, url, answers), LATENESS_INTERVAL_S, seconds))
    return answers


async def repeat(act: Callable[[], Any], interval_s: float, seconds: float) -> None:
    """Await *act* again and again for *seconds*."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    while loop.time() < ends_at:
        await act()
        await asyncio.sleep(interval_s)


async def probe_once(url: str, answers: Answers) -> None:
    """Send one probe on a new connection, as an orchestrator does."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, session.get(url) as answer:
            if answer.status != 200:
                answers.failed.append(f"{url}: {answer.status}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        answers.failed.append(f"{url}: {type(error).__name__}")
    answers.taken_s.append(loop.time() - began_at)


async def read_lateness(url: str, answers: Answers) -> None:
    """Read the lateness of the event loop from the worker's metrics."""
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, session.get(f"{url}/metrics") as answer:
            found = LATENESS.search(await answer.text())
    except (aiohttp.ClientError, TimeoutError, OSError):
        return  # a scrape has no promise beyond that of probes
    if found is not None:
        answers.lateness_s.append(float(found[1]))


def make_targets(runs: Sequence[FloodRun], arguments: argparse.Namespace) -> Iterator[PerformanceTarget]:
    """Yield the targets of each flood."""
    for name in dict.fromkeys(one.name for one in runs):
        same = [one for one in runs if one.name == name]
        longest = statistics.median(max(one.answers[1].taken_s) for one in same)
        yield PerformanceTarget(f"{name}: the longest probe", longest, most=arguments.probe_seconds, unit="s")
        failed = float(sum(len(one.answers[1].failed) for one in same))
        yield PerformanceTarget(f"{name}: probes without an answer 200", failed, most=0)
        known = [one.later_s for one in same if one.later_s is not None]
        later = statistics.median(known) if len(known) == len(same) else None
        yield PerformanceTarget(
            f"{name}: the event loop later than the control's", later, arguments.later_seconds, unit="s"
        )


def print_results(
    console: Console, runs: Sequence[FloodRun], targets: Sequence[PerformanceTarget], differences: Sequence[str]
) -> None:
    """Print tables for people."""
    table = Table("phase", "op/s", "p50", "p99", "probes", "p99 of probes", "longest", "loop's lateness", "worker")
    for one in runs:
        for measured, answers in zip(one.phases, one.answers, strict=True):
            taken_s = sorted(answers.taken_s)
            table.add_row(
                measured.phase.name,
                f"{measured.rate:.0f} ({format_number(ratio_of(measured.rate, one.phases[0].rate))}×)",
                format_number(measured.p50_s, "s"),
                format_number(measured.p99_s, "s"),
                str(len(taken_s)),
                format_number(taken_s[len(taken_s) * 99 // 100], "s"),
                format_number(taken_s[-1], "s"),
                format_number(max(answers.lateness_s, default=None), "s"),
                f"{measured.phase.processors.get('worker', 0):.2f}",
                end_section=measured is one.phases[1],
            )
    console.print(table)
    console.print(targets_table(targets))
    for failed in sorted({text for one in runs for text in one.answers[1].failed}):
        console.print(f"failed: {failed}", markup=False)
    print_differences(console, differences)


if __name__ == "__main__":
    main()
