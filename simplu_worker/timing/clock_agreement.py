"""How far apart two clocks may be where rows are deleted, operations given up or fences ended by the time. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

APART_MOST_S: Final = 300.0


def are_apart(ahead_s: float) -> bool:
    """Return whether one clock is too far ahead of another one, or behind it."""
    return not -APART_MOST_S <= ahead_s <= APART_MOST_S


def own_problem(ahead_s: float | None) -> str | None:
    """Return why nothing may end by the time; *ahead_s* is this machine's clock less that of AWS, if it is known."""
    return None if ahead_s is None else _describe("this worker's clock", ahead_s, "that of AWS")


def shard_problem(ahead_s: float) -> str | None:
    """Return why nothing may end by the time on a shard; *ahead_s* is its clock less this machine's."""
    return _describe("its clock", ahead_s, "this worker's")


def _describe(subject: str, ahead_s: float, other: str) -> str | None:
    if not are_apart(ahead_s):
        return None
    direction = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"expected clocks at most {APART_MOST_S:.0f} s apart, got {subject} {abs(ahead_s):.0f} s {direction} {other}; "
        "nothing is deleted by the time until NTP has set them"
    )


def parse_http_date(text: str) -> datetime | None:
    """Return the instant of an HTTP `Date` header; None if it is invalid."""
    try:
        written = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year of many digits
        return None
    return written.replace(tzinfo=written.tzinfo or UTC)
