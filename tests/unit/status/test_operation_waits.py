"""Requests that wait until an operation is decided: each looks for itself, and they are bounded."""

from __future__ import annotations

import asyncio

import pytest
from support.reader_world import eventually

from simplu_worker.errors import RetryableError
from simplu_worker.status.operation_waits import (
    WAITS_MAX,
    WAITS_OF_TENANT_MAX,
    WAITS_OF_TOKEN_MAX,
    OperationWaits,
)


class Shards:
    """What is decided and held, and the looks."""

    def __init__(self) -> None:
        self.decided: set[str] = set()
        self.held: set[str] = set()
        self.looks: list[str] = []
        self.failure: Exception | None = None
        self.silent = "nobody"

    async def is_decided(self, tenant_id: str, business_id: str, request_id: str) -> bool:
        """Look; a silent tenant's shard gives no answer."""
        assert tenant_id == f"{business_id}-l"
        self.looks.append(request_id)
        if business_id == self.silent:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        return request_id in self.decided

    def waits(self) -> OperationWaits:
        """Return waits that look almost without a pause."""
        return OperationWaits(self.is_decided, lambda business_id, _: business_id in self.held, every_s=0.001)


async def looked(shards: Shards, count: int = 4) -> None:
    """Wait until there were *count* more looks."""
    seen = len(shards.looks)
    await eventually(lambda: len(shards.looks) >= seen + count)


async def test_wait_ends_when_the_operation_is_decided() -> None:
    shards = Shards()
    waits = shards.waits()
    first, second, other = [
        asyncio.create_task(waits.wait("k", "t", "l", request, 60.0, asyncio.Event())) for request in ("a", "a", "b")
    ]
    await looked(shards)
    assert not first.done()
    shards.decided.add("a")
    assert await first
    assert await second
    await looked(shards)
    assert not other.done()
    assert shards.looks[-1] == "b"
    shards.decided.add("b")
    assert await other


async def test_wait_for_a_silent_shard_delays_no_other() -> None:
    shards, stop = Shards(), asyncio.Event()
    waits, shards.silent = shards.waits(), "s"
    silent = asyncio.create_task(waits.wait("k", "s", "l", "a", 60.0, stop))
    await looked(shards, 1)
    shards.decided.add("b")
    assert await waits.wait("k", "t", "l", "b", 60.0, asyncio.Event())
    assert not silent.done()
    stop.set()
    assert await silent


async def test_wait_ends_when_the_tenant_is_held() -> None:
    shards = Shards()
    waiting = asyncio.create_task(shards.waits().wait("k", "t", "l", "a", 60.0, asyncio.Event()))
    await looked(shards)
    shards.held.add("t")
    assert await waiting


async def test_wait_ends_after_its_time_or_at_a_stop_and_nothing_is_asked_then() -> None:
    shards = Shards()
    waits, stop = shards.waits(), asyncio.Event()
    assert await waits.wait("k", "t", "l", "a", 0.01, asyncio.Event())
    waiting = asyncio.create_task(waits.wait("k", "t", "l", "a", 60.0, stop))
    await looked(shards)
    stop.set()
    assert await waiting
    count = len(shards.looks)
    await asyncio.sleep(0.01)
    assert len(shards.looks) == count


async def test_look_that_fails_ends_no_wait() -> None:
    for failure in (RetryableError("no answer"), RuntimeError("a defect")):
        shards = Shards()
        shards.failure = failure
        waiting = asyncio.create_task(shards.waits().wait("k", "t", "l", "a", 60.0, asyncio.Event()))
        await looked(shards)
        assert not waiting.done()
        shards.failure = None
        shards.decided.add("a")
        assert await waiting


@pytest.mark.parametrize(
    ("token", "tenant", "bound"),
    [("k{}", "t{}", WAITS_MAX), ("k", "t{}", WAITS_OF_TOKEN_MAX), ("k{}", "t", WAITS_OF_TENANT_MAX)],
)
async def test_waits_are_bounded_and_make_room(token: str, tenant: str, bound: int) -> None:
    shards = Shards()
    waits, stops = shards.waits(), [asyncio.Event() for _ in range(bound)]

    async def wait(number: int, within_s: float, stop: asyncio.Event) -> bool:
        return await waits.wait(token.format(number), tenant.format(number), "l", "r", within_s, stop)

    waiting = [asyncio.create_task(wait(number, 60.0, stop)) for number, stop in enumerate(stops)]
    await looked(shards)
    assert not await wait(bound, 60.0, asyncio.Event())
    assert await waits.wait("other", "other", "l", "r", 0.0, asyncio.Event()) == (bound < WAITS_MAX)
    stops[0].set()
    assert await waiting[0]
    assert await wait(bound, 0.0, asyncio.Event())
    for stop in stops:
        stop.set()
    assert all(await asyncio.gather(*waiting))
    assert repr(waits).count("{}") == 2  # nothing is remembered of them
