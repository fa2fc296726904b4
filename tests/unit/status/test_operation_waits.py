from __future__ import annotations

import asyncio
from typing import Any, cast

from support.reader_world import eventually

from simplu_worker.status import lookups
from simplu_worker.status.lookups import Lookups


class Shards:
    def __init__(self) -> None:
        self.lookups = self
        self.decided: set[str] = set()
        self.looks: list[str] = []
        self.failure: Exception | None = None
        self.silent = "nobody"

    async def is_decided(self, _: str, business_id: str, request_id: str) -> bool:
        self.looks.append(request_id)
        if business_id == self.silent:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        return request_id in self.decided

    def is_tenant(self, *_: str) -> bool:
        return True

    def begin(
        self, request_id: str, business_id: str = "t", within_s: float = 60.0, closing: asyncio.Event | None = None
    ) -> asyncio.Task[None]:
        answers = Lookups(
            cast(Any, self), cast(Any, None), cast(Any, None), cast(Any, None), fleet=None, runbook_url=None
        )
        waiting = answers.wait_for_operation(request_id, business_id, "l", within_s, closing or asyncio.Event())
        return asyncio.create_task(waiting)

    async def look(self, count: int = 2) -> None:
        seen = len(self.looks)
        await eventually(lambda: len(self.looks) >= seen + count)


async def test_wait_ends_when_its_operation_is_decided(monkeypatch: Any) -> None:
    monkeypatch.setattr(lookups, "LOOK_EVERY_S", 0.001)
    shards = Shards()
    shards.silent = "s"
    first, other, silent = shards.begin("a"), shards.begin("b"), shards.begin("a", "s")
    await shards.look(4)
    shards.decided.add("a")
    await first
    assert not other.done()
    assert not silent.done()
    other.cancel()
    silent.cancel()


async def test_wait_ends_after_its_time_or_at_a_stop(monkeypatch: Any) -> None:
    monkeypatch.setattr(lookups, "LOOK_EVERY_S", 0.001)
    shards, stop = Shards(), asyncio.Event()
    await shards.begin("a", within_s=0.01)
    waiting = shards.begin("a", closing=stop)
    await shards.look()
    stop.set()
    await waiting
