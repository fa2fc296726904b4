"""The messages in flight: which may be handled now, in which order, and until when each is hidden. Pure.

Lanes decide the order, entries the visibility timeouts; both are drawn in the docstring of the package.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Final, assert_never

import msgspec

from simplu_worker.aws.sqs_queue import VISIBILITY_DEFAULT_S, Message, batches
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict

HELD_MAX_S: Final = 60.0  # how long a message may be held for a dependency before it returns to the queue
HEARTBEATS_PER_TIMEOUT: Final = 3
EARLY_SHARE: Final = 0.25  # of the heartbeat interval: how early an extension may be, to go with another one
SEEN_S: Final = 120.0
VISIBILITY_MIN_S: Final = 1  # a queue may have a timeout of 0, which would mean extending without end


class SchedulerLimits(msgspec.Struct, frozen=True):
    """How much a receiver takes at a time.

    *message_count* and *byte_count* limit the messages in flight, *batch_count* and *batch_bytes* those of one call of
    the handler.
    """

    message_count: int = 200
    byte_count: int = 32 * 1024 * 1024
    batch_count: int = 100
    batch_bytes: int = 4 * 1024 * 1024
    call_count: int = 8
    poll_count: int = 4


class LossReason(StrEnum):
    """Why another receiver may have a message."""

    EXPIRED = "expired"  # no extension succeeded in time
    REFUSED = "refused"  # SQS reports that the receipt handle is not the newest, or that twelve hours have passed


class PeriodState(Enum):
    """What becomes of a visibility timeout: drawn in the docstring of the package."""

    SCHEDULED = auto()  # its extension is due at a time
    EXTENDING = auto()  # a call that extends it is under way
    LOST = auto()  # another receiver may have the message


class CallDecision(msgspec.Struct):
    """What to do with the messages of a call, and with those behind them.

    *returned* are in an order that keeps a group locked until the last of it is back. The verdicts of *lost* ones do
    not count.
    """

    done: list[Message] = []
    dead_letters: list[tuple[Message, ToDeadLetter]] = []
    returned: list[tuple[Message, float]] = []
    lost: list[Message] = []
    retried_count: int = 0


class _HoldRoom(msgspec.Struct):
    """How many messages and bytes more may be held: half of the room in flight, so that others are still received."""

    message_count: int
    byte_count: int

    def take(self, messages: Sequence[Message]) -> bool:
        """Take room for *messages*; return whether there was enough."""
        size_bytes = sum(message.size_bytes for message in messages)
        if len(messages) > self.message_count or size_bytes > self.byte_count:
            return False
        self.message_count -= len(messages)
        self.byte_count -= size_bytes
        return True


class _Entry(msgspec.Struct, eq=False):
    """A message in flight. Each receive writes all but its holds."""

    message: Message  # with the newest receipt handle
    received_at: float
    deadline: float  # extensions write it, and the next two
    due_at: float
    state: PeriodState = PeriodState.SCHEDULED
    held_since: float | None = None  # verdicts write it, and the next
    held_count: int = 0


class _Lane(msgspec.Struct, eq=False):
    """The messages in flight of one group. Polls add to *queued*, calls take from it, verdicts hold or return it."""

    queued: deque[_Entry]  # in order, behind *handling*; one of the two has messages
    handling: set[str]  # ids: with the handler, or their dead letters are being stored
    held_until: float = 0.0

    def is_ready(self, now: float) -> bool:
        return not self.handling and self.held_until <= now


class MessageTable:
    """The messages in flight by id, and by lane."""

    def __init__(
        self, limits: SchedulerLimits, *, is_fifo: bool, visibility_timeout_s: int = VISIBILITY_DEFAULT_S
    ) -> None:
        self._limits = limits
        self._is_fifo = is_fifo
        self.set_visibility_timeout(visibility_timeout_s)
        self.byte_count = 0
        self._entries: dict[str, _Entry] = {}
        self._oldest: tuple[datetime, float] | None = None  # the oldest message received, and when; polls write it
        self._lanes: dict[str, _Lane] = {}  # in the order of their turns; none is empty

    def __len__(self) -> int:
        return len(self._entries)

    def set_visibility_timeout(self, visibility_timeout_s: int) -> None:
        """Extend by *visibility_timeout_s* from now on."""
        self.visibility_timeout_s = max(visibility_timeout_s, VISIBILITY_MIN_S)

    @property
    def heartbeat_s(self) -> float:
        """The time between two extensions of a message."""
        return self.visibility_timeout_s / HEARTBEATS_PER_TIMEOUT

    @property
    def queued_count(self) -> int:
        """How many messages are in lanes, and not with the handler."""
        return sum(len(lane.queued) for lane in self._lanes.values())

    @property
    def handling_count(self) -> int:
        """How many messages are with the handler, or have a dead letter to store."""
        return sum(len(lane.handling) for lane in self._lanes.values())

    def messages(self) -> list[Message]:
        """Return all messages."""
        return [entry.message for entry in self._entries.values()]

    def ready_messages(self, now: float) -> list[Message]:
        """Return the messages that may be handled, those of a group in order."""
        return [one.message for lane in self._lanes.values() if lane.is_ready(now) for one in lane.queued]

    def queued_messages(self) -> list[Message]:
        """Return the messages that are in lanes, and not with the handler, those of a group in order."""
        return [one.message for lane in self._lanes.values() for one in lane.queued]

    def held_messages(self, now: float) -> list[Message]:
        """Return the messages that are held, and those behind them."""
        return [one.message for lane in self._lanes.values() if lane.held_until > now for one in lane.queued]

    def received_before(self, at: float) -> list[str]:
        """Return the ids of messages that were received before a time."""
        return [message_id for message_id, entry in self._entries.items() if entry.received_at < at]

    def oldest_age_s(self, now: float) -> float:
        """Return the time since the oldest receive in flight; 0 without one."""
        return max((now - entry.received_at for entry in self._entries.values()), default=0.0)

    def oldest_sent_at(self, now: float) -> datetime | None:
        """Return when the oldest message was sent, of those in flight or received in the last SEEN_S; None without one.

        One that is deferred comes again within that time.
        """
        seen = [] if self._oldest is None or now - self._oldest[1] >= SEEN_S else [self._oldest[0]]
        return min((*seen, *(entry.message.sent_at for entry in self._entries.values())), default=None)

    # Polls and calls

    def add(self, messages: Iterable[Message], *, received_at: float) -> list[Message]:
        """Add *messages* behind those of their groups; return those that were not in flight already.

        One that is received again is the same work under a newer receipt handle, with a new visibility period.
        """
        fresh = []
        for message in messages:
            if self._oldest is None or message.sent_at <= self._oldest[0] or received_at - self._oldest[1] >= SEEN_S:
                self._oldest = message.sent_at, received_at
            deadline, due_at = received_at + self.visibility_timeout_s, received_at + self.heartbeat_s
            known = self._entries.get(message.message_id)
            if known is None:
                entry = self._entries[message.message_id] = _Entry(message, received_at, deadline, due_at)
                self._lanes.setdefault(self._key(message), _Lane(deque(), set())).queued.append(entry)
                fresh.append(message)
            else:
                self.byte_count -= known.message.size_bytes
                known.message, known.received_at, known.state = message, received_at, PeriodState.SCHEDULED
                known.deadline, known.due_at = deadline, due_at
            self.byte_count += message.size_bytes
        return fresh

    def take_call(self, *, now: float) -> list[Message]:
        """Return the messages of the next call, those of a group together and in order.

        Each lane that is ready gives one, then each a second one. A message that is larger than a batch may be goes
        alone.
        """
        turns: deque[tuple[str, list[Message]]] = deque(
            (key, []) for key, lane in self._lanes.items() if lane.is_ready(now)
        )
        taken: dict[str, list[Message]] = {}
        count = size_bytes = 0
        while turns and count < self._limits.batch_count:
            key, own = turns.popleft()
            lane = self._lanes[key]
            head = lane.queued[0]
            if count and size_bytes + head.message.size_bytes > self._limits.batch_bytes:
                break
            lane.queued.popleft()
            own.append(msgspec.structs.replace(head.message, held_count=head.held_count))
            taken[key] = own
            count, size_bytes = count + 1, size_bytes + head.message.size_bytes
            if lane.queued:
                turns.append((key, own))
        for key, own in taken.items():
            lane = self._lanes[key] = self._lanes.pop(key)  # its next turn comes behind those of the others
            lane.handling.update(message.message_id for message in own)
        return [message for own in taken.values() for message in own]

    def apply_verdicts(
        self, call: Sequence[Message], verdicts: Sequence[Verdict], *, now: float, may_hold: bool = True
    ) -> CallDecision:
        """Apply the handler's *verdicts* on *call*; return what to do with each message.

        Messages with dead letters stay in their lanes until `finish`.
        """
        by_key: dict[str, list[tuple[Message, Verdict]]] = {}
        for message, verdict in zip(call, verdicts, strict=True):
            by_key.setdefault(self._key(message), []).append((message, verdict))
        held = self.held_messages(now)
        room = _HoldRoom(
            self._limits.message_count // 2 - len(held),
            self._limits.byte_count // 2 - sum(message.size_bytes for message in held),
        )
        decision = CallDecision()
        for key, pairs in by_key.items():
            lane = self._lanes[key]
            own = [pair for pair in pairs if self.is_ours(pair[0], now=now)]
            lost = [message for message, _ in pairs if not self.is_ours(message, now=now)]
            lane.handling.difference_update(message.message_id for message, _ in pairs)
            undecided = self._sort(lane, own, decision)
            decision.lost += lost
            if undecided and not lost and may_hold and self._may_hold(lane, undecided, room, now=now):
                self._hold(lane, undecided, now)
            elif undecided or lost:
                decision.returned += self._returned(lane, undecided)
                decision.retried_count += bool(undecided)
            self._forget_empty(key)
        return decision

    def _sort(
        self, lane: _Lane, pairs: Iterable[tuple[Message, Verdict]], decision: CallDecision
    ) -> list[tuple[Message, ReturnToQueue | RetryHeld]]:
        undecided: list[tuple[Message, ReturnToQueue | RetryHeld]] = []
        for message, verdict in pairs:
            match verdict:
                case Done():
                    decision.done.append(message)
                case ToDeadLetter():
                    decision.dead_letters.append((message, verdict))
                    lane.handling.add(message.message_id)
                case ReturnToQueue() | RetryHeld():
                    undecided.append((message, verdict))
                case _:
                    assert_never(verdict)
        return undecided

    def _may_hold(
        self,
        lane: _Lane,
        undecided: Sequence[tuple[Message, ReturnToQueue | RetryHeld]],
        room: _HoldRoom,
        *,
        now: float,
    ) -> bool:
        head, verdict = undecided[0]
        if not isinstance(verdict, RetryHeld):
            return False
        since = self._entries[head.message_id].held_since
        if now + verdict.delay_s - (now if since is None else since) > HELD_MAX_S:
            return False
        behind = [*(message for message, _ in undecided), *(one.message for one in lane.queued)]
        return verdict.delay_s <= 0 or room.take(behind)

    def _hold(self, lane: _Lane, undecided: Sequence[tuple[Message, ReturnToQueue | RetryHeld]], now: float) -> None:
        entries = [self._entries[message.message_id] for message, _ in undecided]
        lane.queued.extendleft(reversed(entries))
        head, delay_s = entries[0], undecided[0][1].delay_s
        head.held_since = now if head.held_since is None else head.held_since
        head.held_count += 1
        lane.held_until = now + delay_s

    def _returned(
        self, lane: _Lane, undecided: Sequence[tuple[Message, ReturnToQueue | RetryHeld]]
    ) -> list[tuple[Message, float]]:
        behind = [*(one.message for one in lane.queued), *(message for message, _ in undecided[1:])]
        lane.queued.clear()
        # The head last: until it is back, the group is locked.
        heads = [(message, float(math.ceil(verdict.delay_s))) for message, verdict in undecided[:1]]
        return [*((message, 0.0) for message in behind), *heads]

    def finish(self, messages: Iterable[Message]) -> None:
        """Record that the dead letters of *messages* are stored, or their call was cancelled."""
        for message in messages:
            if (lane := self._lanes.get(key := self._key(message))) is not None:
                lane.handling.discard(message.message_id)
                self._forget_empty(key)

    def take_behind(self, message: Message) -> list[Message]:
        """Take *message* out of its lane, with those behind it; return these: they have to return to the queue too.

        One that is with the handler stays until its call has ended.
        """
        if (lane := self._lanes.get(key := self._key(message))) is None:
            return []
        ids = [one.message.message_id for one in lane.queued]
        if message.message_id not in lane.handling and message.message_id not in ids:
            return []
        taken = self._take(key, ids.index(message.message_id) if message.message_id in ids else 0)
        return [other for other in taken if other.message_id != message.message_id]

    def is_queued(self, message: Message) -> bool:
        """Return whether *message* is in its lane and not with the handler."""
        lane = self._lanes.get(self._key(message))
        return lane is not None and any(one.message.message_id == message.message_id for one in lane.queued)

    def take_unstarted(self, keep: Callable[[Message], bool] = lambda _: False) -> list[Message]:
        """Take out all messages that are not with the handler, but those to *keep* and those before them."""
        unstarted: list[Message] = []
        for key, lane in list(self._lanes.items()):
            lane.held_until = 0.0
            kept = [number for number, one in enumerate(lane.queued, 1) if keep(one.message)]
            unstarted += self._take(key, max(kept, default=0))
        return unstarted

    def next_retry_at(self, now: float) -> float:
        """Return when the next held message is due; infinite without one."""
        return min((lane.held_until for lane in self._lanes.values() if lane.held_until > now), default=math.inf)

    def _take(self, key: str, index: int) -> list[Message]:
        lane = self._lanes[key]
        taken = [lane.queued.pop().message for _ in range(len(lane.queued) - index)]
        self._forget_empty(key)
        return taken[::-1]

    def _forget_empty(self, key: str) -> None:
        lane = self._lanes[key]
        if not lane.queued:
            lane.held_until = 0.0
            if not lane.handling:
                del self._lanes[key]

    def _key(self, message: Message) -> str:
        return f"group:{message.group_id}" if self._is_fifo and message.group_id is not None else message.message_id

    # Visibility timeouts

    def newest(self, message: Message) -> Message:
        """Return *message* with its newest receipt handle."""
        entry = self._entries.get(message.message_id)
        return message if entry is None else entry.message

    def is_ours(self, message: Message, *, now: float) -> bool:
        """Return whether *message* is in flight and hidden from all others."""
        entry = self._entries.get(message.message_id)
        return entry is not None and entry.state is not PeriodState.LOST and now < entry.deadline

    def take_due(self, now: float) -> list[list[Message]]:
        """Return the messages to extend now, by call: when one is due, those that will be soon go with it."""
        soon = now + self.heartbeat_s * EARLY_SHARE
        scheduled = [entry for entry in self._entries.values() if entry.state is PeriodState.SCHEDULED]
        taken = sorted((entry for entry in scheduled if entry.due_at <= soon), key=lambda entry: entry.due_at)
        if not taken or taken[0].due_at > now:
            return []
        for entry in taken:
            entry.state = PeriodState.EXTENDING
        return [list(batch) for batch in batches([entry.message for entry in taken])]

    def next_due_in_s(self, now: float) -> float:
        """Return the seconds until a message may be due or lost."""
        dues = [
            min(entry.due_at, entry.deadline) if entry.state is PeriodState.SCHEDULED else entry.deadline
            for entry in self._entries.values()
            if entry.state is not PeriodState.LOST
        ]
        return max(min(dues, default=now + self.heartbeat_s * EARLY_SHARE) - now, 0.0)

    def record_extended(self, messages: Iterable[Message], visibility_s: int, *, sent_at: float) -> None:
        """Record the extensions of a call sent at *sent_at*."""
        for message in messages:
            if (entry := self._extending(message)) is not None:
                entry.deadline, entry.due_at = sent_at + visibility_s, sent_at + self.heartbeat_s
                entry.state = PeriodState.SCHEDULED

    def retry_soon(self, messages: Iterable[Message], *, now: float) -> None:
        """Schedule another extension of *messages* after a failed one."""
        for message in messages:
            if (entry := self._extending(message)) is not None:
                entry.due_at, entry.state = now + self.heartbeat_s / HEARTBEATS_PER_TIMEOUT, PeriodState.SCHEDULED

    def mark_refused(self, messages: Iterable[Message]) -> list[Message]:
        """Record refused extensions; return the messages that are lost by it."""
        lost = [entry for message in messages if (entry := self._extending(message)) is not None]
        for entry in lost:
            entry.state = PeriodState.LOST
        return [entry.message for entry in lost]

    def mark_expired(self, now: float) -> list[Message]:
        """Return the messages that were lost since the last call."""
        lost = [one for one in self._entries.values() if one.state is not PeriodState.LOST and one.deadline <= now]
        for entry in lost:
            entry.state = PeriodState.LOST
        return [entry.message for entry in lost]

    def remove(self, messages: Iterable[Message]) -> None:
        """Remove *messages*, which have left their lanes: they are deleted, lost, or on their way back."""
        for message in messages:
            if (entry := self._entries.pop(message.message_id, None)) is not None:
                self.byte_count -= entry.message.size_bytes

    def _extending(self, message: Message) -> _Entry | None:
        """Return the entry that an answer about *message* is for; None if the answer comes late."""
        entry = self._entries.get(message.message_id)
        if entry is None or entry.state is not PeriodState.EXTENDING:
            return None
        return entry if entry.message.receipt_handle == message.receipt_handle else None
