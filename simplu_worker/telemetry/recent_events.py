"""The warnings and errors of the last day, folded by their event, so that a frequent one drives no other out. Pure.

An event of ours is one row, however many subjects it has; those of a library share one. The names of our events are
literals, so the rows are a closed set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from simplu_worker.telemetry.log_folding import Facts

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
    """All occurrences of an event; *subjects* are the last ones, the newest last."""

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

    def __repr__(self) -> str:
        return f"RecentEvents({list(self._events)})"

    def note(self, facts: Facts) -> None:
        """Note an event, before equal ones are folded into one line."""
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
        """Return the events of the last day as JSON members, the newest first."""
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
    """Return the cause that an event names: its error or problems, or else its other facts; None without facts."""
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
