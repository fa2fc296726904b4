"""The messages in flight: until when each is hidden, and when to extend that. Pure.

Also: the age of the oldest message, how many polls run, and how many slots (places for messages in hand) a tenant may
have while its messages wait: a tenth of them were held, or are in hand for a second while slots are short. All that
wait share half of the slots, and none has more than a quarter. Messages beyond that return to the queue, hidden for 5
to 10 s at first and twice as long each time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Final, assert_never

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, Message
from simplu_worker.consumers.sqs.receive.verdicts import RetryHeld, ReturnToQueue, Verdict
from simplu_worker.timing.waits import backoff_s

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
    """What becomes of a visibility timeout: drawn in the docstring of the package."""

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

    def __len__(self) -> int:
        return len(self._periods)

    def messages(self) -> list[Message]:
        """Return the messages."""
        return [period.message for period in self._periods.values()]

    def received_before(self, at: float) -> list[str]:
        """Return the ids of messages that were received before a time."""
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

        One that is received again is the same work under a newer receipt handle, with a new visibility period. *draw*
        (0 ≤ draw < 1) spreads the extensions.
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
        """Return whether *message* is in flight and hidden from all others."""
        period = self._periods.get(message.message_id)
        return period is not None and period.state is not PeriodState.LOST and now < period.deadline

    def oldest_age_s(self, now: float) -> float:
        """Return the time since the oldest receive in flight; 0 without one."""
        return max((now - period.received_at for period in self._periods.values()), default=0.0)

    def oldest_sent_at(self) -> datetime | None:
        """Return when the oldest message in flight was sent; None without one."""
        return min((period.message.sent_at for period in self._periods.values()), default=None)

    def take_due(self, now: float) -> list[tuple[float, list[Message]]]:
        """Return the messages to extend now: for each call, when it was due, and its messages.

        The last call is filled up with messages that will be due soon.
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
        """Return the seconds until a message may be due or lost."""
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
        """Return *wanted_s* in whole seconds, cut to what SQS still accepts; at least 0."""
        period = self._periods.get(message.message_id)
        left_s = VISIBILITY_MAX_S - CEILING_MARGIN_S if period is None else period.ceiling_at - now
        return max(min(math.ceil(wanted_s), math.floor(left_s)), 0)

    def record_extended(self, extensions: Sequence[tuple[Message, int]], *, sent_at: float, draw: float = 0.0) -> None:
        """Record the extensions of a call sent at *sent_at*."""
        for message, visibility_s in extensions:
            period = self._extending(message)
            if period is not None:
                period.deadline = sent_at + visibility_s
                period.due_at = self._next_due_at(sent_at, draw)
                period.become(PeriodState.FINAL if period.is_at_ceiling else PeriodState.SCHEDULED)

    def retry_soon(self, messages: Iterable[Message], *, now: float) -> None:
        """Schedule another extension of *messages* after a failed one."""
        for message in messages:
            period = self._extending(message)
            if period is not None:
                period.due_at = now + self.heartbeat_s / HEARTBEATS_PER_TIMEOUT
                period.become(PeriodState.SCHEDULED)

    def mark_refused(self, messages: Iterable[Message]) -> list[Message]:
        """Record refused extensions; return the messages that are lost by it."""
        lost: list[Message] = []
        for message in messages:
            period = self._extending(message)
            if period is not None:
                period.become(PeriodState.LOST)
                lost.append(period.message)
        return lost

    def mark_expired(self, now: float) -> list[tuple[Message, LossReason]]:
        """Return the messages that were lost since the last call, and why."""
        lost: list[tuple[Message, LossReason]] = []
        for period in self._periods.values():
            if period.state is not PeriodState.LOST and period.deadline <= now:
                period.become(PeriodState.LOST)
                lost.append((period.message, LossReason.CEILING if period.is_at_ceiling else LossReason.EXPIRED))
        return lost

    def remove(self, messages: Iterable[Message]) -> None:
        """Remove *messages*: they are decided, or on their way back."""
        for message in messages:
            period = self._periods.pop(message.message_id, None)
            if period is not None:
                self.byte_count -= period.message.size_bytes

    def _extending(self, message: Message) -> _VisibilityPeriod | None:
        """Return the period that an answer about *message* is for; None if the answer comes late."""
        period = self._periods.get(message.message_id)
        if period is None or period.state is not PeriodState.EXTENDING:
            return None
        return period if period.message.receipt_handle == message.receipt_handle else None

    def _next_due_at(self, extended_at: float, draw: float) -> float:
        return extended_at + self.heartbeat_s * (1 - EARLY_SHARE * draw)


WINDOW_S: Final = 60.0  # a deferred message is received again within a minute, and is in no other place until then


class _ReceivePeriod(msgspec.Struct):
    started_at: float
    oldest: datetime


