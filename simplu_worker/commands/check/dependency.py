"""One dependency and its answer, as `check` shows them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.vocabulary import ProblemCause

DEADLINE_S: Final = 10.0
READ_TIMEOUT_S: Final = 8.0  # below DEADLINE_S: the client's own error names the service that hangs
T = TypeVar("T")


class CheckStatus(StrEnum):
    """The state of a dependency."""

    OK = "ok"
    WARNING = "warning"  # it works, with a problem; or no configured feature needs it
    FAILED = "failed"
    OFF = "off"  # not configured, or not there to be asked


class CheckAnswer(msgspec.Struct, frozen=True):
    """The answer of one dependency."""

    result: str
    status: CheckStatus = CheckStatus.OK


# What is wrong when one fails, in the words of the page and the alerts.
CAUSES: Final = {
    "credentials": ProblemCause.CREDENTIALS_FAILING,
    "stream": ProblemCause.STREAM_FAILING,
    "lease table": ProblemCause.STREAM_SHARD_UNREAD,
    "control queue": ProblemCause.QUEUE_FAILING,
    "order events": ProblemCause.QUEUE_FAILING,
    "priority order events": ProblemCause.QUEUE_FAILING,
    "dead letters": ProblemCause.QUEUE_FAILING,
    "Citrus": ProblemCause.CITRUS_FAILING,
    "Redis": ProblemCause.CACHE_FAILING,
}


class CheckedDependency(msgspec.Struct, frozen=True):
    """One dependency with its answer: a line of the table."""

    dependency: str
    address: str
    status: CheckStatus
    result: str
    seconds: float

    @property
    def cause(self) -> ProblemCause | None:
        """What is wrong if it fails."""
        return ProblemCause.SHARD_LOST if self.dependency.startswith("shard ") else CAUSES.get(self.dependency)


async def check_dependency(
    dependency: str, address: str, ask: Callable[[], Awaitable[CheckAnswer]]
) -> CheckedDependency:
    """Call *ask* for at most DEADLINE_S, and time it."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_S):
            answer = await ask()
    except TimeoutError:
        answer = CheckAnswer(f"no answer within {DEADLINE_S:g} s", CheckStatus.FAILED)
    except WorkerError as exc:
        answer = CheckAnswer(str(exc), CheckStatus.FAILED)
    return CheckedDependency(dependency, address, answer.status, answer.result, round(time.perf_counter() - started, 4))


async def run_all(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run *coroutines* concurrently; return their results in order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in coroutines]
    return [task.result() for task in tasks]
