"""The commands of the local SQS's control path. Pure.

Beside those of every service (`aws_server.faults`): expire_receipts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from simplu_local.aws_server.faults import AdvanceClock, ClearFaults, Fault, SetOptions
from simplu_local.sqs.actions import failed_entry
from simplu_local.sqs.errors import SqsError
from simplu_local.sqs.requests import BatchRequest


class SqsFault(Fault, kw_only=True):
    """A fault of the SQS API; with *queue*, a name, only of that queue.

    More kinds: `throttle`; `fail` (500 InternalFailure, or *code*, a shape of SQS's model such as OverLimit, and
    *status*); `entries` (of a batch the first *entries* fail with *code* and *sender_fault*); `duplicate`
    (ReceiveMessage of a standard queue: the received messages stay visible). With *applied*, `entries` reports entries
    as failed that were done.
    """

    kind: Literal["throttle", "fail", "hang", "cut", "delay", "entries", "duplicate"]
    queue: str | None = None
    entries: Annotated[int, Meta(ge=1, le=10)] = 1
    sender_fault: bool = False

    @property
    def target(self) -> str | None:
        """The queue of which calls fail; none: every call of the action fails."""
        return self.queue

    def error(self) -> SqsError | None:
        """Return the error to answer with; none when this fault is of another kind."""
        if self.kind == "throttle":
            return SqsError(self.code or "RequestThrottled", "throttled on demand", status=self.status or 400)
        if self.kind == "fail":
            status = self.status or (400 if self.code else 500)
            return SqsError(self.code or "InternalFailure", "failed on demand", status=status)
        return None

    def failed_entries(self, request: BatchRequest) -> list[dict[str, Any]]:
        """Return the entries of *request* that are to fail, as the answer lists them."""
        code, message = self.code or "InternalError", "failed on demand"
        entries = request.entries[: self.entries]
        return [failed_entry(entry.id, code, message, sender_fault=self.sender_fault) for entry in entries]


class ExpireReceipts(msgspec.Struct, tag_field="do", tag="expire_receipts", forbid_unknown_fields=True):
    """Let the visibility timeout of every message in flight in *queue* (its name) end now."""

    queue: str


SqsCommand = SqsFault | ClearFaults | ExpireReceipts | AdvanceClock | SetOptions
