"""Repeat a call that fails for a while: the door to stamina."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Final, TypeAlias

import stamina
from stamina.instrumentation import set_on_retry_hooks

from simplu_worker.errors import RetryableError

set_on_retry_hooks(())  # its own would log arguments, and count what the metrics of our doors count

PATIENCE_S: Final = 10.0
RETRY_BASE_S, RETRY_MAX_S = 0.2, 2.0

RetryOn: TypeAlias = type[Exception] | Callable[[Exception], bool | float]

retry: Final = stamina.AsyncRetryingCaller(
    attempts=None, timeout=PATIENCE_S, wait_initial=RETRY_BASE_S, wait_max=RETRY_MAX_S, wait_jitter=RETRY_BASE_S
).on(RetryableError)
"""Call a function with its arguments, for a person who waits: again for PATIENCE_S while it raises RetryableError."""


def attempts(on: RetryOn, *, count: int, base_s: float, max_s: float) -> AsyncIterable[stamina.Attempt]:
    """Yield up to *count* attempts at a block of code, each a context to run it in, until one does not raise *on*.

    A function as *on* returns whether to try again after an error, or the seconds until then. The last error is raised.
    """
    return stamina.retry_context(
        on, attempts=count, timeout=None, wait_initial=base_s, wait_max=max_s, wait_jitter=base_s
    )
