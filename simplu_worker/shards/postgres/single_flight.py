"""One look for many: who asks while somebody looks, or just after, gets that one's answer.

A bad one for less long: whoever takes it waits before asking again, while the shard may be back already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from simplu_worker.errors import RetryableError
from simplu_worker.timing.clock import loop_time

FRESH_S: Final = 0.5  # how long an answer is everybody's
FAILED_FRESH_S: Final = 0.2


class SingleFlightProbe:
    """Calls *look*, which says by `RetryableError` what it found amiss, once for all who want to know.

    A look that is cancelled answers nobody: the next one who waits looks anew.
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
        """Look, or take the answer of a look that ended at most `FRESH_S` ago, `FAILED_FRESH_S` if it was a bad one."""
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
