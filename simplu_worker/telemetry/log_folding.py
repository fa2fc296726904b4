"""Fold log events that repeat, and keep the warnings and errors of the last day, one row an event. Pure.

Our events are a closed set of literals; a library's share one row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

Facts = dict[str, Any]

FOLD_WINDOW_S = 10.0
FOLD_MAX_KEYS = 1000
FOLD_FACT_MAX_LENGTH = 200  # libraries put whole messages into their events
FOLDED_LEVELS = frozenset({"warning", "error", "critical"})

# Repetitions of one event agree in these: its logger and its subject.
FOLD_FACTS = (
    *("level", "logger", "event", "source", "stream_shard_id", "queue", "shard_id", "tenant_id", "business_id"),
    "location_id",
)


@dataclass
class _Window:
    ends_at: float
    repeated: int = 0
    newest: Facts | None = None

    def summary(self) -> list[Facts]:
        return [] if self.newest is None else [{**self.newest, "repeated": self.repeated}]


class LogDeduplicator:
    """Writes the first of repeated warnings and errors, the others once a window with their number.

    Of more than *max_keys* events the oldest is forgotten.
    """

    def __init__(self, *, window_s: float = FOLD_WINDOW_S, max_keys: int = FOLD_MAX_KEYS) -> None:
        self._window_s = window_s
        self._max_keys = max_keys
        self._windows: dict[tuple[str, ...], _Window] = {}  # in order of their ends, because all have the same length

    def admit(self, event: Facts, now: float) -> list[Facts]:
        """Return the events to write now: summaries of ended windows, then *event* unless it is folded.

        A summary is the newest repetition, with the number since the last line as `repeated`.
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
        """Return the summaries of all windows, and remove these."""
        summaries = [summary for window in self._windows.values() for summary in window.summary()]
        self._windows.clear()
        return summaries

    def _close_ended(self, now: float, *, going_on: tuple[str, ...] | None = None) -> list[Facts]:
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
    """Return the FOLD_FACTS, and the class of the exception or `error`."""
    exception = event.get("exception")
    error_class = exception["type"] if exception else str(event.get("error", "")).partition(":")[0]
    facts = (*(str(event.get(fact, "")) for fact in FOLD_FACTS), error_class)
    return tuple(fact[:FOLD_FACT_MAX_LENGTH] for fact in facts)


SHOWN_FOR: Final = timedelta(days=1)
ANEW_AFTER: Final = timedelta(hours=1)  # of silence: then the times and the count of an event begin anew
EVENTS_MAX: Final = 200  # our own are about a hundred
SUBJECTS_MAX: Final = 5  # named of an event, the last ones
TEXT_MAX: Final = 500  # characters of an error
FACT_MAX: Final = 200
HEAD: Final = ("timestamp", "level", "logger", "event")
LEVELS: Final = ("warning", "error", "critical")
CAUSES: Final = ("error", "problems", "problem", "reasons", "reason")
ABOUT: Final = ("shard_id", "stream_shard_id", "queue", "stream", "table", "business_id")
EVENT_NAME: Final = re.compile(r"[a-z_]{1,30}\.[a-z_]{1,40}")


class _Event(msgspec.Struct):
    event: str
    level: str
    since: datetime
    at: datetime
    count: int
    subjects: list[str]
    error: str | None


class RecentEvents:
    """The last warnings and errors, one for each event."""

    def __init__(self) -> None:
        self._events: dict[str, _Event] = {}  # those that came last are last

    def note(self, facts: Facts) -> None:
        """Note an event, before folding."""
        if facts["level"] not in LEVELS:
            return
        at, name = datetime.fromisoformat(facts["timestamp"]), str(facts["event"])
        is_ours = EVENT_NAME.fullmatch(name) is not None
        key = name if is_ours else str(facts.get("logger", "")).partition(".")[0][:FACT_MAX]
        known = self._events.pop(key, None)
        if known is None or at - known.at > ANEW_AFTER:
            known = _Event(name, facts["level"], at, at, 0, [], None)
        known.event, known.at = name[:TEXT_MAX], max(known.at, at)
        known.level = max(known.level, facts["level"], key=LEVELS.index)
        known.count += 1
        known.error = cause_of(facts)
        if (subject := _subject_of(facts)) is not None:
            others = [one for one in known.subjects if one != subject]
            known.subjects = [*others[1 - SUBJECTS_MAX :], subject]
        self._events[key] = known
        if len(self._events) > EVENTS_MAX:
            del self._events[next(iter(self._events))]

    def view(self, now: datetime) -> list[dict[str, Any]]:
        """Return the events of the last day, the newest first."""
        return [
            {
                "at": one.at.isoformat(),
                "since": one.since.isoformat(),
                "level": one.level,
                "event": one.event,
                "about": "; ".join(reversed(one.subjects)) or None,
                "error": one.error,
                "count": one.count,
            }
            for one in reversed(self._events.values())
            if now - one.at <= SHOWN_FOR
        ]


def cause_of(facts: Facts) -> str | None:
    """Return the cause that an event names, or else its other facts."""
    for name in CAUSES:
        if cause := facts.get(name):
            return _shortened("; ".join(map(str, cause)) if isinstance(cause, list) else str(cause), TEXT_MAX)
    if exception := facts.get("exception"):
        return _shortened(f"{exception['type']}: {exception['message']}", TEXT_MAX)
    return _shortened(", ".join(_other_facts(facts)), TEXT_MAX) or None


def _other_facts(facts: Facts) -> Iterator[str]:
    subject = next((name for name in ABOUT if facts.get(name) is not None), None)
    for name, value in facts.items():
        if value is not None and name not in {*HEAD, subject, "repeated"}:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{name} {_shortened(text, FACT_MAX)}"


def _subject_of(facts: Facts) -> str | None:
    found = next((facts[name] for name in ABOUT if facts.get(name) is not None), None)
    return None if found is None else _shortened(str(found), FACT_MAX)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
