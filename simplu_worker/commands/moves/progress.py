"""Show on stderr how far moves are: a bar for each on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from rich.progress import TaskID, TextColumn, TimeElapsedColumn

from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.output.progress import LINE_INTERVAL_S, terminal_bars
from simplu_worker.shards.moving.types import MoveStatus, Phase


class MoveProgress:
    """The progress of *total* moves."""

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._total = total
        self._as_json = as_json
        self._done = 0
        self._began_at = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._shown_at = time.monotonic()
        self._bars = (
            None
            if as_json
            else terminal_bars(
                TextColumn("{task.description}"), TextColumn("{task.fields[status]}"), TimeElapsedColumn()
            )
        )
        self._all = None if self._bars is None else self._bars.add_task("all", total=None, status="")

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def watch(self, tenant_id: str) -> Callable[[MoveStatus], None]:
        """Return what a mover calls as it goes on."""
        if self._bars is not None:
            self._tasks[tenant_id] = self._bars.add_task(tenant_id, total=None, status="")
        return partial(self._show, tenant_id, MoveRate(time.monotonic()))

    def finish(self, tenant_id: str) -> None:
        """Note that a move has ended, well or not."""
        self._done += 1
        if self._bars is not None and tenant_id in self._tasks:
            self._bars.remove_task(self._tasks.pop(tenant_id))

    def _show(self, tenant_id: str, rate: MoveRate, status: MoveStatus) -> None:
        now = time.monotonic()
        text = rate.describe(status, now)
        took_s = now - self._began_at
        left = describe_time_left(took_s / self._done * (self._total - self._done)) if self._done else ""
        all_text = f"{self._done} of {self._total} moved{left}"
        if self._bars is not None and self._all is not None:
            self._bars.update(self._tasks[tenant_id], status=text)
            self._bars.update(self._all, status=all_text)
        elif not self._as_json and now - self._shown_at >= LINE_INTERVAL_S:
            self._shown_at = now
            print_note(f"{all_text}; {tenant_id}: {text}")


class MoveRate:
    """How fast one move copies, since *began_at* or the first rows that this command has counted."""

    def __init__(self, began_at: float) -> None:
        self._since = (began_at, 0)
        self._has_rows = False

    def __repr__(self) -> str:
        return f"MoveRate(since={self._since})"

    def describe(self, status: MoveStatus, now: float) -> str:
        """Return the phase, the rows and bytes, their rate, and while rows are copied the time that is left."""
        began_at, first_count = self._since
        if status.row_count and not self._has_rows:  # some of these may be of a command before this one
            self._has_rows = True
            self._since = (now, status.row_count)
        per_s = (status.row_count - first_count) / max(0.001, now - began_at)
        rows = status.row_total - status.row_count
        left = describe_time_left(rows / per_s) if status.phase is Phase.COPY and rows > 0 and per_s > 0 else ""
        return (
            f"{status.phase}: {status.row_count:,} rows, {status.byte_count / 2**20:.1f} MiB, {per_s:,.0f} rows/s{left}"
        )


def describe_time_left(seconds: float) -> str:
    """Return the rest of a line that ends with the time left: minutes from two on, seconds below."""
    return f", about {seconds / 60:.0f} min left" if seconds >= 120 else f", about {seconds:.0f} s left"
