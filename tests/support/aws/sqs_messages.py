"""Messages for tests of receivers and handlers."""

from __future__ import annotations

from datetime import UTC, datetime

from simplu_worker.aws.sqs_queue import Message


def message(
    message_id: str, *, group: str | None = None, handle: str = "h", body: str = "{}", receive_count: int = 1
) -> Message:
    return Message(
        message_id=message_id,
        receipt_handle=handle,
        body=body,
        attributes={},
        sent_at=datetime(2026, 1, 2, tzinfo=UTC),
        receive_count=receive_count,
        group_id=group,
    )
