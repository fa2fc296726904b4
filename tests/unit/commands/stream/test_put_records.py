"""Items that a place refuses are put again, unless they would be refused again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.aws.endpoints import REGION, ScriptedAws

from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sqs_queue import OutgoingMessage, Queue
from simplu_worker.commands.stream import put_records
from simplu_worker.commands.stream.put_records import TRIES_MAX, put_all, queue_sink
from simplu_worker.errors import PermanentError, RetryableError

MESSAGES = [OutgoingMessage("a"), OutgoingMessage("b")]

pytestmark = pytest.mark.usefixtures("aws_credentials")


@asynccontextmanager
async def queue_of(aws: ScriptedAws) -> AsyncIterator[Queue]:
    async with aws.running() as url, open_client("sqs", region=REGION, endpoint_url=url) as client:
        yield Queue(client, f"{url}/0/orders")


def refusal(code: str, *, is_sender_fault: bool) -> dict[str, object]:
    failed = {"Id": "1", "Code": code, "SenderFault": is_sender_fault}
    return {"Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": ""}], "Failed": [failed]}


async def test_entry_that_sqs_finds_at_fault_is_not_sent_again() -> None:
    aws = ScriptedAws()
    aws.answer(refusal("InvalidMessageContents", is_sender_fault=True))
    async with queue_of(aws) as queue:
        with pytest.raises(PermanentError, match=r"^queue orders: .*: InvalidMessageContents$"):
            await put_all(queue_sink(queue), MESSAGES)
    assert len(aws.requests) == 1


@pytest.mark.parametrize(("code", "is_sender_fault"), [("InternalError", False), ("RequestThrottled", True)])
async def test_entry_that_sqs_may_take_later_is_sent_again(
    code: str,
    is_sender_fault: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(put_records, "RETRY_BASE_S", 0.001)
    aws = ScriptedAws()
    aws.answer(refusal(code, is_sender_fault=is_sender_fault))
    for _ in range(TRIES_MAX):
        aws.answer({"Failed": [{"Id": "0", "Code": code, "SenderFault": is_sender_fault}]})
    errors: list[RetryableError] = []
    async with queue_of(aws) as queue:
        with pytest.raises(RetryableError, match=f"^queue orders takes no more now: {code}$"):
            await put_all(queue_sink(queue), MESSAGES, on_failure=errors.append)
    assert [len(body["Entries"]) for _, body in aws.requests] == [2, *[1] * (len(aws.requests) - 1)]
    assert len(errors) == len(aws.requests)
