"""Priority of one queue over another: the polls of a queue wait while the other has work, each for at most a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

GATE_MAX_WAIT_S: Final = 1.0  # of one poll, so that the lower queue is never starved
CHECK_INTERVAL_S: Final = 0.05


class PriorityGate:
    """A gate before each poll of a queue, which is shut while *is_busy* returns that the other queue has work."""

    def __init__(
        self,
        is_busy: Callable[[], bool],
        *,
        max_wait_s: float = GATE_MAX_WAIT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._is_busy = is_busy
        self._check_count = round(max_wait_s / CHECK_INTERVAL_S)
        self._sleep = sleep

    async def __call__(self) -> None:
        """Wait until the other queue has no work, but no longer than *max_wait_s*."""
        for _ in range(self._check_count):
            if not self._is_busy():
                return
            await self._sleep(CHECK_INTERVAL_S)
