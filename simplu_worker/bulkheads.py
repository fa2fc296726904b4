"""Bulkheads: an exception that nobody foresaw is the trouble of one target, and everything else goes on.

Whoever catches it counts and logs it here, forgets the target, and tries again after a back-off. Nothing is skipped:
records are read again, and the log of operations drops what was applied. Only a process without memory ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import datetime
from functools import wraps
from typing import Any, Final, TypeVar, cast

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.errors import InternalError, WorkerError, place_of, places_of
from simplu_worker.timing.clock import loop_time, utc_now
from simplu_worker.timing.waits import backoff_s, sleep_or_event
from simplu_worker.vocabulary import TargetKind

RETRY_BASE_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
SOUND_AFTER_S: Final = 120.0  # a target without a new error for so long is well again; more than twice the back-off
TROUBLES_MAX: Final = 1000

MethodT = TypeVar("MethodT", bound=Callable[..., Coroutine[Any, Any, Any]])
log = structlog.get_logger(__name__)


class Trouble(msgspec.Struct, frozen=True):
    """The unforeseen errors of one loop; *name* is that of its target, None of a tenant."""

    target: TargetKind
    name: str | None
    loop: str
    error: str
    count: int
    since: datetime
    last_at: datetime
    fresh_until: float  # monotonic


_troubles: dict[tuple[TargetKind, str | None, str], Trouble] = {}


def note_trouble(target: TargetKind, name: str, loop: str, exc: Exception) -> InternalError:
    """Count and log *exc* as trouble of a target; return the error for those who wait.

    The log has no message: it may quote a record. Without memory *exc* is raised again.
    """
    _require_memory(exc)
    leaves = _leaves(exc)
    noted = [leaf for leaf in leaves if isinstance(leaf, InternalError)]  # where they were caught first
    if len(noted) == len(leaves):
        return noted[0]
    leaves = [leaf for leaf in leaves if leaf not in noted]
    error = " + ".join(sorted({place_of(leaf) for leaf in leaves}))
    instruments.INTERNAL_ERRORS.labels(target).inc(len(leaves))
    shown = None if target is TargetKind.TENANT else name
    trouble = _remember(target, shown, loop, error)
    log.error(
        "loop.failed",
        target=target,
        loop=loop,
        shard_id=name if target is TargetKind.SHARD else None,
        stream_shard_id=name if target is TargetKind.STREAM_SHARD else None,
        queue=name if target is TargetKind.QUEUE else None,
        error=error,
        count=trouble.count,
        traceback=[places_of(leaf) for leaf in leaves],
    )
    return InternalError(f"an error inside the worker, see the log: {error}")


@contextlib.contextmanager
def contain(target: TargetKind, name: str, loop: str) -> Iterator[None]:
    """Note what is raised inside the block as trouble of a target, and go on behind the block."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is the trouble of this target alone
        note_trouble(target, name, loop, exc)


@contextlib.contextmanager
def translate(target: TargetKind, name: str, loop: str, *foreseen: type[Exception]) -> Iterator[None]:
    """Raise `InternalError` in place of all but the errors *foreseen*, and note it."""
    try:
        yield
    except foreseen:
        raise
    except Exception as exc:
        raise note_trouble(target, name, loop, exc) from exc


def _by_target(target: TargetKind) -> Callable[[MethodT], MethodT]:

    def decorate(method: MethodT) -> MethodT:
        @wraps(method)
        async def call(owner: object, name: str, *args: Any, **kwargs: Any) -> Any:
            with translate(target, name, method.__name__, WorkerError):
                return await method(owner, name, *args, **kwargs)

        return cast(MethodT, call)

    return decorate


# For methods whose first argument is the target's name.
of_shard: Final = _by_target(TargetKind.SHARD)
of_tenant: Final = _by_target(TargetKind.TENANT)


async def keep_running(
    target: TargetKind,
    name: str,
    loop: str,
    work: Callable[[], Awaitable[None]],
    *,
    stopping: asyncio.Event | None = None,
    draw: Callable[[], float] = random.random,
) -> None:
    """Run *work* until it returns; after an error again with a back-off, which *stopping* ends."""
    until = stopping or asyncio.Event()
    failures = FailureCount()
    while True:
        try:
            await work()
        except Exception as exc:  # noqa: BLE001  # as above
            note_trouble(target, name, loop, exc)
        else:
            return
        if await sleep_or_event(failures.next_delay_s(draw()), until=until):
            return


class FailureCount:
    """The unforeseen errors of one loop in a row, and the delay before its next try."""

    def __init__(self) -> None:
        self._count = 0
        self._last_at = float("-inf")

    def next_delay_s(self, draw: float) -> float:
        """Count an error, and return the delay before the next try."""
        now = loop_time()
        self._count = 1 if now - self._last_at > SOUND_AFTER_S else self._count + 1
        self._last_at = now
        return backoff_s(self._count, draw=draw, base_s=RETRY_BASE_S, max_s=RETRY_MAX_S)


def current_troubles() -> list[Trouble]:
    """Return the troubles of the last SOUND_AFTER_S, the newest first."""
    now = loop_time()
    for key in [key for key, trouble in _troubles.items() if trouble.fresh_until < now]:
        del _troubles[key]
    return sorted(_troubles.values(), key=lambda one: one.last_at, reverse=True)


def _remember(target: TargetKind, name: str | None, loop: str, error: str) -> Trouble:
    now, key = utc_now(), (target, name, loop)
    known = _troubles.pop(key, None)
    count, since = (1, now) if known is None or known.fresh_until < loop_time() else (known.count + 1, known.since)
    trouble = Trouble(target, name, loop, error, count, since, now, loop_time() + SOUND_AFTER_S)
    _troubles[key] = trouble
    while len(_troubles) > TROUBLES_MAX:
        del _troubles[next(iter(_troubles))]
    return trouble


def _leaves(exc: BaseException) -> list[Exception]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]
    return [exc] if isinstance(exc, Exception) else []


def _require_memory(exc: Exception) -> None:
    if any(isinstance(leaf, MemoryError) for leaf in _leaves(exc)):
        raise exc
