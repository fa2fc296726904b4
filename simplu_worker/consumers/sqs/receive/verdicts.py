"""The verdict of a handler on a message, and the rules from an error to a verdict. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, TypeAlias, TypeVar, assert_never

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.decode import readable_members
from simplu_worker.operations.json_record import (
    ABSENT,
    InvalidRecordError,
    json_error,
    replace_lone_surrogates,
    shape_error,
)
from simplu_worker.operations.operation import RejectedRecord
from simplu_worker.timing.waits import backoff_s
from simplu_worker.vocabulary import DeadLetterReason

OUTAGE_BASE_S = 1.0
OUTAGE_MAX_S = 60.0


class MessageIds(msgspec.Struct, frozen=True):
    """The ids that a dead letter carries, as far as they are known."""

    business_id: str | None = None
    location_id: str | None = None
    request_id: str | None = None
    resource_id: str | None = None


class Done(msgspec.Struct, frozen=True):
    """The message was handled: delete it."""


class ToDeadLetter(msgspec.Struct, frozen=True):
    """The message can never be handled: store a dead letter, then delete it. *error* does not quote the message.

    *attempts* counts the failed tries of its operation; 1 if it was refused. *before_delete* records on the shard that
    it was given up; after its RetryableError the message returns to the queue.
    """

    reason: DeadLetterReason
    error: str
    ids: MessageIds = MessageIds()
    attempts: int = 1
    before_delete: Callable[[], Awaitable[object]] | None = None


class ReturnToQueue(msgspec.Struct, frozen=True):
    """The message returns to the queue, and becomes visible after *delay_s*."""

    delay_s: int


class RetryHeld(msgspec.Struct, frozen=True):
    """The message stays in flight, hidden, and is handled again after *delay_s*.

    It returns to the queue instead when it was held for long, or held messages take half of the room in flight.
    """

    delay_s: float


Verdict: TypeAlias = Done | ToDeadLetter | ReturnToQueue | RetryHeld


class RetryRules(msgspec.Struct, frozen=True):
    """*delays_s* are the delays after failures of an operation itself, one for each retry.

    *tenant_wait* is how long a message waits, from when it was sent, for a tenant or a resource that does not exist
    yet.
    """

    delays_s: Sequence[float]
    tenant_wait: timedelta


def verdict_on_error(
    error: RetryableError | PermanentError, message: Message, ids: MessageIds, *, draw: float
) -> RetryHeld | ToDeadLetter:
    """Return the verdict after *error*: an outage holds a message, however long."""
    match error:
        case RetryableError():
            return RetryHeld(delay_s=retry_delay_s(error, message, draw=draw))
        case PermanentError():
            return ToDeadLetter(DeadLetterReason.INVALID_MESSAGE, str(error), ids)
        case _:
            assert_never(error)


def verdict_on_failure(
    error: str, failure_count: int, ids: MessageIds, *, rules: RetryRules
) -> RetryHeld | ToDeadLetter:
    """Return the verdict on a message whose operation failed *failure_count* times, the last time with *error*.

    Nothing else counts: no receive, no outage, no wait. *error* is a type or a code, as a text may quote the message.
    """
    if failure_count <= len(rules.delays_s):
        return RetryHeld(delay_s=rules.delays_s[max(failure_count, 1) - 1])
    text = f"it failed {failure_count} times: {error}"
    return ToDeadLetter(DeadLetterReason.RETRIES_EXHAUSTED, text, ids, attempts=failure_count)


def verdicts_after_defect(messages: Sequence[Message], *, is_fifo: bool, draw: float) -> list[Verdict]:
    """Return the verdicts on a call whose handler raised what nobody foresaw: all come again."""
    verdicts: list[Verdict] = []
    groups: set[str] = set()
    for message in messages:
        group = (is_fifo and message.group_id) or message.message_id
        is_behind = group in groups
        verdicts.append(ReturnToQueue(0) if is_behind else RetryHeld(message_backoff_s(message, draw=draw)))
        groups.add(group)
    return verdicts


def verdict_on_rejected(rejected: RejectedRecord) -> ToDeadLetter:
    """Return the verdict on a message that its decoder rejected."""
    ids = MessageIds(rejected.business_id, rejected.location_id, rejected.request_id, rejected.resource_id)
    return ToDeadLetter(rejected.reason, rejected.error, ids)


def retry_delay_s(error: RetryableError, message: Message, *, draw: float) -> float:
    """Return the back-off of *message*, or longer when *error* asks for that."""
    asked_s = min(error.retry_after_s or 0.0, OUTAGE_MAX_S)
    return max(message_backoff_s(message, draw=draw), asked_s)


def message_backoff_s(message: Message, *, draw: float) -> float:
    """Return the back-off of *message* by its own tries, at most a minute."""
    return backoff_s(message.try_count, draw=draw, base_s=OUTAGE_BASE_S, max_s=OUTAGE_MAX_S)


class UnknownTypeError(Exception):
    """The type of a message is missing or unknown."""


class PeekedMessage(msgspec.Struct, rename="camel"):
    """The tenant's ids of a message that may be invalid."""

    business_id: msgspec.Raw = ABSENT
    location_id: msgspec.Raw = ABSENT


P = TypeVar("P", bound=PeekedMessage)

# msgspec's ValidationError is a DecodeError.
DECODING_ERRORS: Final = (
    UnknownTypeError,
    InvalidRecordError,
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)


def rejection_of(error: Exception) -> tuple[DeadLetterReason, str]:
    """Return reason and text of a rejection because of one of DECODING_ERRORS."""
    match error:
        case UnknownTypeError():
            return DeadLetterReason.UNKNOWN_TYPE, str(error)
        case InvalidRecordError():
            return DeadLetterReason.INVALID_MESSAGE, str(error)
        case msgspec.ValidationError():
            return DeadLetterReason.INVALID_MESSAGE, shape_error(error)
        case _:
            return DeadLetterReason.INVALID_JSON, json_error(error)


def peek(record: bytes, message_type: type[P]) -> P:
    """Return the readable members of an invalid *record*."""
    try:
        return msgspec.json.decode(replace_lone_surrogates(record), type=message_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        names = {field.encode_name: field.name for field in msgspec.structs.fields(message_type)}
        members = readable_members(record, names)
        return message_type(**{names[name]: value for name, value in members.items()})
