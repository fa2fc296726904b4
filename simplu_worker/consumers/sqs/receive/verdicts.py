"""The verdict of a handler on a message, and the rules from an error to a verdict. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, assert_never

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.operations import tries
from simplu_worker.operations.operation import RejectedRecord
from simplu_worker.timing.waits import backoff_s
from simplu_worker.vocabulary import DeadLetterReason


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


def verdict_on(
    error: tries.NotApplied, attempts: int, ids: MessageIds, *, rules: tries.RetryRules, draw: float = 0.0
) -> RetryHeld | ToDeadLetter:
    """Return the verdict on a message whose operation was not applied."""
    return verdict_of(tries.next_try(error, attempts, rules=rules, draw=draw), ids)


def verdict_of(following: tries.NextTry, ids: MessageIds) -> RetryHeld | ToDeadLetter:
    """Return the verdict on a message by what becomes of its operation."""
    match following:
        case tries.RetryAfter(delay_s=delay_s) | tries.HoldFor(delay_s=delay_s):
            return RetryHeld(delay_s)
        case tries.GiveUp():
            return ToDeadLetter(following.reason, following.error, ids, following.attempts)
        case _:
            assert_never(following)


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


def message_backoff_s(message: Message, *, draw: float) -> float:
    """Return the back-off of *message* by its own tries, at most a minute."""
    return backoff_s(message.try_count, draw=draw, base_s=tries.WAIT_BASE_S, max_s=tries.WAIT_MAX_S)
