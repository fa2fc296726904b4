"""Show how far moves are: a bar for each on a terminal, elsewhere a line from time to time, or one of JSON for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Final, Self

import msgspec
from rich.progress import ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from simplu_worker.commands.output.display import escape_unprintable, print_json_line, print_note
from simplu_worker.commands.output.progress import LINE_INTERVAL_S, end_bars, terminal_bars
from simplu_worker.transfers.moving.types import MoveStatus
from simplu_worker.vocabulary import MovePhase

PAUSE: Final = frozenset(
    {MovePhase.LAST_DELTA, MovePhase.COMMIT, MovePhase.ACTIVATE}
)  # the tenant waits: nothing is printed
STANDS_S: Final = 10.0  # without progress: the rate of before says nothing of the time that is left


class _StatusColumn(ProgressColumn):
    """The text that the task has at the moment."""

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(task.fields["status"]())


class MoveFigures(msgspec.Struct, frozen=True):
    """How far a move is, or several together; *rows_left* is 0 where it is unknown."""

    row_count: int = 0
    byte_count: int = 0
    rows_per_s: float = 0.0
    rows_left: int = 0

    @property
    def left_s(self) -> float | None:
        """The time until all rows are copied, as far as that is known."""
        return self.rows_left / self.rows_per_s if self.rows_left > 0 and self.rows_per_s > 0 else None

    def describe(self) -> str:
        """Return the figures for people."""
        return f"{self.row_count:,} rows, {self.byte_count / 2**20:.1f} MiB, {self.rows_per_s:,.0f} rows/s"


class ProgressLine(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The progress of one move as a line of JSON; unlike the result it has no outcome."""

    tenant: str
    phase: MovePhase
    rows: int
    bytes: int
    rows_per_second: float
    seconds_left: float | None = None


