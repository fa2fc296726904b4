"""Performance targets, and reports of a load for people and for programs."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from support.load.testbed import PhaseResult

MIB = 1024 * 1024
MISSING = "–"


@dataclass(frozen=True, slots=True)
class PerformanceTarget:
    """A target: *value* is at most *most* and at least *least*. No value, as when nothing was applied, misses it."""

    what: str
    value: float | None
    most: float = math.inf
    least: float = -math.inf
    unit: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the target is kept."""
        return self.value is not None and self.least <= self.value <= self.most

    def __str__(self) -> str:
        limits = [f"≤ {self.most:g}"] if self.most < math.inf else []
        limits += [f"≥ {self.least:g}"] if self.least > -math.inf else []
        return f"{' and '.join(limits)} {self.unit}".rstrip()


@dataclass
class LoadReport:
    """The results of a run. *control* is the phase with which the others are compared."""

    title: str
    phases: list[PhaseResult] = field(default_factory=list)
    targets: list[PerformanceTarget] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    facts: dict[str, float | None] = field(default_factory=dict)

    @property
    def control(self) -> PhaseResult:
        """The first phase, without any fault."""
        return self.phases[0]

    @property
    def status(self) -> int:
        """The exit status of `exit_status`."""
        return exit_status(self.targets, self.differences)

    def add_latency_targets(self, measured: PhaseResult, *, most_ratio: float, least_ratio: float) -> None:
        """Add the targets that *measured* is not much slower than the control and has not much less throughput."""
        name = measured.phase.name
        ratio = ratio_of(measured.p99_s, self.control.p99_s)
        self.targets.append(PerformanceTarget(f"{name}: p99 ÷ control's", ratio, most=most_ratio))
        ratio = ratio_of(measured.rate, self.control.rate)
        self.targets.append(PerformanceTarget(f"{name}: throughput ÷ control's", ratio, least=least_ratio))

    def add_memory_targets(self, growth_mib: float) -> None:
        """Add the targets that no phase takes more than *growth_mib* beyond the control."""
        before = self.control.rss_bytes
        for measured in self.phases[1:]:
            now = measured.rss_bytes
            growth = None if before is None or now is None else (now.most - before.most) / MIB
            self.targets.append(
                PerformanceTarget(f"{measured.phase.name}: growth of the worker", growth, most=growth_mib, unit="MiB")
            )

    def print(self, console: Console) -> None:
        """Print tables for people."""
        console.print(self._phase_table())
        console.print(self._processor_table())
        console.print(targets_table(self.targets))
        for what, value in self.facts.items():
            console.print(f"{what}: {format_number(value)}")
        print_differences(console, self.differences)

    def _phase_table(self) -> Table:
        table = Table("phase", "seconds", "operations/s", "p50", "p99", "longest", "worker MiB: least, median, most")
        table.title = self.title
        for one in self.phases:
            rss = one.rss_bytes
            memory = (rss.least, rss.median, rss.most) if rss else ()
            table.add_row(
                one.phase.name,
                f"{one.phase.seconds:.0f}",
                f"{one.rate:.0f} ({format_number(ratio_of(one.rate, self.control.rate))}×)",
                format_number(one.p50_s, "s"),
                f"{format_number(one.p99_s, 's')} ({format_number(ratio_of(one.p99_s, self.control.p99_s))}×)",
                format_number(one.longest_s, "s"),
                "  ".join(f"{size / MIB:.0f}" for size in memory) or MISSING,
            )
        return table

    def _processor_table(self) -> Table:
        names = list(dict.fromkeys(name for one in self.phases for name in one.phase.processors))
        table = Table("processors used", *names)
        for one in self.phases:
            table.add_row(one.phase.name, *(f"{one.phase.processors.get(name, 0):.2f}" for name in names))
        return table

    def as_json(self) -> str:
        """Return the report as JSON for programs."""
        return json.dumps(
            {
                "title": self.title,
                "phases": [one.as_json() for one in self.phases],
                "bounds": json_targets(self.targets),
                "facts": self.facts,
                "differences": self.differences,
            },
            indent=2,
        )


def targets_table(targets: Iterable[PerformanceTarget]) -> Table:
    """Return a table of *targets* for people."""
    table = Table("target", "measured", "promised", "")
    for target in targets:
        kept = "kept" if target.is_kept else "[bold red]MISSED[/]"
        table.add_row(target.what, format_number(target.value, target.unit), str(target), kept)
    return table


def json_targets(targets: Iterable[PerformanceTarget]) -> list[dict[str, Any]]:
    """Return *targets* as JSON objects for programs."""
    return [{"what": one.what, "value": one.value, "bound": str(one), "kept": one.is_kept} for one in targets]


def print_differences(console: Console, differences: Sequence[str]) -> None:
    """Print the differences between the expected rows and the rows on the shards."""
    console.print(f"lost, done twice, out of order or misplaced: {len(differences) or 'nothing'}")
    for difference in differences:
        console.print(f"  {difference}", markup=False, soft_wrap=True)


def ratio_of(value: float | None, to: float | None) -> float | None:
    """Return *value* ÷ *to*; none without a value, or when *to* is none or 0."""
    return None if value is None or not to else value / to


def format_number(value: float | None, unit: str = "") -> str:
    """Format a number for people."""
    if value is None:
        return MISSING
    digits = 0 if abs(value) >= 100 else 3 if abs(value) < 1 else 2
    return f"{value:.{digits}f} {unit}".rstrip()


class MeasuredRun(Protocol):
    """One run of a benchmark that compares a kind of trouble with a control."""

    def as_json(self) -> dict[str, Any]:
        """Return the run for `--json`."""


def add_kinds(parser: argparse.ArgumentParser, option: str, known: Iterable[str]) -> None:
    """Add *option*, a comma-separated choice of the kinds to measure, by default all *known* ones."""
    kinds = tuple(known)
    parser.add_argument(
        option, type=partial(_parse_kinds, kinds), default=",".join(kinds), help="comma-separated; default: %(default)s"
    )


def _parse_kinds(known: Sequence[str], text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in known]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return kinds


def report_runs(
    runs: Iterable[MeasuredRun],
    targets: Sequence[PerformanceTarget],
    differences: Sequence[str],
    *,
    as_json: bool,
    **more: object,
) -> int:
    """Print what was measured as JSON, if *as_json*, with *more* members; return the exit status."""
    if as_json:
        answer = {"runs": [one.as_json() for one in runs], "bounds": json_targets(targets)}
        print(json.dumps(answer | more | {"differences": list(differences)}, indent=2))  # the result
    return exit_status(targets, differences)


def exit_status(targets: Iterable[PerformanceTarget], differences: Sequence[str]) -> int:
    """Return 1 when a target is missed or a row differs, else 0."""
    return 0 if not differences and all(target.is_kept for target in targets) else 1
