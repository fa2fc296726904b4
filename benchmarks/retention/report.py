"""The results of the retention benchmark: samples, fifths of the way, and the targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.targets import MIB, PerformanceTarget, format_number, ratio_of, targets_table
from benchmarks.throughput.results import Machine

FIFTHS: Final = 5
LOG_MOST: Final = 1.15
P99_MOST: Final = 1.2
LATE_MOST: Final = 1.15
HEAD: Final = (
    "fifth",
    "operations/s",
    "log, rows",
    "log, MiB",
    "its key",
    "by batch",
    "dead rows, most",
    "vacuums",
    "resources, MiB",
    "WAL, bytes",
    "deletion, µs",
    "share",
    "worker, µs",
    "Postgres, µs",
    "worker, MiB",
    "p50",
    "p99",
)


class Sample(msgspec.Struct, frozen=True, rename="camel"):
    """One sample: counts and seconds since the begin, sizes in bytes, and the latencies since the sample before."""

    at_s: float
    operations: int
    sizes: dict[str, float]
    deletions: dict[str, float]
    latencies_s: list[float]
    worker_rss_bytes: int
    worker_s: float
    server_s: float
    unread: int
    waited_s: float

    @property
    def log_rows(self) -> float:
        """The rows of the log that were inserted and not deleted."""
        return self.sizes["inserted"] - self.sizes["deleted"]


class RetentionResults(msgspec.Struct, rename="camel"):
    """The results of a run; *rate* is in operations/s."""

    machine: Machine
    operations: int
    kept: int
    rate: float
    samples: list[Sample] = msgspec.field(default_factory=list)  # the last one is at the end
    bloat: dict[str, float] = msgspec.field(default_factory=dict)
    failed: int = 0

    @property
    def kept_s(self) -> float:
        """The time that a row of the log stays."""
        return self.kept / self.rate


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which that share of *values* is; none without values."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else None


def fifth_of(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    """Return the samples of a fifth of the way, from 1 on."""
    size = len(samples) // FIFTHS
    return samples[(number - 1) * size : number * size]


def latency_of(samples: Sequence[Sample], share: float) -> float | None:
    """Return a quantile of the times from arrival to commit of the trickle."""
    return quantile([value for one in samples for value in one.latencies_s], share)


def since_full(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples from the end of the second fifth on, by which the log has had its length for a while."""
    return samples[2 * len(samples) // FIFTHS - 1 :]


def growth_of(samples: Sequence[Sample], name: str) -> float | None:
    """Return the most ÷ the first of a size since the end of the second fifth."""
    sizes = [one.sizes[name] for one in since_full(samples)]
    return ratio_of(max(sizes), sizes[0])


def make_targets(results: RetentionResults, *, slack: float = 1.0) -> list[PerformanceTarget]:
    """Return the targets; *slack* is a factor of the bounds."""
    samples, kept_s = results.samples, results.kept_s
    since = "most ÷ at the end of the second fifth"
    p99 = ratio_of(latency_of(fifth_of(samples, FIFTHS), 0.99), latency_of(fifth_of(samples, 2), 0.99))
    oldest_s = max(one.sizes["oldest_s"] for one in since_full(samples))
    return [
        PerformanceTarget(
            f"bytes of the log and its indexes, {since}", growth_of(samples, "log_bytes"), LOG_MOST * slack
        ),
        PerformanceTarget(f"bytes of the resources, {since}", growth_of(samples, "resources_bytes"), LOG_MOST * slack),
        PerformanceTarget("p99 of the last fifth ÷ of the second one", p99, P99_MOST * slack),
        PerformanceTarget("age of the oldest row ÷ the time that rows are kept", oldest_s / kept_s, LATE_MOST * slack),
        PerformanceTarget("operations that failed", results.failed, 0),
    ]


def line_of(one: Sample) -> str:
    """Return a line on a sample, to follow the run."""
    return (
        f"{one.at_s:.0f} s: {one.operations} operations, {one.log_rows:.0f} rows in the log, oldest "
        f"{one.sizes['oldest_s']:.1f} s, {one.sizes['log_bytes'] / MIB:.0f} MiB, dead {one.sizes['log_dead']:.0f}; "
        f"p99 {format_number(quantile(one.latencies_s, 0.99), 's')}; worker {one.worker_rss_bytes / MIB:.0f} MiB; "
        f"unread {one.unread}, flow waited {one.waited_s:.1f} s"
    )


def row_of(samples: Sequence[Sample], number: int) -> list[str]:
    """Return the row of the table on a fifth of the way."""
    fifth, size = fifth_of(samples, number), len(samples) // FIFTHS
    last = fifth[-1]
    before = samples[(number - 1) * size - 1] if number > 1 else None
    took_s = last.at_s - (before.at_s if before else 0.0)
    operations = last.operations - (before.operations if before else 0)

    def grown(name: str, of: str = "sizes") -> float:
        return float(getattr(last, of)[name]) - (float(getattr(before, of)[name]) if before else 0.0)

    used_us = [
        ratio_of((getattr(last, name) - getattr(before, name)) * 1e6, operations) if before else None
        for name in ("worker_s", "server_s")
    ]
    deletion_us = ratio_of(grown("ms", "deletions") * 1000, grown("deleted"))
    return [
        str(number),
        f"{operations / took_s:,.0f}",
        f"{last.log_rows:,.0f}",
        *(f"{last.sizes[name] / MIB:,.0f}" for name in ("log_bytes", "log_key_bytes", "log_batch_bytes")),
        f"{max(one.sizes['log_dead'] for one in fifth):,.0f}",
        f"{grown('log_vacuums'):.0f}",
        f"{last.sizes['resources_bytes'] / MIB:,.0f}",
        f"{grown('wal_bytes') / operations:,.0f}" if before and operations else "",
        format_number(deletion_us),
        f"{grown('ms', 'deletions') / 1000 / took_s:.1%}",
        *(format_number(one) for one in used_us),
        f"{last.worker_rss_bytes / MIB:.0f}",
        *(format_number(latency_of(fifth, share), "s") for share in (0.5, 0.99)),
    ]


def rows_of(results: RetentionResults) -> list[list[str]]:
    """Return the table, by fifths."""
    return [row_of(results.samples, number) for number in range(1, FIFTHS + 1)]


def text_of_bloat(results: RetentionResults) -> str:
    """Return a sentence on the space that the log did not use at the end."""
    bloat = results.bloat
    return (
        f"At the end {bloat['dead_tuple_percent']:.1f} % of the log's table were dead rows and "
        f"{bloat['free_percent']:.1f} % free; the pages of its key were {bloat['key_density']:.0f} % full, those of "
        f"the index by batch {bloat['batch_density']:.0f} %."
    )


def show(results: RetentionResults, targets: Sequence[PerformanceTarget], console: Console) -> None:
    """Print the fifths and the targets."""
    table = Table(*HEAD)
    for row in rows_of(results):
        table.add_row(*row)
    console.print(table)
    console.print(text_of_bloat(results))
    console.print(targets_table(targets))
