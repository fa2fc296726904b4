"""What the throughput benchmark found, and what was promised of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from support.load.targets import PerformanceTarget, format_number

from benchmarks.throughput.measures import Idle, Latency, Orders
from benchmarks.throughput.runs import Cell, Range, Run, Who, of, ratios

MB = 1_000_000
THEIRS = 4  # stream shards that async-kinesis is measured with
WORKER = Cell(Who.WORKER, 32)
BARE = Cell(Who.BARE, 32)
LANES = Cell(Who.LANES, THEIRS)
SEQUENCE = Cell(Who.SEQUENCE, THEIRS)
BOUND_CELLS = tuple(
    cell._replace(commit=commit) for commit in ("on", "off") for cell in (WORKER, BARE, LANES, SEQUENCE)
)

LEAST_OF_LANES, LEAST_OF_SEQUENCE, LEAST_OF_BARE = 10.0, 25.0, 0.75
CLIENT_MOST_US = 8.0
CLIENT_MOST_OF_LANES = 8 / 138  # the same, where async-kinesis took 138 µs: whatever the machine
P99_MOST_S = 0.3
IDLE_MOST = 0.02
READY_MOST_S = 1.0
RSS_MOST_MB = 200.0
GROWTH_MOST_MB = 10.0
LINEAR_LEAST = 0.85
REPLICAS_CPU_MOST, REPLICAS_RATE_LEAST = 1.15, 0.9


class Machine(msgspec.Struct, frozen=True):
    """On what it was measured; *load* is that of the minute before, by other programs."""

    at: str
    model: str
    cores: int
    python: str
    commit: str
    load: float


@dataclass(frozen=True, slots=True)
class Target(PerformanceTarget):
    """A bound, and how what was measured is spelled where it is the middle of several rounds."""

    spelled: str = ""

    @property
    def measured(self) -> str:
        """What was measured, for people."""
        return self.spelled or format_number(self.value, self.unit)


def target(what: str, rounds: Range, *, digits: int = 2, unit: str = "", **limits: float) -> Target:
    """Return the target that the middle of *rounds* is to keep."""
    return Target(what, rounds.median, **limits, unit=unit, spelled=f"{spread(rounds, digits)} {unit}".rstrip())


class Results(msgspec.Struct, rename="camel"):
    """Everything that was measured; what was not is empty."""

    machine: Machine
    rounds: int
    seconds: float
    records: int
    runs: list[Run] = []
    replicas: list[tuple[Run, Run]] = []
    starts: list[float] = []
    latency: Latency | None = None
    idle: Idle | None = None
    orders: list[Orders] = []
    stalls: list[str] = []  # runs in which somebody got nowhere

    def cells(self) -> list[Cell]:
        """Return what was measured, once each."""
        return list(dict.fromkeys(run.cell for run in sorted(self.runs, key=_order)))

    def lines(self) -> list[list[str]]:
        """Return a table of all cells: who, where, the rate with its spread, processor time, memory."""
        return [
            [
                str(cell.who),
                str(cell.stream_shards),
                str(cell.shards),
                cell.commit,
                spread(of(self.runs, cell, lambda run: run.rate), 0),
                spread(of(self.runs, cell, lambda run: run.client_us), 1),
                spread(of(self.runs, cell, lambda run: run.server_us), 1),
                spread(of(self.runs, cell, lambda run: run.rss_most_bytes / MB), 0),
            ]
            for cell in self.cells()
        ]

    def median(self, cell: Cell, value: Callable[[Run], float]) -> float | None:
        """Return the middle of a cell's figures."""
        found = of(self.runs, cell, value)
        return None if found is None else found.median

    def targets(self) -> list[Target]:
        """Return every target that something was measured for."""
        found = [*self._rate_targets(), *self._cost_targets(), *self._linear_targets(), *self._replica_targets()]
        if self.runs:
            found.append(Target("runs in which somebody got nowhere", len(self.stalls), most=0))
        return found

    def _rate_targets(self) -> list[Target]:
        return [
            target(f"worker ÷ {other.who}, synchronous_commit {commit}", ratio, least=least)
            for commit in ("on", "off")
            for other, least in ((LANES, LEAST_OF_LANES), (SEQUENCE, LEAST_OF_SEQUENCE), (BARE, LEAST_OF_BARE))
            if (ratio := ratios(self.runs, WORKER._replace(commit=commit), other._replace(commit=commit))) is not None
        ]

    def _cost_targets(self) -> list[Target]:
        found = []
        full = [run for run in self.runs if run.cell in {WORKER, WORKER._replace(commit="off")}]
        if full:
            client_us = Range.of([run.client_us for run in full])
            found.append(target("processor time of the worker a record", client_us, most=CLIENT_MOST_US, unit="µs"))
            for commit in ("on", "off"):
                cells = WORKER._replace(commit=commit), LANES._replace(commit=commit)
                if (ratio := ratios(self.runs, *cells, lambda run: run.client_us)) is not None:
                    what = f"the same ÷ that of {LANES.who}, synchronous_commit {commit}"
                    found.append(target(what, ratio, most=CLIENT_MOST_OF_LANES, digits=3))
            rss = max(run.rss_most_bytes for run in full) / MB
            found.append(Target("memory at full speed", rss, most=RSS_MOST_MB, unit="MB"))
            growth = Range.of([(run.rss_most_bytes - run.rss_begin_bytes) / MB for run in full])
            found.append(target("its growth while the backlog is read", growth, most=GROWTH_MOST_MB, unit="MB"))
        if self.latency is not None:
            what = f"p99 from arrival to commit at {self.latency.rate:.0f}/s"
            found.append(Target(what, self.latency.p99_s, most=P99_MOST_S, unit="s"))
        if self.idle is not None:
            what = f"idle with {self.idle.stream_shards} stream shards, of a core"
            found.append(Target(what, self.idle.client_cores, most=IDLE_MOST))
        if self.starts:
            found.append(target("start to ready", Range.of(self.starts), most=READY_MOST_S, unit="s"))
        return found

    def _linear_targets(self) -> list[Target]:
        """Twice the stream shards, twice the rate, until the core is full: then the most that was reached."""
        rates = {
            cell.stream_shards: rate
            for cell in self.cells()
            if cell.who is Who.WORKER and cell.shards == 1 and cell.commit == "off"
            if (rate := self.median(cell, lambda run: run.rate)) is not None
        }
        if 1 not in rates or len(rates) < 2:
            return []
        full = max(rates.values())
        return [
            Target(f"rate with {count} stream shards ÷ {count} × that with one, or the most", share, least=LINEAR_LEAST)
            for count, rate in sorted(rates.items())
            if count > 1 and count <= 16
            for share in (rate / min(count * rates[1], full),)
        ]

    def _replica_targets(self) -> list[Target]:
        if not self.replicas:
            return []
        rate = Range.of([two.rate / one.rate for one, two in self.replicas])
        cost = Range.of([two.client_us / one.client_us for one, two in self.replicas])
        return [
            target("two replicas ÷ one: rate", rate, least=REPLICAS_RATE_LEAST),
            target("two replicas ÷ one: processor time a record", cost, most=REPLICAS_CPU_MOST),
        ]


def spread(found: Range | None, digits: int) -> str:
    """Spell the middle and, where there is one, the spread."""
    if found is None:
        return "–"
    least, median, most = (f"{value:,.{digits}f}" for value in found)
    return median if least == most else f"{median} ({least} to {most})"


def _order(run: Run) -> tuple[int, int, Sequence[str], int]:
    return run.shards, list(Who).index(run.who), (run.commit,), run.stream_shards
