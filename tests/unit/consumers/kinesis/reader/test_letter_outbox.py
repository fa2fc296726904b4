from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import pytest

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT
from simplu_worker.consumers.kinesis.reader.letter_outbox import REQUESTS_MAX, LetterOutbox, take_in_turn
from simplu_worker.errors import RetryableError
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.vocabulary import DeadLetterReason, Source

AT = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("waiting", "most", "taken", "left"),
    [
        ({}, 3, "", {}),
        ({"a": "1234", "b": "x", None: "?"}, 5, "1x?23", {"a": "4"}),
        ({"a": "123", "b": "xy"}, 3, "1x2", {"b": "y", "a": "3"}),
    ],
)
def test_businesses_take_turns(waiting: dict[str | None, str], most: int, taken: str, left: dict[str, str]) -> None:
    queues = {business_id: deque(items) for business_id, items in waiting.items()}
    assert "".join(take_in_turn(queues, most)) == taken
    assert [(one, "".join(own)) for one, own in queues.items()] == list(left.items())


class Slow:
    def __init__(self) -> None:
        self.requests: list[list[str | None]] = []
        self.are_all_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        self.requests.append([letter.business_id for letter in letters])
        if len(self.requests) == REQUESTS_MAX:
            self.are_all_asked.set()
        await self.may_answer.wait()
        if stopping.is_set():
            raise RetryableError("stopping")


def letters_of(*business_ids: str | None) -> list[DeadLetter]:
    origin = Origin(Source.KINESIS, "operations", AT)
    return [DeadLetter(DeadLetterReason.INVALID_JSON, "?", origin, AT, 1, b"", business_id=one) for one in business_ids]


@pytest.mark.parametrize("is_stopped", [False, True], ids=["stored", "not stored at the stop"])
async def test_records_are_finished_when_their_letters_are_stored(*, is_stopped: bool) -> None:
    queue, stopping, ending, finished = Slow(), asyncio.Event(), asyncio.Event(), list[str]()
    outbox = LetterOutbox(queue, lambda: stopping)
    under_way = REQUESTS_MAX * BATCH_MAX_COUNT
    outbox.add(letters_of(*[None] * (under_way + 5)), partial(finished.append, "flood"))
    outbox.add(letters_of("quiet"), partial(finished.append, "quiet"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(outbox.run(ending))
        await queue.are_all_asked.wait()
        assert (queue.requests[0][:2], finished) == ([None, "quiet"], [])
        if is_stopped:
            stopping.set()
        ending.set()
        queue.may_answer.set()
    if is_stopped:
        with pytest.raises(RetryableError):
            await outbox.finish(ending)
        assert (finished, len(queue.requests)) == ([], REQUESTS_MAX)
        return
    outbox.add(letters_of("late"), partial(finished.append, "late"))
    await outbox.finish(ending)
    assert finished == ["quiet", "flood", "late"]
