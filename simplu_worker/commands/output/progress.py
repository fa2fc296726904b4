"""Show on stderr how far a command is: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from simplu_worker.commands.output.display import print_note

LINE_INTERVAL_S: Final = 2.0


def terminal_bars(*columns: ProgressColumn) -> Progress | None:
    """Return progress bars of *columns* on stderr, which disappear at the end; None if stderr is no terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return None
    return Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())


def end_bars(bars: Progress | None, kind: type[BaseException] | None, describe: Callable[[], str]) -> None:
    """Remove the bars; where Ctrl-C or a signal has ended the command (*kind*), print how far it came."""
    if bars is not None:
        bars.stop()
    if kind is not None and issubclass(kind, asyncio.CancelledError):
        print_note(f"interrupted: {describe()}")


class CountProgress:
    """The progress of one count: so many of *total* are *what*."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self.done = 0
        self._shown_at = time.monotonic()
        self._bars = terminal_bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._task = self._bars.add_task(self._what, total=self._total)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_bars(self._bars, kind, self._describe)

    def _describe(self) -> str:
        return f"{self._what}: {self.done} of {self._total}"

    def show(self, done: int) -> None:
        """Show that *done* of the total are done."""
        self.done = done
        if self._bars is not None:
            self._bars.update(self._task, completed=done)
        elif time.monotonic() - self._shown_at >= LINE_INTERVAL_S:
            self._shown_at = time.monotonic()
            print_note(self._describe())


class Counted(Protocol):
    """A count that goes on."""

    def show(self, done: int) -> None:
        """Show that *done* of the total are done."""


class Narration(Protocol):
    """The place for remarks and progress of a long action."""

    def note(self, text: str) -> None:
        """Take a remark for people."""

    def count(self, what: str, total: int) -> AbstractContextManager[Counted]:
        """Begin to count: so many of *total* are *what*."""


class StderrNarration:
    """Remarks and progress on stderr."""

    def note(self, text: str) -> None:
        """Print a remark."""
        print_note(text)

    def count(self, what: str, total: int) -> AbstractContextManager[Counted]:
        """Show the progress."""
        return CountProgress(what, total)


class NoteList:
    """Remarks as a list; no progress."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.texts.append(text)

    def count(self, what: str, total: int) -> AbstractContextManager[Counted]:  # noqa: ARG002  (the protocol's)
        """Show nothing."""
        return nullcontext(self)

    def show(self, done: int) -> None:
        """Show nothing."""