class RecentlyReceived:
    """The oldest of the messages received in the last WINDOW_S, or twice that time."""

    def __init__(self) -> None:
        self._periods: list[_ReceivePeriod] = []  # at most two, the newest last

    def note(self, sent_at: Iterable[datetime], *, now: float) -> None:
        """Note when messages were sent that came just now."""
        oldest = min(sent_at, default=None)
        if oldest is None:
            return
        if self._periods and now - self._periods[-1].started_at < WINDOW_S:
            self._periods[-1].oldest = min(self._periods[-1].oldest, oldest)
        else:
            self._periods = [*self._periods[-1:], _ReceivePeriod(now, oldest)]

    def oldest_sent_at(self, now: float) -> datetime | None:
        """Return when the oldest of them was sent, if any."""
        return min((one.oldest for one in self._periods if now - one.started_at < 2 * WINDOW_S), default=None)


def oldest_age_s(sent_at: Iterable[datetime | None], *, utc: datetime) -> float:
    """Return the age of the oldest message at the time *utc*; 0 without one."""
    return max([0.0, *((utc - one).total_seconds() for one in sent_at if one is not None)])


ATTEMPT_MAX_S: Final = 240.0  # SQS API reference, ReceiveRequestAttemptId: five minutes, less a margin for clocks


class ReceiveAttempt(msgspec.Struct, frozen=True):
    """A receive of a FIFO queue; a repetition gives the same messages."""

    attempt_id: str
    max_messages: int
    made_at: float

    def is_usable(self, now: float) -> bool:
        """Return whether SQS still remembers the attempt."""
        return now - self.made_at < ATTEMPT_MAX_S


class PollCount:
    """The number of polls to run: one more for each full answer, one again after an empty answer or a failure."""

    def __init__(self, max_count: int) -> None:
        self._max_count = max(max_count, 1)
        self.wanted_count = 1

    def record_answer(self, received_count: int, asked_count: int) -> None:
        """Record that a poll received *received_count* messages of *asked_count*."""
        if received_count == 0:
            self.wanted_count = 1
        elif received_count >= asked_count == BATCH_MAX_COUNT:
            self.wanted_count = min(self.wanted_count + 1, self._max_count)

    def record_failure(self) -> None:
        """Record a failed poll: one is enough to notice the recovery."""
        self.wanted_count = 1


