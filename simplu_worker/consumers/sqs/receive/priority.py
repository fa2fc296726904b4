"""One queue before another: its polls give way while the other has work, and never for long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

GIVE_WAY_MAX_S: Final = 1.0  # for one poll, so that the one that gives way is never starved
LOOK_INTERVAL_S: Final = 0.05


class PriorityGate:
    """A gate before each poll of a queue, which is shut for a moment while *is_busy* says that another has work."""

    def __init__(
        self,
        is_busy: Callable[[], bool],
        *,
        max_s: float = GIVE_WAY_MAX_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._is_busy = is_busy
        self._look_count = round(max_s / LOOK_INTERVAL_S)
        self._sleep = sleep

    async def __call__(self) -> None:
        """Wait until the other is through with its work, but no longer than *max_s*."""
        for _ in range(self._look_count):
            if not self._is_busy():
                return
            await self._sleep(LOOK_INTERVAL_S)
