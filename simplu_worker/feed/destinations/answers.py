"""What the answers of a receiver over HTTP mean for its events. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from simplu_worker.feed.types import Delivered, Delivery, Disabled, Refused, RetryLater
from simplu_worker.timing.clock_agreement import parse_http_date

# 4xx that are about the moment and not about the event: RFC 9110 (408), RFC 8470 (425), RFC 6585 (429).
PASSING: Final = frozenset({408, 425, 429})
GONE: Final = 410  # Standard Webhooks: the receiver wants no more
RETRY_AFTER_MAX_S: Final = 3600.0


def delivery_of(place: str, status: int, retry_after: str | None, *, now: datetime) -> Delivery:
    """Return what an answer of *place*, a host and its port, means for the event of its request."""
    if 200 <= status < 300:
        return Delivered()
    if status == GONE:
        return Disabled(f"{place}: got HTTP status {GONE}, by which it asks for no more events")
    if 300 <= status < 400:
        return RetryLater(f"{place}: expected a status 2xx, got a redirect ({status}); name its target in FEED_FILE")
    error = f"{place}: expected a status 2xx, got {status}"
    if 400 <= status < 500 and status not in PASSING:
        return Refused(error)
    return RetryLater(error, retry_after_s(retry_after, now=now))


def retry_after_s(header: str | None, *, now: datetime) -> float | None:
    """Return the seconds of a `Retry-After`, an hour at most; None without one that can be read."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return min(float(header[:10]), RETRY_AFTER_MAX_S)
    until = parse_http_date(header)
    return None if until is None else min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_MAX_S)


class CallHealth:
    """Whether to go on with a call: a receiver that asks for a pause, or for no more events, gets no more requests."""

    def __init__(self) -> None:
        self.is_over = False
        self.failure: Delivery | None = None  # what the events that were not sent come to

    def __repr__(self) -> str:
        return f"CallHealth(is_over={self.is_over}, failure={self.failure})"

    def note(self, delivery: Delivery) -> None:
        """Note what became of an event; the first reason for an end counts, but for 410, which counts most."""
        match delivery:
            case Disabled():
                self.is_over, self.failure = True, delivery
            case RetryLater(after_s=after_s) if not self.is_over:
                self.is_over, self.failure = after_s is not None, delivery