class PollReservations:
    """The room that polls under way may need, by the largest recent size."""

    def __init__(self, *, message_count: int, byte_count: int) -> None:
        self._message_count = message_count
        self._byte_count = byte_count
        self._asked_count = 0
        self._largest_bytes = 0.0

    def reserve(self, *, in_flight_count: int, in_flight_bytes: int) -> int:
        """Reserve room until `release`; return how many messages to ask for."""
        room = min(self._message_count - in_flight_count - self._asked_count, BATCH_MAX_COUNT)
        room_bytes = self._byte_count - in_flight_bytes - self._asked_count * self._largest_bytes
        if self._largest_bytes:
            room = min(room, int(room_bytes // self._largest_bytes))
        if room < 1 and not in_flight_count and not self._asked_count:
            room = 1  # a message that is larger than all the room must be received at some time
        count = max(room, 0)
        self._asked_count += count
        return count

    def release(self, asked_count: int, sizes_bytes: list[int]) -> None:
        """Release the room of a poll, which received messages of these sizes."""
        self._asked_count -= asked_count
        if sizes_bytes:
            self._largest_bytes = max(*sizes_bytes, 0.9 * self._largest_bytes, 1.0)


WAITING_RATIO: Final = 10  # of a tenant's messages in hand to the late ones, from which on it waits
LATE_AFTER_S: Final = 1.0  # in hand
SHORT_RATIO: Final = 0.9  # of the slots in use, from which on they are short
PUT_BACK_BASE_S: Final = 10.0
PUT_BACK_MAX_S: Final = 240.0  # two minutes at least: 100 receives are hours
HIDDEN_MAX_COUNT: Final = 60_000  # half of what a queue may have in flight: SQS quotas, 120,000
PUT_BACK_MAX_COUNT: Final = 10_000  # of one replica, between two looks at how much the queue has in flight
NAMED_EVERY_S: Final = 30.0
SPREAD: Final = (math.sqrt(5) - 1) / 2  # multiples of it, without their whole part, are spread evenly


class SlotShare:
    """The tenants of the messages in hand, once one of these is late."""

    def __init__(self, message_count: int, tenant_of: Callable[[Message], str | None], *, is_fifo: bool) -> None:
        self._half_count = message_count // 2
        self._tenant_of = tenant_of
        self._is_fifo = is_fifo
        self.max_receive_count: int | None = None  # of the queue: a message that has as many must not return
        self._tenants: dict[str, str | None] = {}  # by message id
        self._late: set[str] = set()  # message ids: held, or in hand for long
        self._waiting_until: dict[str, float] = {}  # by tenant with messages that were put back
        self._put_back_count = 0
        self._unnamed: set[str] = set()  # tenants that wait since the last call of `begun`
        self._named_at = float("-inf")

    def note_late(self, message_ids: Iterable[str]) -> None:
        """Note that messages are in hand for LATE_AFTER_S."""
        self._late.update(message_ids)

    def over_share(self, unstarted: Sequence[Message], in_hand: Sequence[Message], *, now: float) -> list[Message]:
        """Return those of *unstarted* messages that have to be put back."""
        if not self._late and not self._waiting_until:
            return []
        room = self._count(in_hand, now)
        staying = self._staying_lanes(in_hand)
        over = [
            message
            for message in reversed(unstarted)
            if self._lane_of(message) not in staying and room.give_up(self._tenants.get(message.message_id))
        ]
        return over[::-1]  # of a group the last ones

    def bounded(
        self,
        call: Sequence[Message],
        verdicts: Sequence[Verdict],
        in_hand: Sequence[Message],
        *,
        now: float,
        draw: float,
    ) -> list[Verdict]:
        """Return *verdicts*, but the return of what would be held beyond its tenant's share."""
        pairs = list(zip(call, verdicts, strict=True))
        to_hold = {one.message_id for one, verdict in pairs if isinstance(verdict, RetryHeld) and verdict.delay_s}
        if not to_hold:
            return list(verdicts)
        self._late |= to_hold
        room, staying = self._count(in_hand, now), self._staying_lanes(in_hand)
        sizes = Counter(map(self._lane_of, in_hand))

        def bound(message: Message, verdict: Verdict) -> Verdict:
            lane, tenant_id = self._lane_of(message), self._tenants.get(message.message_id)
            if not isinstance(verdict, RetryHeld) or message.message_id not in to_hold or lane in staying:
                return verdict
            if not room.give_up(tenant_id, sizes[lane]):  # those behind it in its group return with it
                return verdict
            return ReturnToQueue(math.ceil(max(verdict.delay_s, self.put_back_s(message, now=now, draw=draw))))

        return [bound(*pair) for pair in reversed(pairs)][::-1]

    def put_back_s(self, message: Message, *, now: float, draw: float) -> float:
        """Note that *message* is put back; return for how long."""
        self._put_back_count += 1
        draw = (draw + self._put_back_count * SPREAD) % 1.0
        delay_s = backoff_s(message.receive_count, draw=draw, base_s=PUT_BACK_BASE_S, max_s=PUT_BACK_MAX_S)
        if (tenant_id := self._tenants.get(message.message_id)) is not None:
            if tenant_id not in self._waiting_until:
                self._unnamed.add(tenant_id)
            self._waiting_until[tenant_id] = max(now + 2 * delay_s, self._waiting_until.get(tenant_id, now))
        return delay_s

    def begun(self, *, now: float) -> Sequence[str]:
        """Return the tenants whose messages are put back from now on, each once."""
        if not self._unnamed or now - self._named_at < NAMED_EVERY_S:
            return ()
        self._named_at = now
        begun, self._unnamed = sorted(self._unnamed), set()
        return begun

    def _lane_of(self, message: Message) -> str:
        return (self._is_fifo and message.group_id) or message.message_id

    def _staying_lanes(self, in_hand: Iterable[Message]) -> set[str]:
        most = self.max_receive_count
        return set() if most is None else {self._lane_of(one) for one in in_hand if one.receive_count >= most}

    def _count(self, in_hand: Iterable[Message], now: float) -> _Room:
        known = self._tenants
        self._tenants = {
            one.message_id: known[one.message_id] if one.message_id in known else self._tenant_of(one)
            for one in in_hand
        }
        self._late &= self._tenants.keys()
        counts = Counter(self._tenants.values())
        late_counts = Counter(self._tenants[message_id] for message_id in self._late)
        self._waiting_until = {one: until for one, until in self._waiting_until.items() if until > now}
        waiting = {
            one: count
            for one, count in counts.items()
            if one is not None and (one in self._waiting_until or count <= WAITING_RATIO * late_counts[one])
        }
        return _Room(waiting, self._half_count)


class _Room:
    def __init__(self, counts: dict[str, int], half_count: int) -> None:
        self._counts = counts
        self._limit = _limit_of(counts.values(), half_count)
        self._over_count = (
            sum(counts.values()) - half_count if len(counts) > half_count else 0
        )  # with one slot for each

    def give_up(self, tenant_id: str | None, count: int = 1) -> bool:
        if tenant_id is None or (own_count := self._counts.get(tenant_id)) is None:
            return False
        if own_count <= self._limit and (self._over_count <= 0 or own_count <= 0):
            return False
        self._counts[tenant_id] = own_count - count
        self._over_count -= count
        return True


def _limit_of(counts: Collection[int], half_count: int) -> int:
    left_count = half_count
    for number, count in enumerate(sorted(counts)):
        fair_count = left_count // (len(counts) - number)
        if count > fair_count:
            return max(min(fair_count, half_count // 2), 1)
        left_count -= count
    return max(half_count // 2, 1)
