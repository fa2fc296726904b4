"""What the local SQS is told to do wrong, and the other commands of its control path. Does no I/O.

A command is a JSON object whose member `do` names it: fault, clear_faults, expire_receipts, advance_clock, set. Its
other members are those of the class.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from simplu_worker.local.sqs.actions import failed_entry
from simplu_worker.local.sqs.errors import SqsError
from simplu_worker.local.sqs.requests import BatchRequest


class SqsFault(msgspec.Struct, tag_field="do", tag="fault", forbid_unknown_fields=True, kw_only=True):
    """Let the next *count* calls of *action* go wrong, of *queue* (its name) only if it is named.

    Kinds: `throttle`; `fail` (500 InternalFailure, or *code*, a shape of SQS's model such as OverLimit, and *status*);
    `hang` (no answer until the faults are cleared or the client goes); `cut` (the connection is reset); `delay` (the
    answer comes *delay_ms* later); `entries` (of a batch the first *entries* fail with *code* and *sender_fault*);
    `duplicate` (ReceiveMessage, standard queues: what is given out may be given out again at once).
    With *applied* the action is done first, and then its answer hangs, is cut, is late, is an error, or names entries
    as failed that were done.
    """

    action: str
    kind: Literal["throttle", "fail", "hang", "cut", "delay", "entries", "duplicate"]
    count: Annotated[int, Meta(ge=1)] = 1
    queue: str | None = None
    applied: bool = False
    delay_ms: int = 0
    code: str | None = None
    status: int | None = None
    entries: Annotated[int, Meta(ge=1, le=10)] = 1
    sender_fault: bool = False

    def error(self) -> SqsError | None:
        """Return the error to answer with; none when this fault is of another kind."""
        if self.kind == "throttle":
            return SqsError(self.code or "RequestThrottled", "throttled on demand", status=self.status or 400)
        if self.kind == "fail":
            status = self.status or (400 if self.code else 500)
            return SqsError(self.code or "InternalFailure", "failed on demand", status=status)
        return None

    def failed_of(self, request: BatchRequest) -> list[dict[str, Any]]:
        """Return the entries of *request* that are to fail, as they are answered."""
        code, message = self.code or "InternalError", "failed on demand"
        entries = request.entries[: self.entries]
        return [failed_entry(entry.id, code, message, sender_fault=self.sender_fault) for entry in entries]


class ClearFaults(msgspec.Struct, tag_field="do", tag="clear_faults", forbid_unknown_fields=True):
    """Forget the faults that are left, and let what hangs go on."""


class ExpireReceipts(msgspec.Struct, tag_field="do", tag="expire_receipts", forbid_unknown_fields=True):
    """Let the visibility timeout of everything in flight in *queue* (its name) end now."""

    queue: str


class AdvanceClock(msgspec.Struct, tag_field="do", tag="advance_clock", forbid_unknown_fields=True):
    """Put the server's clock forward."""

    ms: Annotated[int, Meta(ge=0)]


class SetOptions(msgspec.Struct, tag_field="do", tag="set", forbid_unknown_fields=True):
    """Change members of `SqsOptions`."""

    options: dict[str, Any]


SqsCommand = SqsFault | ClearFaults | ExpireReceipts | AdvanceClock | SetOptions


class Faults:
    """The faults that are still to come, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._waiting: list[SqsFault] = []

    def __repr__(self) -> str:
        return f"Faults({self._waiting})"

    @property
    def waiting(self) -> list[SqsFault]:
        """What is left; each counts down."""
        return self._waiting

    def add(self, fault: SqsFault) -> None:
        """Ask for *fault*, behind those of the same action."""
        self._waiting.append(fault)

    def clear(self) -> None:
        """Forget what is left."""
        self._waiting.clear()

    def take(self, action: str, queue: str | None) -> SqsFault | None:
        """Return the fault that this call is to suffer, and count it."""
        for fault in self._waiting:
            if fault.action == action and fault.queue in {None, queue}:
                fault.count -= 1
                if not fault.count:
                    self._waiting.remove(fault)
                return fault
        return None
