"""The clocks: durations by the event loop's, which never jumps; instants by UTC. Rules get the time as an argument.

How far apart two clocks may be for a shard to be used: rows are deleted and fences ended by the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

UtcClock: TypeAlias = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the current instant."""
    return datetime.now(UTC)


def loop_time() -> float:
    """Return the running event loop's monotonic time in seconds."""
    return asyncio.get_running_loop().time()


EPOCH: Final = datetime.fromtimestamp(0, UTC)
TIME_BITS: Final = 48
RANDOM_BITS: Final = 76  # two of them are the variant, which is the same for all versions


def uuid7(at: datetime, random: UUID) -> UUID:
    """Return the UUID of version 7 (RFC 9562) of the time *at*, in milliseconds, with the last 74 bits of *random*."""
    milliseconds = max(0, (at - EPOCH) // timedelta(milliseconds=1))
    random_bits = random.int & (1 << RANDOM_BITS) - 1
    return UUID(int=milliseconds << 128 - TIME_BITS | 7 << RANDOM_BITS | random_bits)


APART_MOST_S: Final = 60.0


def shard_problem(ahead_s: float) -> str | None:
    """Return why a shard is held whose clock is *ahead_s* before this machine's; None if it is not."""
    if -APART_MOST_S <= ahead_s <= APART_MOST_S:
        return None
    direction = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"its clock is {abs(ahead_s):.0f} s {direction} this machine's; set both by NTP, until then the shard is held"
    )