class MoveProgress:
    """The progress of *total* moves."""

    def __init__(self, total: int, *, as_json: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._as_json = as_json
        self._clock = clock
        self._done = 0
        self._began_at = clock()
        self._tasks: dict[str, TaskID] = {}
        self._figures: dict[str, MoveFigures] = {}  # by tenant, of the moves that run
        self._phases: dict[str, MovePhase] = {}
        self._moved_at: dict[str, float] = {}  # the last progress, by tenant
        self._ended = MoveFigures()
        self._shown_at: dict[str, float] = {}  # by tenant with JSON, else of all
        self._bars = (
            None
            if as_json
            else terminal_bars(
                TextColumn("{task.description}", markup=False),
                _StatusColumn(),
                TimeElapsedColumn(),
            )
        )
        self._all = None if self._bars is None else self._bars.add_task("all", total=None, status=self.describe_all)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_bars(self._bars, kind, lambda: f"{self.describe_all()}; the same command goes on with the moves")

    def watch(self, tenant_id: str) -> Callable[[MoveStatus], None]:
        """Return what a mover calls as it goes on."""
        now = self._clock()
        self._figures[tenant_id], self._moved_at[tenant_id] = MoveFigures(), now
        self._shown_at.setdefault(tenant_id if self._as_json else "", now)
        if self._bars is not None:
            self._tasks[tenant_id] = self._bars.add_task(
                escape_unprintable(tenant_id), total=None, status=partial(self.describe, tenant_id)
            )
        return partial(self._show, tenant_id, MoveRate(now))

    def finish(self, tenant_id: str) -> None:
        """Note that a move has ended, well or not."""
        self._done += 1
        ended = self._figures.pop(tenant_id, MoveFigures())
        self._ended = sum_of((self._ended, MoveFigures(ended.row_count, ended.byte_count)))
        if self._bars is not None and tenant_id in self._tasks:
            self._bars.remove_task(self._tasks.pop(tenant_id))

    def describe_all(self) -> str:
        """Return how far all moves are together: their rows, bytes and rate, and the time that is left."""
        standing = {tenant_id for tenant_id in self._figures if self._stood_s(tenant_id) > STANDS_S}
        running = (one for tenant_id, one in self._figures.items() if tenant_id not in standing)
        still = (msgspec.structs.replace(self._figures[one], rows_per_s=0.0) for one in standing)
        figures = sum_of((self._ended, *running, *still))
        left_s = None
        if standing:
            pass  # nobody knows
        elif self._done:
            left_s = (self._clock() - self._began_at) / self._done * (self._total - self._done)
        elif len(self._figures) == self._total:
            left_s = figures.left_s
        return f"{self._done} of {self._total} ended, {figures.describe()}{describe_time_left(left_s)}"

    def describe(self, tenant_id: str) -> str:
        """Return how far one move is; while it stands, for how long, as its rate and time left are not known then."""
        if (phase := self._phases.get(tenant_id)) is None:
            return ""
        figures, stood_s = self._figures[tenant_id], self._stood_s(tenant_id)
        if stood_s > STANDS_S:
            return f"{phase}: {figures.row_count:,} rows, nothing new for {stood_s:.0f} s"
        return f"{phase}: {figures.describe()}{describe_time_left(figures.left_s)}"

    def _stood_s(self, tenant_id: str) -> float:
        return self._clock() - self._moved_at[tenant_id]

    def _show(self, tenant_id: str, rate: MoveRate, status: MoveStatus) -> None:
        now = self._clock()
        before, phase = self._figures[tenant_id], self._phases.get(tenant_id)
        figures = self._figures[tenant_id] = rate.note(status, now)
        self._phases[tenant_id] = status.phase
        if (figures.row_count, status.phase) != (before.row_count, phase):
            self._moved_at[tenant_id] = now
        if self._bars is not None:
            return
        key = tenant_id if self._as_json else ""
        if status.phase in PAUSE or now - self._shown_at[key] < LINE_INTERVAL_S:
            return
        self._shown_at[key] = now
        if self._as_json:
            print_json_line(_line_of(tenant_id, status.phase, figures))
        else:
            print_note(f"{self.describe_all()}; {tenant_id}: {self.describe(tenant_id)}")


class MoveRate:
    """How fast one move copies, since *began_at* or the first rows that this command has counted."""

    def __init__(self, began_at: float) -> None:
        self._since = (began_at, 0)
        self._has_rows = False

    def __repr__(self) -> str:
        return f"MoveRate(since={self._since})"

    def note(self, status: MoveStatus, now: float) -> MoveFigures:
        """Return the rows and bytes, their rate, and while rows are copied those that are left."""
        began_at, first_count = self._since
        if status.row_count and not self._has_rows:  # some of these may be of a command before this one
            self._has_rows = True
            self._since = (now, status.row_count)
        per_s = (status.row_count - first_count) / max(0.001, now - began_at)
        left = max(0, status.row_total - status.row_count) if status.phase is MovePhase.COPY else 0
        return MoveFigures(status.row_count, status.byte_count, per_s, left)


def sum_of(several: Iterable[MoveFigures]) -> MoveFigures:
    """Return the figures of several moves together."""
    listed = tuple(several)
    return MoveFigures(
        sum(one.row_count for one in listed),
        sum(one.byte_count for one in listed),
        sum(one.rows_per_s for one in listed),
        sum(one.rows_left for one in listed),
    )


def describe_time_left(seconds: float | None) -> str:
    """Return the rest of a line that ends with the time left: minutes from two on, seconds below, nothing for None."""
    if seconds is None:
        return ""
    return f", about {seconds / 60:.0f} min left" if seconds >= 120 else f", about {seconds:.0f} s left"


def _line_of(tenant_id: str, phase: MovePhase, figures: MoveFigures) -> ProgressLine:
    left_s = None if figures.left_s is None else round(figures.left_s, 1)
    return ProgressLine(tenant_id, phase, figures.row_count, figures.byte_count, round(figures.rows_per_s, 1), left_s)
