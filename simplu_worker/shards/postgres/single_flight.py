"""A single-flight probe: callers during a probe, or shortly after it, share its result.

A failure is shared for a shorter time: its callers back off before the next probe, and the shard may recover first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from simplu_worker.errors import RetryableError
from simplu_worker.timing.clock import loop_time

FRESH_S: Final = 0.5  # how long a success is shared
FAILED_FRESH_S: Final = 0.2


class SingleFlightProbe:
    """The shared form of *probe*, which raises `RetryableError` on failure: one call for all concurrent callers.

    A cancelled probe has no result: the next waiting caller probes again.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], *, clock: Callable[[], float] = loop_time) -> None:
        self._probe = probe
        self._clock = clock
        self._turn = asyncio.Lock()
        self._probed_at: float | None = None
        self._error: RetryableError | None = None

    def __repr__(self) -> str:
        return f"SingleFlightProbe(probed_at={self._probed_at}, error={self._error!r})"

    async def __call__(self) -> None:
        """Probe, or share a success at most `FRESH_S` old, or a failure at most `FAILED_FRESH_S` old."""
        async with self._turn:
            fresh_s = FRESH_S if self._error is None else FAILED_FRESH_S
            if self._probed_at is None or self._clock() - self._probed_at > fresh_s:
                self._error = await self._run_probe()
                self._probed_at = self._clock()
            if self._error is not None:
                raise self._error

    async def _run_probe(self) -> RetryableError | None:
        try:
            await self._probe()
        except RetryableError as exc:
            return exc
        return None
