"""The two clocks: durations by the event loop's, which never jumps; instants of the world by UTC.

Rules get the time as an argument, so that a test can run hours in a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

UtcClock: TypeAlias = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the current instant."""
    return datetime.now(UTC)


def loop_time() -> float:
    """Return the running event loop's monotonic time in seconds."""
    return asyncio.get_running_loop().time()
