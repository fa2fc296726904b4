"""A note on stderr with the reason why a command makes no progress."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from simplu_worker.commands.output.display import print_note
from simplu_worker.commands.output.progress import CountProgress

NOTE_AFTER_S: Final = 2.0  # people wonder after three


class _AwaitedNote:
    """Prints *describe()* after each *after_s* without progress, unless it was printed last."""

    def __init__(self, describe: Callable[[], str], progress: CountProgress, *, after_s: float) -> None:
        self._describe = describe
        self._progress = progress
        self._after_s = after_s
        self._reached = progress.done
        self._printed: str | None = None
        self._timer = self._wait()

    def _wait(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._after_s, self._look)

    def _look(self) -> None:
        self._timer = self._wait()
        if (reached := self._progress.done) != self._reached:
            self._reached = reached
        elif (text := self._describe()) != self._printed:
            self._printed = text
            print_note(text)

    def close(self) -> None:
        self._timer.cancel()


@contextmanager
def note_what_is_awaited(
    describe: Callable[[], str], progress: CountProgress, *, after_s: float = NOTE_AFTER_S
) -> Iterator[None]:
    """Print what the calls inside wait for when *progress* stands still for *after_s*, each text once in a row."""
    note = _AwaitedNote(describe, progress, after_s=after_s)
    try:
        yield
    finally:
        note.close()
