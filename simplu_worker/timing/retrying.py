"""Repeat a call that fails for a while, for commands: a person waits, so there is an end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from simplu_worker.errors import RetryableError
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import loop_time

PATIENCE_S: Final = 10.0
RETRY_BASE_S, RETRY_MAX_S = 0.2, 2.0

T = TypeVar("T")


async def retry(call: Callable[[], Awaitable[T]], *, draw: Callable[[], float] = random.random) -> T:
    """Return the result of *call*, which is repeated for up to *PATIENCE_S* while it raises `RetryableError`."""
    deadline, failure_count = loop_time() + PATIENCE_S, 0
    while True:
        try:
            return await call()
        except RetryableError:
            failure_count += 1
            if loop_time() >= deadline:
                raise
            await asyncio.sleep(backoff_s(failure_count, draw=draw(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S))
