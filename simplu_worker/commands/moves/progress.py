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
from simplu_worker.shards.moving.types import MoveStatus


class MoveProgress:
    """The progress of *total* moves."""

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._total = total
        self._as_json = as_json
        self._done = 0
        self._tasks: dict[str, TaskID] = {}
        self._began_at: dict[str, float] = {}
        self._shown_at = time.monotonic()
        self._bars = (
            None
            if as_json
            else terminal_bars(
                TextColumn("{task.description}"), TextColumn("{task.fields[status]}"), TimeElapsedColumn()
            )
        )

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
        self._began_at[tenant_id] = time.monotonic()
        if self._bars is not None:
            self._tasks[tenant_id] = self._bars.add_task(tenant_id, total=None, status="")

        return partial(self._show, tenant_id)

    def finish(self, tenant_id: str) -> None:
        """Note that a move has ended, well or not."""
        self._done += 1
        if self._bars is not None and tenant_id in self._tasks:
            self._bars.remove_task(self._tasks.pop(tenant_id))

    def _show(self, tenant_id: str, status: MoveStatus) -> None:
        took_s = max(0.001, time.monotonic() - self._began_at[tenant_id])
        text = (
            f"{status.phase}: {status.row_count:,} rows, {status.byte_count / 2**20:.1f} MiB, "
            f"{status.row_count / took_s:,.0f} rows/s"
        )
        if self._bars is not None:
            self._bars.update(self._tasks[tenant_id], status=text)
        elif not self._as_json and time.monotonic() - self._shown_at >= LINE_INTERVAL_S:
            self._shown_at = time.monotonic()
            print_note(f"{self._done} of {self._total} moved; {tenant_id}: {text}")
