"""When the oldest message of a queue was sent, of those that a receiver knows. Pure.

SQS reports the age of a queue's oldest message to CloudWatch alone. A receiver sees it as it receives: messages in
flight, and those that it received a short while ago and decided since, or returned to the queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec

WINDOW_S: Final = 60.0  # a deferred message is received again within a minute, and is in no other place until then


class _ReceivePeriod(msgspec.Struct):
    started_at: float
    oldest: datetime


class RecentlyReceived:
    """The oldest of the messages received in the last WINDOW_S, or up to twice that time."""

    def __init__(self) -> None:
        self._periods: list[_ReceivePeriod] = []  # at most two, the newest last

    def __repr__(self) -> str:
        return f"RecentlyReceived({self._periods})"

    def note(self, sent_at: Iterable[datetime], *, now: float) -> None:
        """Note the times at which messages were sent that were received just now."""
        oldest = min(sent_at, default=None)
        if oldest is None:
            return
        if self._periods and now - self._periods[-1].started_at < WINDOW_S:
            self._periods[-1].oldest = min(self._periods[-1].oldest, oldest)
        else:
            self._periods = [*self._periods[-1:], _ReceivePeriod(now, oldest)]

    def oldest_sent_at(self, now: float) -> datetime | None:
        """Return when the oldest message was sent; None if none was received lately."""
        return min((one.oldest for one in self._periods if now - one.started_at < 2 * WINDOW_S), default=None)


def oldest_age_s(sent_at: Iterable[datetime | None], *, utc: datetime) -> float:
    """Return the age of the oldest message at the time *utc*; 0 without one, and for one from a clock ahead of ours."""
    return max([0.0, *((utc - one).total_seconds() for one in sent_at if one is not None)])
