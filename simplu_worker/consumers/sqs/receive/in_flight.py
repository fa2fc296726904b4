"""The messages in flight, received and not decided yet: until when each is hidden, and when to extend that. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Final, assert_never

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, Message

HEARTBEATS_PER_TIMEOUT: Final = 3
EARLY_SHARE: Final = 0.25  # of the heartbeat interval: how early an extension may be, to spread them and fill calls
VISIBILITY_MIN_S: Final = 1  # a queue may have a timeout of 0, which would mean extending without end
VISIBILITY_MAX_S: Final = 43_200  # SQS API reference, ChangeMessageVisibility: counted from the receive
CEILING_MARGIN_S: Final = 1.0  # SQS counts in its own seconds


class LossReason(StrEnum):
    """Why another receiver may have a message."""

    EXPIRED = "expired"  # no extension succeeded in time
    REFUSED = "refused"  # SQS reports that the receipt handle is not the newest, or too old
    CEILING = "ceiling"  # twelve hours have passed since the receive


class PeriodState(Enum):
    """What becomes of the visibility timeout of a message in flight: drawn in the docstring of the package."""

    SCHEDULED = auto()  # its extension is due at a time
    EXTENDING = auto()  # a call that extends it is under way
    FINAL = auto()  # it lasts for as long as SQS allows
    LOST = auto()  # another receiver may have the message


MAY_FOLLOW: Final[Mapping[PeriodState, Collection[PeriodState]]] = {
    PeriodState.SCHEDULED: {PeriodState.EXTENDING, PeriodState.LOST},
    PeriodState.EXTENDING: {PeriodState.SCHEDULED, PeriodState.FINAL, PeriodState.LOST},
    PeriodState.FINAL: {PeriodState.LOST},
    PeriodState.LOST: (),  # another receive of the message begins a new period
}


class _VisibilityPeriod(msgspec.Struct):
    """The visibility timeout of *message* with its newest receipt handle; *due_at* is when it was, or is, to extend."""

    message: Message
    received_at: float
    deadline: float
    due_at: float
    state: PeriodState = PeriodState.SCHEDULED

    @property
    def ceiling_at(self) -> float:
        return self.received_at + VISIBILITY_MAX_S - CEILING_MARGIN_S

    @property
    def is_at_ceiling(self) -> bool:
        """Whether no further extension can be made: whole seconds are sent, and none is left for another one."""
        return self.deadline + 1 >= self.ceiling_at

    def become(self, state: PeriodState) -> None:
        if state not in MAY_FOLLOW[self.state]:
            raise AssertionError(f"{state} does not follow {self.state}")
        self.state = state


class InFlightMessages:
    """The messages in flight by id, with their visibility periods."""

    def __init__(self, *, visibility_timeout_s: int) -> None:
        self.visibility_timeout_s = max(visibility_timeout_s, VISIBILITY_MIN_S)
        self._periods: dict[str, _VisibilityPeriod] = {}
        self.byte_count = 0

    def __repr__(self) -> str:
        lost = sorted(name for name, period in self._periods.items() if period.state is PeriodState.LOST)
        return (
            f"InFlightMessages({sorted(self._periods)}, lost={lost}, visibility_timeout_s={self.visibility_timeout_s})"
        )

    def __len__(self) -> int:
        return len(self._periods)

    def messages(self) -> list[Message]:
        """Return the messages."""
        return [period.message for period in self._periods.values()]

    def received_before(self, at: float) -> list[str]:
        """Return the ids of the messages that were received before a time."""
        return [message_id for message_id, period in self._periods.items() if period.received_at < at]

    def set_visibility_timeout(self, visibility_timeout_s: int) -> None:
        """Extend by *visibility_timeout_s* from now on."""
        self.visibility_timeout_s = max(visibility_timeout_s, VISIBILITY_MIN_S)

    @property
    def heartbeat_s(self) -> float:
        """The time between two extensions of a message."""
        return self.visibility_timeout_s / HEARTBEATS_PER_TIMEOUT

    def add(self, messages: Iterable[Message], *, received_at: float, draw: float = 0.0) -> list[Message]:
        """Add *messages*; return those that were not in flight already.

        A message that was in flight and is received again is the same work under a newer receipt handle, with a new
        visibility period even if the last one was lost. *draw* (0 ≤ draw < 1) spreads the extensions of messages that
        were received at the same time.
        """
        fresh = []
        for message in messages:
            known = self._periods.get(message.message_id)
            if known is None:
                fresh.append(message)
                self.byte_count += message.size_bytes
            else:
                self.byte_count += message.size_bytes - known.message.size_bytes
            deadline = received_at + self.visibility_timeout_s
            self._periods[message.message_id] = _VisibilityPeriod(
                message, received_at, deadline, self._next_due_at(received_at, draw)
            )
        return fresh

    def with_newest_handle(self, message: Message) -> Message:
        """Return *message* with its newest receipt handle."""
        period = self._periods.get(message.message_id)
        return message if period is None else period.message

    def is_ours(self, message: Message, *, now: float) -> bool:
        """Return whether *message* is in flight and hidden from every other receiver now."""
        period = self._periods.get(message.message_id)
        return period is not None and period.state is not PeriodState.LOST and now < period.deadline

    def oldest_age_s(self, now: float) -> float:
        """Return the time since the receive of the oldest message in flight; 0 when there is none."""
        return max((now - period.received_at for period in self._periods.values()), default=0.0)

    def oldest_sent_at(self) -> datetime | None:
        """Return when the message in flight was sent that was sent first; None when there is none."""
        return min((period.message.sent_at for period in self._periods.values()), default=None)

    def take_due(self, now: float) -> list[tuple[float, list[Message]]]:
        """Return the messages to extend now, most urgent first: for each call, when it was due, and its messages.

        The last batch is filled up with messages that will be due soon. They are not due again before `record_extended`
        or `retry_soon`.
        """
        soon = now + self.heartbeat_s * EARLY_SHARE
        scheduled = (period for period in self._periods.values() if period.state is PeriodState.SCHEDULED)
        dues = sorted((period for period in scheduled if period.due_at <= soon), key=lambda period: period.due_at)
        due_count = sum(period.due_at <= now for period in dues)
        taken = dues[: math.ceil(due_count / BATCH_MAX_COUNT) * BATCH_MAX_COUNT]
        for period in taken:
            period.become(PeriodState.EXTENDING)
        batches = [taken[start : start + BATCH_MAX_COUNT] for start in range(0, len(taken), BATCH_MAX_COUNT)]
        return [(batch[0].due_at, [period.message for period in batch]) for batch in batches]

    def next_due_in_s(self, now: float) -> float:
        """Return the seconds until a message may be due or lost; messages received from now on are neither before."""
        dues: list[float] = []
        for period in self._periods.values():
            match period.state:
                case PeriodState.SCHEDULED:
                    dues.append(min(period.due_at, period.deadline))
                case PeriodState.EXTENDING | PeriodState.FINAL:
                    dues.append(period.deadline)
                case PeriodState.LOST:
                    pass
                case _:
                    assert_never(period.state)
        return max(min(dues, default=now + self.heartbeat_s * EARLY_SHARE) - now, 0.0)

    def remaining_s(self, message: Message, now: float) -> float:
        """Return how long *message* stays hidden from other receivers."""
        period = self._periods.get(message.message_id)
        return 0.0 if period is None else period.deadline - now

    def allowed_timeout_s(self, message: Message, wanted_s: float, now: float) -> int:
        """Return *wanted_s* in whole seconds, cut to the longest timeout that SQS still accepts; at least 0."""
        period = self._periods.get(message.message_id)
        left_s = VISIBILITY_MAX_S - CEILING_MARGIN_S if period is None else period.ceiling_at - now
        return max(min(math.ceil(wanted_s), math.floor(left_s)), 0)

    def record_extended(self, extensions: Sequence[tuple[Message, int]], *, sent_at: float, draw: float = 0.0) -> None:
        """Record that each message was extended by its seconds, with a call sent at *sent_at*."""
        for message, visibility_s in extensions:
            period = self._extending(message)
            if period is not None:
                period.deadline = sent_at + visibility_s
                period.due_at = self._next_due_at(sent_at, draw)
                period.become(PeriodState.FINAL if period.is_at_ceiling else PeriodState.SCHEDULED)

    def retry_soon(self, messages: Iterable[Message], *, now: float) -> None:
        """Schedule another extension of *messages* after a failed one: there is time for some more tries."""
        for message in messages:
            period = self._extending(message)
            if period is not None:
                period.due_at = now + self.heartbeat_s / HEARTBEATS_PER_TIMEOUT
                period.become(PeriodState.SCHEDULED)

    def mark_refused(self, messages: Iterable[Message]) -> list[Message]:
        """Record that SQS refuses to extend *messages*; return those that are lost by it."""
        lost: list[Message] = []
        for message in messages:
            period = self._extending(message)
            if period is not None:
                period.become(PeriodState.LOST)
                lost.append(period.message)
        return lost

    def mark_expired(self, now: float) -> list[tuple[Message, LossReason]]:
        """Return the messages with a visibility period that ended since the last call, and why."""
        lost: list[tuple[Message, LossReason]] = []
        for period in self._periods.values():
            if period.state is not PeriodState.LOST and period.deadline <= now:
                period.become(PeriodState.LOST)
                lost.append((period.message, LossReason.CEILING if period.is_at_ceiling else LossReason.EXPIRED))
        return lost

    def remove(self, messages: Iterable[Message]) -> None:
        """Remove *messages*: they are decided, or on their way back to the queue."""
        for message in messages:
            period = self._periods.pop(message.message_id, None)
            if period is not None:
                self.byte_count -= period.message.size_bytes

    def _extending(self, message: Message) -> _VisibilityPeriod | None:
        """Return the period that an answer about *message* is for.

        None if the answer comes late: the message was lost or decided in the meantime, or was received again under a
        newer handle.
        """
        period = self._periods.get(message.message_id)
        if period is None or period.state is not PeriodState.EXTENDING:
            return None
        return period if period.message.receipt_handle == message.receipt_handle else None

    def _next_due_at(self, extended_at: float, draw: float) -> float:
        return extended_at + self.heartbeat_s * (1 - EARLY_SHARE * draw)
