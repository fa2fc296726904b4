from __future__ import annotations

import asyncio

from simplu_worker.status.metrics_text import SharedAnswer


class Made:
    def __init__(self) -> None:
        self.count = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.now = 0.0
        self.error: Exception | None = None
        self.shared = SharedAnswer(self.make, fresh_s=1.0, clock=lambda: self.now)

    async def make(self) -> int:
        self.count += 1
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return self.count


async def test_answer_is_made_once_for_concurrent_callers() -> None:
    made = Made()
    assert await asyncio.gather(*(made.shared() for _ in range(100))) == [1] * 100


async def test_answer_is_kept_for_a_moment_from_its_end_on() -> None:
    made = Made()
    answers = [await made.shared()]
    for now in (0.9, 1.0, 1.9, 2.0):
        made.now = now
        answers.append(await made.shared())
    assert answers == [1, 1, 2, 2, 3]


async def test_forgotten_answer_is_made_again() -> None:
    made = Made()
    await made.shared()
    made.shared.forget()
    made.may_end.clear()
    asking = asyncio.create_task(made.shared())
    await asyncio.sleep(0)
    made.shared.forget()
    made.may_end.set()
    assert [await asking, await made.shared(), await made.shared()] == [2, 3, 3]


async def test_cancelled_caller_leaves_the_work_to_the_next() -> None:
    made = Made()
    made.may_end.clear()
    callers = [asyncio.create_task(made.shared()) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.sleep(0)
    made.may_end.set()
    assert await asyncio.gather(*callers[1:]) == [2, 2]
