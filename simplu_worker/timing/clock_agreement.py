"""How far apart two clocks may be for a shard to be used: rows are deleted and fences ended by the time. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

APART_MOST_S: Final = 60.0


def are_apart(ahead_s: float) -> bool:
    """Return whether one clock is too far ahead of another one, or behind it."""
    return not -APART_MOST_S <= ahead_s <= APART_MOST_S


def shard_problem(ahead_s: float) -> str | None:
    """Return why a shard is held whose clock is *ahead_s* before this machine's; None if it is not."""
    if not are_apart(ahead_s):
        return None
    direction = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"its clock is {abs(ahead_s):.0f} s {direction} this machine's; set both by NTP, until then the shard is held"
    )


def parse_http_date(text: str) -> datetime | None:
    """Return the instant of an HTTP `Date` header; None if it is invalid."""
    try:
        written = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year of many digits
        return None
    return written.replace(tzinfo=written.tzinfo or UTC)
