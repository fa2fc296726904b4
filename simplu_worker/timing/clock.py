"""The clocks: durations by the event loop's, which never jumps; instants of the world by UTC, compared with AWS's.

Rules get the time as an argument, so that a test can run hours in a moment.

UUIDs that begin with a time, so that those of one time are beside each other in an index.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

import structlog

from simplu_worker.timing.clock_agreement import are_apart, own_problem, parse_http_date

UtcClock: TypeAlias = Callable[[], datetime]

COMPARE_AFTER_S: Final = 5.0  # since the last answer of AWS that was compared

log = structlog.get_logger(__name__)


def utc_now() -> datetime:
    """Return the current instant."""
    return datetime.now(UTC)


def loop_time() -> float:
    """Return the running event loop's monotonic time in seconds."""
    return asyncio.get_running_loop().time()


class OwnClock:
    """The clock of this machine, compared with the `Date` of AWS's answers.

    Between two answers AWS's clock goes on with the monotonic clock, so a jump of this machine's clock shows at once.
    """

    def __init__(self, utc: UtcClock = utc_now, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.utc = utc
        self._monotonic = monotonic
        self._compared_at = float("-inf")
        self._of_aws: datetime | None = None  # when it was compared
        self._was_apart = False

    def __repr__(self) -> str:
        return f"OwnClock(ahead_s={self.ahead_s})"

    @property
    def ahead_s(self) -> float | None:
        """This machine's clock less that of AWS; None before the first answer."""
        if self._of_aws is None:
            return None
        now_of_aws = self._of_aws + timedelta(seconds=self._monotonic() - self._compared_at)
        return (self.utc() - now_of_aws).total_seconds()

    @property
    def problem(self) -> str | None:
        """Why nothing may end by the time; None while the clock agrees with that of AWS, as far as is known."""
        return own_problem(self.ahead_s)

    def compare(self, date: str) -> None:
        """Compare the clock with the `Date` header of an answer that AWS just gave; not for each of many answers."""
        now = self._monotonic()
        if now - self._compared_at < COMPARE_AFTER_S or (of_aws := parse_http_date(date)) is None:
            return
        self._compared_at, self._of_aws = now, of_aws
        ahead_s = (self.utc() - of_aws).total_seconds()
        is_apart = are_apart(ahead_s)
        if is_apart and not self._was_apart:
            log.warning("clock.apart", ahead_s=round(ahead_s))
        elif self._was_apart and not is_apart:
            log.info("clock.agreed", ahead_s=round(ahead_s))
        self._was_apart = is_apart

    def earliest(self) -> datetime:
        """Return the current instant; where the clocks are apart, by the one that is behind.

        For what is given up by the age of a record, which has its time from AWS: never before both clocks say so.
        """
        now, ahead_s = self.utc(), self.ahead_s
        return now if ahead_s is None or not are_apart(ahead_s) else now - timedelta(seconds=max(ahead_s, 0.0))


OWN_CLOCK: Final = OwnClock()  # a process has one


EPOCH: Final = datetime.fromtimestamp(0, UTC)
TIME_BITS: Final = 48
RANDOM_BITS: Final = 76  # two of them are the variant, which is the same for all versions


def uuid7(at: datetime, random: UUID) -> UUID:
    """Return the UUID of version 7 (RFC 9562) of the time *at*, in milliseconds, with the last 74 bits of *random*."""
    milliseconds = max(0, (at - EPOCH) // timedelta(milliseconds=1))
    random_bits = random.int & (1 << RANDOM_BITS) - 1
    return UUID(int=milliseconds << 128 - TIME_BITS | 7 << RANDOM_BITS | random_bits)
