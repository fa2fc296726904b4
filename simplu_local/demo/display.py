"""Show a trial to a person: live on a terminal, as plain lines elsewhere, and as tables at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from simplu_local.demo.trial import TrialResult, TrialSnapshot
from simplu_local.verify.comparison import percentile
from simplu_local.workload.reference_model import Effect

LINE_INTERVAL_S = 2.0
STANDS_S = 5.0  # without anything finished: twice the longest query of a shard that answers
DIFFERENCES_SHOWN = 20
MISSING = "–"


class Display:
    """Shows snapshots of a trial; enter `open` around the calls of `show`."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._last: tuple[str, float] | None = None
        self._shown: tuple[TrialSnapshot, float | None] | None = None
        self._finished = (-1, 0.0)  # how many, and since when

    @contextmanager
    def open(self) -> Iterator[Display]:
        """Use the last lines of the terminal, if the output is a terminal."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(get_renderable=self._panel, console=self._console, refresh_per_second=4, transient=True) as live:
            self._live = live
            yield self
        self._live = None

    def show(self, snapshot: TrialSnapshot, lag_s: float | None) -> None:
        """Show *snapshot*; without a terminal as a line every two seconds and at each change of phase."""
        self._shown, now = (snapshot, lag_s), self._clock()
        finished = snapshot.progress.finished_count if snapshot.progress else 0
        if finished != self._finished[0]:
            self._finished = finished, now
        if self._live is not None:
            return
        if self._last is None or snapshot.phase != self._last[0] or snapshot.elapsed_s >= self._last[1]:
            self._last = (snapshot.phase, snapshot.elapsed_s + LINE_INTERVAL_S)
            self._console.print(format_line(snapshot, self._describe_lag(snapshot, lag_s)), soft_wrap=True)

    def _describe_lag(self, snapshot: TrialSnapshot, lag_s: float | None) -> str:
        """Return the lag; for how long nothing was finished instead, as the lag leaves out what is held."""
        stood_s = self._clock() - self._finished[1]
        is_waiting = snapshot.produced > 0 and snapshot.phase in {"producing", "applying"}
        if is_waiting and stood_s >= STANDS_S and not (snapshot.progress and snapshot.progress.is_done):
            return f"nothing finished for {stood_s:.0f} s"
        return f"lag {_seconds(lag_s)}"

    def _panel(self) -> RenderableType:
        if self._shown is None:
            return ""
        snapshot, lag_s = self._shown
        return _panel(snapshot, self._describe_lag(snapshot, lag_s))


def format_line(snapshot: TrialSnapshot, lag: str) -> str:
    """Return *snapshot* as one line."""
    progress = snapshot.progress
    applied = progress.logged_count if progress else 0
    parts = [f"{snapshot.phase:<11} produced {snapshot.produced:>6}  applied {applied:>6}  {_rate(snapshot):>6.0f}/s"]
    parts.append(lag)
    parts += [f"{shard.name.split('/')[-1]} {_count(shard.rows)}" for shard in (progress.shards if progress else ())]
    return "  ".join(parts)


def _panel(snapshot: TrialSnapshot, lag: str) -> RenderableType:
    progress = snapshot.progress
    finished = progress.finished_count if progress else 0
    bars = Table.grid(padding=(0, 2))
    bars.add_row(
        "produced", ProgressBar(snapshot.total, snapshot.produced, width=40), f"{snapshot.produced} of {snapshot.total}"
    )
    # How many records leave something is known once all are produced: until then the bar has the total of the other.
    expected = progress.expected_count if progress and snapshot.produced >= snapshot.total else None
    share = ProgressBar(expected or snapshot.total, finished, width=40)
    bars.add_row("finished", share, f"{finished}" if expected is None else f"{finished} of {expected}")
    facts = f"{snapshot.phase}  {_rate(snapshot):.0f} operations/s  {lag}"
    dead_letters = f"  dead letters {progress.dead_letter_count}" if progress else ""
    shards = Table("shard", "operations", "rows", box=None, header_style="bold")
    for shard in progress.shards if progress else ():
        shards.add_row(shard.name, _count(shard.operations), _count(shard.rows))
    return Group(bars, Text(facts + dead_letters), shards)


def result_table(result: TrialResult) -> Table:
    """Return the result of a trial as a table; durations are arrival → committed."""
    report = result.report
    verdicts = [item.verdict.effect for item in result.put.values()]
    table = Table("outcome", "count", title="Outcome of the records")
    table.columns[1].justify = "right"
    table.add_row("records put", str(result.produced - result.orders))
    if result.orders:
        table.add_row("order events sent", str(result.orders))
    table.add_row("applied", str(report.succeeded))
    for error, count in sorted(report.failed.items()):
        table.add_row(f"failed: {error}", str(count))
    for reason, count in sorted(report.dead_letters.items()):
        table.add_row(f"dead letters: {reason}", str(count))
    table.add_row("duplicates dropped", str(verdicts.count(Effect.DROPPED)))
    if held := verdicts.count(Effect.HELD):
        table.add_row("held: tenant not registered", str(held))
    for shard, count in report.rows_per_shard.items():
        table.add_row(f"rows on {shard}", str(count))
    table.add_row("rows compared", str(report.rows_compared))
    table.add_row("operations compared", str(report.operations_compared))
    table.add_row("versions compared", str(report.versions_compared))
    style = "bold red" if report.differences else "bold green"
    table.add_row(Text("differences", style), Text(str(len(report.differences)), style))
    table.add_row("operations/s", f"{report.operations_compared / max(result.elapsed_s, 0.001):.0f}")
    for share in (0.5, 0.99):
        table.add_row(f"p{share * 100:.0f} arrival → committed", _seconds(percentile(report.latencies_s, share)))
    return table


def print_differences(console: Console, differences: Sequence[str]) -> None:
    """Print the first differences."""
    for difference in differences[:DIFFERENCES_SHOWN]:
        console.print(f"  {difference}", markup=False, soft_wrap=True)
    if len(differences) > DIFFERENCES_SHOWN:
        console.print(f"  … and {len(differences) - DIFFERENCES_SHOWN} more")


def print_conclusion(console: Console, result: TrialResult, *, was_held: bool) -> int:
    """Print whether *result* is as expected, and what to try next; return the exit status. Each line is one line."""
    if result.report.differences:
        console.print(f"failed: {len(result.report.differences)} differences", style="bold red")
        return 1
    if not result.progress.is_done:
        console.print("failed: some records left neither a row nor a dead letter in time", style="bold red")
        return 1
    console.print(
        "Passed: every row of every shard is as expected, and the worker ended with status 0.", soft_wrap=True
    )
    if not was_held:
        console.print("Next: run `make demo ARGS=--hold` and open the status page that it names.", markup=False)
    return 0


def _rate(snapshot: TrialSnapshot) -> float:
    if snapshot.progress is None or not snapshot.elapsed_s:
        return 0.0
    return snapshot.progress.logged_count / snapshot.elapsed_s


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def _seconds(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
