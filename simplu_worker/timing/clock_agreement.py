"""How far apart two clocks may be for a shard to be used: rows are deleted and fences ended by the time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Final

APART_MOST_S: Final = 60.0


def are_apart(ahead_s: float) -> bool:
    """Return whether one clock is too far ahead of another one, or behind it."""
    return not -APART_MOST_S <= ahead_s <= APART_MOST_S


def own_problem(ahead_s: float | None) -> str | None:
    """Return why no shard is used; *ahead_s* is this machine's clock less the right one, if it is known."""
    return None if ahead_s is None else _describe("the clock of this machine", ahead_s)


def shard_problem(ahead_s: float, own_ahead_s: float | None = None) -> str | None:
    """Return why a shard is not used; *ahead_s* is its clock less this machine's.

    *own_ahead_s* is this machine's clock less that of AWS: a shard is not blamed for what is wrong here.
    """
    return _describe("its clock", ahead_s + (own_ahead_s or 0.0))


def probable_own_ahead_s(of_aws: float | None, shards_ahead_s: Sequence[float]) -> float | None:
    """Return this machine's clock less the right one: AWS's, else that of several shards which agree against ours."""
    agreed_s = median(shards_ahead_s) if len(shards_ahead_s) > 1 else 0.0
    if of_aws is not None or not are_apart(agreed_s) or any(are_apart(one - agreed_s) for one in shards_ahead_s):
        return of_aws
    return -agreed_s


def _describe(subject: str, ahead_s: float) -> str | None:
    if not are_apart(ahead_s):
        return None
    direction = "ahead" if ahead_s > 0 else "behind"
    return f"{subject} is {abs(ahead_s):.0f} s {direction}; set it by NTP, until then the shard is not used"


def parse_http_date(text: str) -> datetime | None:
    """Return the instant of an HTTP `Date` header; None if it is invalid."""
    try:
        written = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year of many digits
        return None
    return written.replace(tzinfo=written.tzinfo or UTC)
