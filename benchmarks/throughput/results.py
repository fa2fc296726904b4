"""The results of the throughput benchmark and their targets. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from support.processes.resource_usage import ValueRange

from benchmarks.targets import PerformanceTarget, format_number
from benchmarks.throughput.low_load import LowLoadFigures
from benchmarks.throughput.measures import LatencyFigures, OrderFigures
from benchmarks.throughput.mixes import REALISTIC
from benchmarks.throughput.runs import Cell, Contender, Run, range_of, ratio_range
from benchmarks.throughput.startup import IdleFigures, StartFigures, start_range
from benchmarks.throughput.watching import WatchFigures

MB = 1_000_000
ASYNC_KINESIS_STREAM_SHARDS = 4  # as many as async-kinesis reads without losing records
WORKER = Cell(Contender.WORKER, 32)
BARE = Cell(Contender.BARE, 32)
LANES = Cell(Contender.LANES, ASYNC_KINESIS_STREAM_SHARDS)
SEQUENCE = Cell(Contender.SEQUENCE, ASYNC_KINESIS_STREAM_SHARDS)
BOUND_CELLS = tuple(
    cell._replace(commit=commit) for commit in ("on", "off") for cell in (WORKER, BARE, LANES, SEQUENCE)
)

LEAST_OF_LANES, LEAST_OF_SEQUENCE, LEAST_OF_BARE = 10.0, 25.0, 0.75
CLIENT_MOST_US = 8.0
CLIENT_MOST_OF_LANES = 8 / 138  # the same on any machine: async-kinesis took 138 µs on the first one
P99_MOST_S = 0.3
IDLE_MOST = 0.025
LOW_MOST_US = 350.0
WATCHED_IDLE_MOST, WATCHED_MOST = 0.01, 1.05
READY_MOST_S, HELP_MOST_S = 1.2, 0.5
RSS_MOST_MB = 200.0
GROWTH_MOST_MB = 10.0
LINEAR_LEAST = 0.85
REPLICAS_CPU_MOST, REPLICAS_RATE_LEAST = 1.15, 0.9


def _rate(run: Run) -> float:
    return run.rate


def _client_us(run: Run) -> float:
    return run.client_us


def _server_us(run: Run) -> float:
    return run.server_us


def _wal_bytes(run: Run) -> float:
    return run.wal_bytes


def _disk_bytes(run: Run) -> float:
    return run.disk_bytes


def _rss_mb(run: Run) -> float:
    return run.rss_most_bytes / MB


class MixTarget(NamedTuple):
    """A target for the realistic mix: at most so much a record."""

    name: str
    value: Callable[[Run], float]
    most: float
    unit: str
    digits: int


MIX_TARGETS = (
    MixTarget("processor time of the worker a record", _client_us, 12.0, "µs", 1),
    MixTarget("processor time of Postgres a record", _server_us, 30.0, "µs", 1),
    MixTarget("WAL a record", _wal_bytes, 1600.0, "bytes", 0),
    MixTarget("disk a record", _disk_bytes, 1200.0, "bytes", 0),
)


class Machine(msgspec.Struct, frozen=True):
    """The machine of the measurement; *load* is that of other programs in the minute before."""

    at: str
    model: str
    cores: int
    python: str
    commit: str
    load: float


@dataclass(frozen=True, slots=True)
class MeasuredTarget(PerformanceTarget):
    """A target; *spelled* is its measured value with the range, when it is the median of several rounds."""

    spelled: str = ""

    @property
    def measured(self) -> str:
        """The measured value, for people."""
        return self.spelled or format_number(self.value, self.unit)


def range_target(what: str, rounds: ValueRange, *, digits: int = 2, unit: str = "", **limits: float) -> MeasuredTarget:
    """Return a target for the median of *rounds*."""
    return MeasuredTarget(
        what, rounds.median, **limits, unit=unit, spelled=f"{format_range(rounds, digits)} {unit}".rstrip()
    )


class ThroughputResults(msgspec.Struct, rename="camel"):
    """All measurements; those that were not made are empty."""

    machine: Machine
    rounds: int
    seconds: float
    records: int
    runs: list[Run] = []
    replicas: list[tuple[Run, Run]] = []
    starts: list[StartFigures] = []
    latency: LatencyFigures | None = None
    idle: IdleFigures | None = None
    low_loads: list[LowLoadFigures] = []
    watching: WatchFigures | None = None
    orders: list[OrderFigures] = []
    mixes: list[Run] = []  # runs of records as users have them
    mix_rounds: int = 0
    mix_seconds: float = 0.0
    mix_records: int = 0
    peers: list[Run] = []  # in turns, on realistic records
    peer_latencies: list[LatencyFigures] = []
    stalls: list[str] = []  # runs without progress

    def cells(self) -> list[Cell]:
        """Return the measured cells, once each."""
        return list(dict.fromkeys(run.cell for run in sorted(self.runs, key=_order)))

    def lines(self) -> list[list[str]]:
        """Return the rows of a table of all cells: contender, shards, medians of rate and cost."""
        return [
            [
                str(cell.contender),
                str(cell.stream_shards),
                str(cell.shards),
                cell.commit,
                *(
                    f"{self.median(cell, value):,.{digits}f}"
                    for value, digits in ((_rate, 0), (_client_us, 1), (_server_us, 1), (_rss_mb, 0))
                ),
            ]
            for cell in self.cells()
        ]

    def mix_lines(self) -> list[list[str]]:
        """Return the rows of a table of all mixes: medians of rate and of what a record costs."""
        rows = dict.fromkeys((run.mix, run.worker, run.contender) for run in self.mixes)
        return [self._mix_line(mix, worker, contender) for mix, worker, contender in rows]

    def _mix_line(self, mix: str, worker: str, contender: Contender) -> list[str]:
        runs = [run for run in self.mixes if (run.mix, run.worker, run.contender) == (mix, worker, contender)]
        name = mix if contender is Contender.WORKER else f"{mix}, {contender}"
        values = ((_rate, 0), (_client_us, 1), (_server_us, 1), (_wal_bytes, 0), (_disk_bytes, 0), (_rss_mb, 0))
        return [
            f"{name}, worker of {worker}" if worker else name,
            *(f"{statistics.median(map(value, runs)):,.{digits}f}" for value, digits in values),
        ]

    def mix_ratios(self) -> list[list[str]]:
        """Return the rows of a table that compares this worker with that of another checkout, by mix."""
        others = dict.fromkeys((run.mix, run.worker) for run in self.mixes if run.worker)
        return [
            [
                mix,
                other,
                *(
                    format_range(self._mix_ratio(mix, other, value), 2)
                    for value in (_rate, _client_us, _server_us, _wal_bytes, _disk_bytes)
                ),
            ]
            for mix, other in others
        ]

    def _mix_ratio(self, mix: str, other: str, value: Callable[[Run], float]) -> ValueRange | None:
        """Return the range of this worker's *value* ÷ the other one's, by round."""
        by_worker = {
            (run.round, run.worker): value(run)
            for run in self.mixes
            if run.mix == mix and run.contender is Contender.WORKER
        }
        found = [
            own / by_worker[number, other]
            for (number, worker), own in by_worker.items()
            if not worker and (number, other) in by_worker
        ]
        return ValueRange.from_values(found) if found else None

    def mix_targets(self) -> list[MeasuredTarget]:
        """Return the targets of the realistic mix."""
        runs = [
            run for run in self.mixes if (run.mix, run.worker, run.contender) == (REALISTIC.name, "", Contender.WORKER)
        ]
        if not runs:
            return []
        return [
            range_target(
                f"realistic records: {one.name}",
                ValueRange.from_values([one.value(run) for run in runs]),
                digits=one.digits,
                unit=one.unit,
                most=one.most,
            )
            for one in MIX_TARGETS
        ]

    def median(self, cell: Cell, value: Callable[[Run], float]) -> float | None:
        """Return the median of a cell's figures; none without a run."""
        found = range_of(self.runs, cell, value)
        return None if found is None else found.median

    @property
    def has_comparison(self) -> bool:
        """Whether anything but the mixes was measured."""
        return bool(self.runs or self.starts or self.orders or self.latency or self.idle or self.low_loads)

    def targets(self) -> list[MeasuredTarget]:
        """Return every target with a measurement."""
        return [*self.mix_targets(), *self.comparison_targets()]

    def comparison_targets(self) -> list[MeasuredTarget]:
        """Return the targets beside those of the mixes."""
        found = [*self._rate_targets(), *self._cost_targets(), *self._low_targets(), *self._rest_targets()]
        found += [*self._linear_targets(), *self._replica_targets()]
        if self.runs:
            found.append(MeasuredTarget("runs without progress", len(self.stalls), most=0))
        return found

    def _rate_targets(self) -> list[MeasuredTarget]:
        return [
            range_target(f"worker ÷ {other.contender}, synchronous_commit {commit}", ratio, least=least)
            for commit in ("on", "off")
            for other, least in ((LANES, LEAST_OF_LANES), (SEQUENCE, LEAST_OF_SEQUENCE), (BARE, LEAST_OF_BARE))
            if (ratio := ratio_range(self.runs, WORKER._replace(commit=commit), other._replace(commit=commit)))
            is not None
        ]

    def _cost_targets(self) -> list[MeasuredTarget]:
        found = []
        full = [run for run in self.runs if run.cell in {WORKER, WORKER._replace(commit="off")}]
        if full:
            client_us = ValueRange.from_values([run.client_us for run in full])
            found.append(
                range_target("processor time of the worker a record", client_us, most=CLIENT_MOST_US, unit="µs")
            )
            for commit in ("on", "off"):
                cells = WORKER._replace(commit=commit), LANES._replace(commit=commit)
                if (ratio := ratio_range(self.runs, *cells, lambda run: run.client_us)) is not None:
                    what = f"the same ÷ that of {LANES.contender}, synchronous_commit {commit}"
                    found.append(range_target(what, ratio, most=CLIENT_MOST_OF_LANES, digits=3))
            rss = max(run.rss_most_bytes for run in full) / MB
            found.append(MeasuredTarget("memory at full speed", rss, most=RSS_MOST_MB, unit="MB"))
            growth = ValueRange.from_values([(run.rss_most_bytes - run.rss_begin_bytes) / MB for run in full])
            found.append(range_target("its growth while the backlog is read", growth, most=GROWTH_MOST_MB, unit="MB"))
        if self.latency is not None:
            what = f"p99 from arrival to commit at {self.latency.rate:.0f}/s"
            found.append(MeasuredTarget(what, self.latency.p99_s, most=P99_MOST_S, unit="s"))
        return found

    def _low_targets(self) -> list[MeasuredTarget]:
        """Return targets of few records, and of a worker that is watched."""
        found = []
        if own := [one for one in self.low_loads if not one.worker]:
            what = f"processor time of the worker a record at {own[0].rate:.0f}/s"
            cost = ValueRange.from_values([one.client_us for one in own])
            found.append(range_target(what, cost, digits=0, most=LOW_MOST_US, unit="µs"))
        if self.watching is not None:
            more, ratios = (
                ValueRange.from_values(one) for one in (self.watching.idle_more, self.watching.record_ratios)
            )
            what = "listened to and scraped: idle, more of a core"
            found.append(range_target(what, more, digits=4, most=WATCHED_IDLE_MOST))
            what = "the same at full speed ÷ alone: processor time a record"
            found.append(range_target(what, ratios, most=WATCHED_MOST))
        return found

    def low_load_ratios(self) -> list[list[str]]:
        """Return, by other worker, the range of a record's processor time here ÷ there, by round, with few records."""
        by_worker = {(one.round, one.worker): one.client_us for one in self.low_loads}
        found: defaultdict[str, list[float]] = defaultdict(list)
        for (number, other), theirs in by_worker.items():
            if other and (number, "") in by_worker:
                found[other].append(by_worker[number, ""] / theirs)
        return [[other, format_range(ValueRange.from_values(ratios), 2)] for other, ratios in found.items()]

    def _rest_targets(self) -> list[MeasuredTarget]:
        """Return targets of idling and of starts."""
        found = []
        if (idle := self.idle) is not None:
            what = f"idle with {idle.stream_shards} stream shards, of a core"
            found.append(MeasuredTarget(what, idle.client_cores, most=IDLE_MOST))
        if self.starts:
            for what, name, most_s in (
                ("start to ready", "ready_s", READY_MOST_S),
                ("`--help`", "help_s", HELP_MOST_S),
            ):
                found.append(range_target(what, start_range(self.starts, name), most=most_s, unit="s"))
        return found

    def _linear_targets(self) -> list[MeasuredTarget]:
        """Return targets of linear growth: the rate grows with the stream shards, up to the greatest measured rate."""
        rates = {
            cell.stream_shards: rate
            for cell in self.cells()
            if cell.contender is Contender.WORKER and cell.shards == 1 and cell.commit == "off"
            if (rate := self.median(cell, lambda run: run.rate)) is not None
        }
        if 1 not in rates or len(rates) < 2:
            return []
        full = max(rates.values())
        return [
            MeasuredTarget(
                f"rate with {count} stream shards ÷ {count} × that with one, or the most", share, least=LINEAR_LEAST
            )
            for count, rate in sorted(rates.items())
            if count > 1 and count <= 16
            for share in (rate / min(count * rates[1], full),)
        ]

    def _replica_targets(self) -> list[MeasuredTarget]:
        if not self.replicas:
            return []
        rate = ValueRange.from_values([two.rate / one.rate for one, two in self.replicas])
        cost = ValueRange.from_values([two.client_us / one.client_us for one, two in self.replicas])
        return [
            range_target("two replicas ÷ one: rate", rate, least=REPLICAS_RATE_LEAST),
            range_target("two replicas ÷ one: processor time a record", cost, most=REPLICAS_CPU_MOST),
        ]


def format_range(found: ValueRange | None, digits: int) -> str:
    """Format the median and, unless all values are equal, the range; a dash without values."""
    if found is None:
        return "–"
    least, median, most = (f"{value:,.{digits}f}" for value in found)
    return median if least == most else f"{median} ({least} to {most})"


def _order(run: Run) -> tuple[int, int, Sequence[str], int]:
    return run.shards, list(Contender).index(run.contender), (run.commit,), run.stream_shards
