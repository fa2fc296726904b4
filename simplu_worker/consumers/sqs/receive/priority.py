"""Priority of one queue over another: while the other has work, a queue polls in a turn of its own, or each second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

GATE_MAX_WAIT_S: Final = 1.0  # of one poll, so that the lower queue is never starved
CHECK_INTERVAL_S: Final = 0.05
POLLS_AHEAD: Final = 4  # of the other queue, before it is this one's turn


class PriorityGate:
    """A gate before each poll of a queue, which is shut while *is_busy* returns that the other queue has work.

    *poll_count* returns how many polls of the other queue were answered: after some more the gate opens for one poll.
    """

    def __init__(
        self,
        is_busy: Callable[[], bool],
        poll_count: Callable[[], int],
        *,
        max_wait_s: float = GATE_MAX_WAIT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._is_busy = is_busy
        self._poll_count = poll_count
        self._check_count = round(max_wait_s / CHECK_INTERVAL_S)
        self._sleep = sleep
        self._opens_at = POLLS_AHEAD

    async def __call__(self) -> None:
        """Wait until the other queue has no work, or it is this one's turn, but no longer than *max_wait_s*."""
        for _ in range(self._check_count):
            if not self._is_busy() or self._poll_count() >= self._opens_at:
                break
            await self._sleep(CHECK_INTERVAL_S)
        self._opens_at = self._poll_count() + POLLS_AHEAD
