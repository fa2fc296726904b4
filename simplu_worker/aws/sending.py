"""Send items to a stream or a queue: cut into requests that keep the order of each key, refused ones again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

from simplu_worker.errors import RetryableError
from simplu_worker.timing.backoff import backoff_s

TRIES_MAX: Final = 8  # in a row, without an item taken
RETRY_BASE_S: Final = 0.2
RETRY_MAX_S: Final = 5.0

T = TypeVar("T")
OnFailure: TypeAlias = Callable[[RetryableError], None]


class RequestBounds(NamedTuple):
    """What a request may have."""

    max_count: int
    max_bytes: int


def cut(
    items: Iterable[T], bounds: RequestBounds, *, key_of: Callable[[T], str | None], size_of: Callable[[T], int]
) -> Iterator[list[T]]:
    """Cut *items* into requests, in order, none with two items of one key.

    A service that refuses a part of a request may refuse an earlier item of a key and take the later one.
    """
    request: list[T] = []
    keys: set[str] = set()
    size_bytes = 0
    for item in items:
        key, item_bytes = key_of(item), size_of(item)
        is_full = len(request) == bounds.max_count or size_bytes + item_bytes > bounds.max_bytes
        if request and (is_full or key in keys):
            yield request
            request, keys, size_bytes = [], set(), 0
        request.append(item)
        if key is not None:
            keys.add(key)
        size_bytes += item_bytes
    if request:
        yield request


async def send_request(
    name: str,
    items: Sequence[T],
    send: Callable[[Sequence[T]], Awaitable[Sequence[T]]],
    on_failure: OnFailure | None = None,
) -> None:
    """Call *send*, which returns refused items, until it has taken all *items*. Raises the error of the last try.

    *on_failure* gets the error of each try. After an error any number of the items may have been taken.
    """
    failure_count = 0
    while items:
        try:
            refused = await send(items)
            error = RetryableError(f"{name} takes no more now")
        except RetryableError as exc:
            refused, error = items, exc
        if not refused:
            return
        if on_failure is not None:
            on_failure(error)
        failure_count = failure_count + 1 if len(refused) == len(items) else 1
        if failure_count == TRIES_MAX:
            raise error
        items = refused
        await asyncio.sleep(backoff_s(failure_count, draw=random.random(), base_s=RETRY_BASE_S, max_s=RETRY_MAX_S))
