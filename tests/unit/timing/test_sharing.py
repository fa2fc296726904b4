"""Concurrent callers share an answer or a batch, and no caller gets an old one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from simplu_worker.errors import RetryableError
from simplu_worker.timing.sharing import Coalescer, SharedAnswer


class Made:
    """A maker of numbered answers, which waits until it may go on."""

    def __init__(self, *, fresh_s: float = 1.0, failed_fresh_s: float = 0.0) -> None:
        self.count = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.now = 0.0
        self.error: Exception | None = None
        self.shared = SharedAnswer(self.make, fresh_s=fresh_s, failed_fresh_s=failed_fresh_s, clock=lambda: self.now)

    async def make(self) -> int:
        self.count += 1
        number = self.count
        await self.may_end.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return number

    async def start(self, count: int) -> list[asyncio.Task[int]]:
        callers = [asyncio.create_task(self.shared()) for _ in range(count)]
        await asyncio.sleep(0)
        return callers


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


async def test_caller_gets_no_answer_that_was_begun_before_it_came() -> None:
    made = Made(fresh_s=0.0)
    made.may_end.clear()
    callers = [*await made.start(1), *await made.start(2)]
    made.may_end.set()
    assert await asyncio.gather(*callers) == [1, 2, 2]


async def test_error_of_ours_is_shared_and_kept_for_its_time() -> None:
    made = Made(failed_fresh_s=0.2)
    made.error = RetryableError("down")
    made.may_end.clear()
    callers = await made.start(3)
    made.may_end.set()
    errors = await asyncio.gather(*callers, return_exceptions=True)
    assert ([str(error) for error in errors], made.count) == (["down"] * 3, 1)
    made.now = 0.1
    with pytest.raises(RetryableError):
        await made.shared()
    made.now = 0.2
    assert await made.shared() == 2


async def test_other_error_is_raised_to_the_one_who_makes() -> None:
    made = Made()
    made.error = ValueError("once")
    made.may_end.clear()
    first, second = await made.start(2)
    made.may_end.set()
    with pytest.raises(ValueError, match="once"):
        await first
    assert await second == 2


async def test_forgotten_answer_is_made_again() -> None:
    made = Made()
    await made.shared()
    made.shared.forget()
    made.may_end.clear()
    (asking,) = await made.start(1)
    made.shared.forget()
    made.may_end.set()
    assert [await asking, await made.shared(), await made.shared()] == [2, 3, 3]


async def test_cancelled_caller_leaves_the_work_to_the_next() -> None:
    made = Made()
    made.may_end.clear()
    callers = await made.start(3)
    callers[0].cancel()
    await asyncio.sleep(0)
    made.may_end.set()
    assert await asyncio.gather(*callers[1:]) == [2, 2]


class Work:
    def __init__(self, patience_s: float | None = None) -> None:
        self.patience_s = patience_s
        self.batches: list[tuple[str, list[str]]] = []
        self.begun = asyncio.Semaphore(0)
        self.permits = asyncio.Semaphore(0)
        self.error: Exception | None = None
        self.coalescer = Coalescer(self.run_batch)

    async def run_batch(self, key: str, items: Sequence[str]) -> list[str]:
        self.batches.append((key, list(items)))
        self.begun.release()
        await self.permits.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [item.upper() for item in items]

    async def submit(self, *batches: Sequence[str], key: str = "k") -> list[asyncio.Task[Sequence[str]]]:
        tasks = [
            asyncio.create_task(self.coalescer.submit(key, items, patience_s=self.patience_s)) for items in batches
        ]
        await asyncio.sleep(0)
        return tasks

    async def submit_behind_another(self, *batches: Sequence[str]) -> list[asyncio.Task[Sequence[str]]]:
        """Submit while the batch of another call runs, then let that end."""
        first = await self.submit(["a"])
        tasks = await self.submit(*batches)
        await self.begun.acquire()
        self.permits.release()
        await first[0]
        await self.begun.acquire()
        return tasks


async def test_items_submitted_while_a_batch_runs_form_the_next() -> None:
    work = Work()
    tasks = await work.submit_behind_another(["b", "c"], ["c"], [])
    (other,) = await work.submit(["x"], key="other")
    await work.begun.acquire()
    work.permits.release()
    work.permits.release()
    assert [await task for task in tasks] == [["B", "C"], ["C"], []]
    assert await other == ["X"]
    assert work.batches == [("k", ["a"]), ("k", ["b", "c", "c"]), ("other", ["x"])]


async def test_batch_runs_again_when_its_caller_is_cancelled() -> None:
    work = Work()
    first, *others = await work.submit_behind_another("b", "c", "d")
    first.cancel()
    await work.begun.acquire()
    work.permits.release()
    assert [await task for task in others] == [["C"], ["D"]]
    assert work.batches[1:] == [("k", ["b", "c", "d"])] * 2
    assert first.cancelled()


@pytest.mark.parametrize(("error", "expected"), [(RetryableError("no"), ["no"] * 2), (ValueError("no"), ["no", "C"])])
async def test_error_of_ours_is_raised_to_the_whole_batch(error: Exception, expected: list[str]) -> None:
    work = Work()
    tasks = await work.submit_behind_another("b", "c")
    work.error = error
    work.permits.release()
    work.permits.release()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(one) if isinstance(one, BaseException) else one[0] for one in results] == expected


@pytest.mark.parametrize("patience_s", [0.0, 0.01])
async def test_nobody_waits_behind_a_batch_beyond_the_patience(patience_s: float) -> None:
    work = Work(patience_s)
    first, *behind = await work.submit(["a"], ["b"], ["c"])
    assert [type(one) for one in await asyncio.gather(*behind, return_exceptions=True)] == [TimeoutError] * 2
    work.permits.release()
    assert await first == ["A"]
    work.permits.release()
    assert await work.coalescer.submit("k", ["d"]) == ["D"]
