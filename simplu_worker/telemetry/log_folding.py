"""Fold log events that repeat, so that one broken shard does not fill the disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]

FOLD_WINDOW_S = 10.0
FOLD_MAX_KEYS = 1000
FOLD_FACT_MAX_LENGTH = 200  # libraries put whole messages into their events
FOLDED_LEVELS = frozenset({"warning", "error", "critical"})

# Repetitions of one event agree in these: its logger and its subject.
FOLD_FACTS = (
    "level",
    "logger",
    "event",
    "source",
    "stream_shard_id",
    "queue",
    "shard_id",
    "tenant_id",
    "business_id",
    "location_id",
)


@dataclass
class _Window:
    """The repetitions of one event since it was last written, and the newest of them."""

    ends_at: float
    repeated: int = 0
    newest: Facts | None = None

    def summary(self) -> list[Facts]:
        return [] if self.newest is None else [{**self.newest, "repeated": self.repeated}]


class LogDeduplicator:
    """Folds repeated warnings and errors: the first is written at once, the others once a window with their number.

    At most *max_keys* events are remembered; a further one replaces the oldest.
    """

    def __init__(self, *, window_s: float = FOLD_WINDOW_S, max_keys: int = FOLD_MAX_KEYS) -> None:
        self._window_s = window_s
        self._max_keys = max_keys
        self._windows: dict[tuple[str, ...], _Window] = {}  # in order of their ends, because all have the same length

    def __repr__(self) -> str:
        return (
            f"LogDeduplicator({len(self._windows)} windows, {sum(w.repeated for w in self._windows.values())} repeats)"
        )

    def admit(self, event: Facts, now: float) -> list[Facts]:
        """Return the events to write now: the summaries of windows that ended, then *event* unless it is folded.

        A summary is the newest repetition with `repeated`, the number of repetitions since the last line.
        """
        if event.get("level") not in FOLDED_LEVELS:
            return [*self._close_ended(now), event]
        key = dedup_key(event)
        window = self._windows.get(key)
        if window and (window.newest or now < window.ends_at):
            window.repeated += 1
            window.newest = event
            return self._close_ended(now, going_on=key)
        due = self._close_ended(now)
        if len(self._windows) >= self._max_keys:
            due += self._windows.pop(next(iter(self._windows))).summary()
        self._windows[key] = _Window(now + self._window_s)
        return [*due, event]

    def flush(self) -> list[Facts]:
        """Return the summaries of all windows, ended or not, and remove the windows."""
        summaries = [summary for window in self._windows.values() for summary in window.summary()]
        self._windows.clear()
        return summaries

    def _close_ended(self, now: float, *, going_on: tuple[str, ...] | None = None) -> list[Facts]:
        """Close the windows that ended, and return their summaries; the window of *going_on* opens again at once."""
        due: list[Facts] = []
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if now < window.ends_at:
                break
            self._windows.pop(key)
            due += window.summary()
            if key == going_on:
                self._windows[key] = _Window(now + self._window_s)
        return due


def dedup_key(event: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key by which events are the same: their FOLD_FACTS and the class of their exception or `error`."""
    exception = event.get("exception")
    error_class = exception["type"] if exception else str(event.get("error", "")).partition(":")[0]
    facts = (*(str(event.get(fact, "")) for fact in FOLD_FACTS), error_class)
    return tuple(fact[:FOLD_FACT_MAX_LENGTH] for fact in facts)
