"""The messages that were received and are not decided yet: how long each is ours, and when to claim it anew. Pure.

A received message is hidden from other receivers for its visibility timeout: that is its lease. It is claimed again
each third of that, from the receive on, so that two claims may fail before anybody else gets it. Deadlines are on the
safe side: they count from before a claim was sent, where SQS counts from when it took it.

SQS keeps a message hidden for twelve hours after its receive at most, and refuses what would be longer: claims and
delays are cut to what is left of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, Message

BEATS_A_TIMEOUT: Final = 3
EARLY_SHARE: Final = 0.25  # of the time between claims: by how much one may come early, to spread them and fill calls
VISIBILITY_MIN_S: Final = 1  # a queue may say 0, which would mean claiming without end
VISIBILITY_MAX_S: Final = 43_200  # SQS API reference, ChangeMessageVisibility: counted from the receive
CEILING_MARGIN_S: Final = 1.0  # SQS counts in its own seconds


class Loss(StrEnum):
    """Why a message is ours no more."""

    EXPIRED = "expired"  # no claim came through in time
    REFUSED = "refused"  # SQS says that the receipt handle is not the newest, or too old
    CEILING = "ceiling"  # twelve hours have passed since the receive


class _VisibilityPeriod(msgspec.Struct):
    """*message* with its newest receipt handle; *due_at* is `None` while it is not to be claimed."""

    message: Message
    received_at: float
    deadline: float
    due_at: float | None
    loss: Loss | None = None

    @property
    def ceiling_at(self) -> float:
        return self.received_at + VISIBILITY_MAX_S - CEILING_MARGIN_S


class InFlightMessages:
    """Received messages by id, with their leases."""

    def __init__(self, *, visibility_timeout_s: int) -> None:
        self.visibility_timeout_s = max(visibility_timeout_s, VISIBILITY_MIN_S)
        self._leases: dict[str, _VisibilityPeriod] = {}
        self.byte_count = 0

    def __repr__(self) -> str:
        lost = sorted(name for name, lease in self._leases.items() if lease.loss)
        return f"InHand({sorted(self._leases)}, lost={lost}, visibility_timeout_s={self.visibility_timeout_s})"

    def __len__(self) -> int:
        return len(self._leases)

    def set_visibility_timeout(self, visibility_timeout_s: int) -> None:
        """Claim for *visibility_timeout_s* from now on."""
        self.visibility_timeout_s = max(visibility_timeout_s, VISIBILITY_MIN_S)

    @property
    def beat_s(self) -> float:
        """The time between two claims of a message."""
        return self.visibility_timeout_s / BEATS_A_TIMEOUT

    def take(self, messages: Iterable[Message], *, received_at: float, draw: float = 0.0) -> list[Message]:
        """Add *messages*; return those that were not in hand already.

        One that was, and came again, is the same work under a newer receipt handle and a lease of its own, even if the
        one before was lost. *draw* (0 ≤ draw < 1) spreads the claims of what came at the same time.
        """
        fresh = []
        for message in messages:
            known = self._leases.get(message.message_id)
            if known is None:
                fresh.append(message)
                self.byte_count += message.size_bytes
            else:
                self.byte_count += message.size_bytes - known.message.size_bytes
            deadline = received_at + self.visibility_timeout_s
            self._leases[message.message_id] = _VisibilityPeriod(
                message, received_at, deadline, self._next_due_at(received_at, draw)
            )
        return fresh

    def newest(self, message: Message) -> Message:
        """Return *message* with the receipt handle it has now."""
        lease = self._leases.get(message.message_id)
        return message if lease is None else lease.message

    def is_ours(self, message: Message, *, now: float) -> bool:
        """Tell whether *message* is in hand and nobody else can have it now."""
        lease = self._leases.get(message.message_id)
        return lease is not None and lease.loss is None and now < lease.deadline

    def is_in_hand(self, message: Message) -> bool:
        """Tell whether *message* is not decided yet, be it ours or lost."""
        return message.message_id in self._leases

    def oldest_age_s(self, now: float) -> float:
        """Return how long ago the message was received that is longest in hand; 0 when there is none."""
        return max((now - lease.received_at for lease in self._leases.values()), default=0.0)

    def due(self, now: float) -> list[tuple[float, list[Message]]]:
        """Return what is to be claimed now, most urgent first: for each call, when it was due, and its messages.

        The last batch is filled up with what will soon be due. They are not due again before `renew` or `retry_soon`.
        """
        soon = now + self.beat_s * EARLY_SHARE
        dues = [(lease.due_at, lease) for lease in self._leases.values() if lease.due_at is not None]
        dues = sorted((due for due in dues if due[0] <= soon), key=lambda due: due[0])
        due_count = sum(due_at <= now for due_at, _ in dues)
        taken = dues[: math.ceil(due_count / BATCH_MAX_COUNT) * BATCH_MAX_COUNT]
        for _, lease in taken:
            lease.due_at = None
        batches = [taken[start : start + BATCH_MAX_COUNT] for start in range(0, len(taken), BATCH_MAX_COUNT)]
        return [(batch[0][0], [lease.message for _, lease in batch]) for batch in batches]

    def next_due_in(self, now: float) -> float:
        """Return the seconds until something may be due or lost: what is received from now on is neither before."""
        least = self.beat_s * EARLY_SHARE
        dues = (
            lease.deadline if lease.due_at is None else min(lease.due_at, lease.deadline)
            for lease in self._leases.values()
            if lease.loss is None
        )
        return max(min(dues, default=now + least) - now, 0.0) if self._leases else least

    def margin_s(self, message: Message, now: float) -> float:
        """Return for how long *message* is still ours."""
        lease = self._leases.get(message.message_id)
        return 0.0 if lease is None else lease.deadline - now

    def cut_s(self, message: Message, wanted_s: float, now: float) -> int:
        """Return *wanted_s* in whole seconds, cut to what SQS still allows for *message*; at least 0."""
        lease = self._leases.get(message.message_id)
        left_s = VISIBILITY_MAX_S - CEILING_MARGIN_S if lease is None else lease.ceiling_at - now
        return max(min(math.ceil(wanted_s), math.floor(left_s)), 0)

    def renew(self, claims: Sequence[tuple[Message, int]], *, claimed_at: float, draw: float = 0.0) -> None:
        """Note that each message was claimed for its seconds, with a call sent at *claimed_at*."""
        for message, visibility_s in claims:
            lease = self._same(message)
            if lease is None or lease.loss is not None:
                continue
            lease.deadline = claimed_at + visibility_s
            # One that was cut reaches the ceiling with this claim: there is no further one to make.
            is_last = lease.deadline + 1 >= lease.ceiling_at
            lease.due_at = None if is_last else self._next_due_at(claimed_at, draw)

    def retry_soon(self, messages: Iterable[Message], *, now: float) -> None:
        """Note that claiming *messages* failed: there is time for some more tries."""
        for message in messages:
            lease = self._same(message)
            if lease is not None and lease.loss is None:
                lease.due_at = now + self.beat_s / BEATS_A_TIMEOUT

    def refuse(self, messages: Iterable[Message]) -> list[Message]:
        """Note that SQS refuses claims of *messages*; return those that are lost by it."""
        lost = []
        for message in messages:
            lease = self._same(message)
            if lease is not None and lease.loss is None:
                lease.loss, lease.due_at = Loss.REFUSED, None
                lost.append(lease.message)
        return lost

    def expire(self, now: float) -> list[tuple[Message, Loss]]:
        """Return the messages whose lease has ended since the last look, and why."""
        lost: list[tuple[Message, Loss]] = []
        for lease in self._leases.values():
            if lease.loss is None and lease.deadline <= now:
                lease.loss = Loss.CEILING if lease.deadline + 1 >= lease.ceiling_at else Loss.EXPIRED
                lease.due_at = None
                lost.append((lease.message, lease.loss))
        return lost

    def drop(self, messages: Iterable[Message]) -> None:
        """Forget *messages*: they are decided, or on their way back."""
        for message in messages:
            lease = self._leases.pop(message.message_id, None)
            if lease is not None:
                self.byte_count -= lease.message.size_bytes

    def _same(self, message: Message) -> _VisibilityPeriod | None:
        """Return the lease of *message*, if it was not received again since."""
        lease = self._leases.get(message.message_id)
        return lease if lease is not None and lease.message.receipt_handle == message.receipt_handle else None

    def _next_due_at(self, claimed_at: float, draw: float) -> float:
        return claimed_at + self.beat_s * (1 - EARLY_SHARE * draw)
