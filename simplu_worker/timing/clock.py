"""The clocks: durations by the event loop's, which never jumps; instants by UTC. Rules get the time as an argument."""

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
