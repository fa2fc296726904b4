"""Repeat an action at a steady interval."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def repeat_every(interval_s: float, action: Callable[[], Awaitable[object]]) -> None:
    """Await *action* until cancelled, one call at a time; each begins at least *interval_s* after the one before."""
    while True:
        started = time.monotonic()
        await action()
        await asyncio.sleep(max(0.0, started + interval_s - time.monotonic()))
