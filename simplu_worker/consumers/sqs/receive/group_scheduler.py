"""Which messages may be handled now, in which order, and what goes back together. Pure: no clock.

Of a FIFO queue, messages of one group are a lane: in order, and one handler call at a time; lanes go in parallel. Of a
standard queue each message is a lane of its own: its group id, where it has one, says nothing about order. Lanes that
have something to handle stand in a ring, and each call takes one message of every lane in turn, then a second, as long
as there is room: a lane with many messages fills the calls that nobody else needs, and keeps nobody waiting.

A message is in its lane from `add` until it is decided: handled, buried, or gone back. While the first of a lane is not
decided, those behind it stay; when it goes back, they go with it, at once, so that the group waits for nothing but it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, assert_never

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict

TROUBLE_IN_HAND_S: Final = 60.0  # how long a message may wait in hand for a dependency before it goes back


class SchedulerLimits(msgspec.Struct, frozen=True):
    """How much a receiver takes at a time. A `batch` is what one call of the handler gets."""

    message_count: int = 200
    byte_count: int = 32 * 1024 * 1024
    batch_count: int = 100
    batch_bytes: int = 4 * 1024 * 1024
    call_count: int = 8
    poll_count: int = 4


class Settled(msgspec.Struct):
    """What is to be done after a call of the handler.

    *back* are messages with the seconds after which they shall come again, in an order that keeps a group locked until
    the last of it is back; *retried_count* of them for their own sake, the others with these. *lost* were ours no more,
    so that their verdicts are not carried out.
    """

    done: list[Message] = msgspec.field(default_factory=list)
    bury: list[tuple[Message, ToDeadLetter]] = msgspec.field(default_factory=list)
    back: list[tuple[Message, float]] = msgspec.field(default_factory=list)
    retried_count: int = 0
    lost: list[Message] = msgspec.field(default_factory=list)


class _GroupLane:
    """What is in hand of one group, in order: *handling* is with the handler or being buried, *queued* behind it."""

    __slots__ = ("handling", "is_ringed", "key", "queued", "wait_until", "waits")

    def __init__(self, key: str) -> None:
        self.key = key
        self.queued: deque[Message] = deque()
        self.handling: dict[str, Message] = {}
        self.wait_until: float | None = None
        self.waits: dict[str, tuple[float, int]] = {}  # message id → since when it waits, how often
        self.is_ringed = False

    @property
    def is_ready(self) -> bool:
        return bool(self.queued) and not self.handling and self.wait_until is None

    @property
    def is_empty(self) -> bool:
        return not self.queued and not self.handling


class GroupScheduler:
    """The lanes of one queue."""

    def __init__(self, *, is_fifo: bool) -> None:
        self._is_fifo = is_fifo
        self._lanes: dict[str, _GroupLane] = {}
        self._ring: deque[_GroupLane] = deque()
        self._waiting: list[tuple[float, int, _GroupLane]] = []
        self._numbers = itertools.count()
        self.queued_count = 0

    def __repr__(self) -> str:
        return f"Groups({len(self._lanes)} lanes, queued={self.queued_count}, handling={self.handling_count})"

    @property
    def handling_count(self) -> int:
        """How many messages are with the handler or being buried."""
        return sum(len(lane.handling) for lane in self._lanes.values())

    def waiting(self) -> list[Message]:
        """Return the messages that wait for a dependency, and those behind them."""
        return [message for lane in self._waiting_lanes() for message in lane.queued]

    def add(self, messages: Iterable[Message]) -> None:
        """Put *messages* behind those of their groups."""
        for message in messages:
            key = self._key(message)
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _GroupLane(key)
            lane.queued.append(message)
            self.queued_count += 1
            self._offer(lane)

    def next_call(self, limits: SchedulerLimits, *, now: float) -> list[Message]:
        """Return what to hand to the handler next, those of a group together and in order; empty for nothing now.

        A message that is larger than a batch may be goes alone.
        """
        self._end_waits(now)
        taken: list[tuple[_GroupLane, list[Message]]] = []
        count = size = 0
        open_lanes: deque[tuple[_GroupLane, list[Message]]] = deque()
        while count < limits.batch_count:
            entry = self._next_lane(taken, open_lanes)
            if entry is None:
                break
            lane, messages = entry
            head = lane.queued[0]
            if count and size + head.size_bytes > limits.batch_bytes:
                if not messages:  # it has had no turn: it keeps its place
                    taken.pop()
                    self._ring.appendleft(lane)
                    lane.is_ringed = True
                break
            messages.append(self._started(lane))
            count, size = count + 1, size + head.size_bytes
            if lane.queued:
                open_lanes.append(entry)
        for lane, messages in taken:
            lane.handling.update((message.message_id, message) for message in messages)
        return [message for _, messages in taken for message in messages]

    def settle(
        self,
        call: Sequence[Message],
        verdicts: Sequence[Verdict],
        *,
        now: float,
        limits: SchedulerLimits,
        is_ours: Callable[[Message], bool],
        may_wait: bool = True,
    ) -> Settled:
        """Take the handler's *verdicts* on *call* in; return what is to be done about each message.

        What is to be buried stays in its lane until `decided`; everything else that is returned has left its lane.
        """
        settled = Settled()
        by_key: dict[str, list[tuple[Message, Verdict]]] = {}
        for message, verdict in zip(call, verdicts, strict=True):
            by_key.setdefault(self._key(message), []).append((message, verdict))
        room = _Room(limits, self.waiting()) if may_wait else None
        for key, pairs in by_key.items():
            ours = [pair for pair in pairs if is_ours(pair[0])]
            settled.lost += [message for message, _ in pairs if not is_ours(message)]
            self._settle_lane(self._lanes[key], pairs, ours, settled, now=now, room=room)
        return settled

    def decided(self, messages: Iterable[Message]) -> None:
        """Note that *messages*, which were to be buried, are."""
        for message in messages:
            lane = self._lanes.get(self._key(message))
            if lane is not None and lane.handling.pop(message.message_id, None) is not None:
                self._offer(lane)

    def leave(self, message: Message) -> list[Message]:
        """Take *message*, which is going back or lost, out of its lane; return those behind it, which go back too.

        One that is with the handler stays in the lane until the handler has ended; those behind it leave.
        """
        lane = self._lanes.get(self._key(message))
        if lane is None:
            return []
        index = 0 if message.message_id in lane.handling else _index_of(message, lane.queued)
        if index is None:
            return []
        gone = list(lane.queued)[index:]
        self._unqueue(lane, gone)
        self._offer(lane)
        return [other for other in gone if other.message_id != message.message_id]

    def is_queued(self, message: Message) -> bool:
        """Tell whether *message* is in its lane and not with the handler."""
        lane = self._lanes.get(self._key(message))
        return lane is not None and _index_of(message, lane.queued) is not None

    def take_unstarted(self, keep: Callable[[Message], bool] = lambda _: False) -> list[Message]:
        """Take everything out that is not with the handler, those of a group in order.

        What is to be kept stays, with those of its group before it; none of them waits any longer.
        """
        unstarted: list[Message] = []
        for lane in list(self._lanes.values()):
            queued = list(lane.queued)
            kept_count = max((index + 1 for index, message in enumerate(queued) if keep(message)), default=0)
            unstarted += queued[kept_count:]
            self._unqueue(lane, queued[kept_count:])
            lane.wait_until = None
            self._offer(lane)
        return unstarted

    def next_wait_in(self, now: float) -> float | None:
        """Return the seconds until the next message that waits may be handled again; None when none waits."""
        while self._waiting and not _is_of(self._waiting[0]):
            heapq.heappop(self._waiting)
        return max(self._waiting[0][0] - now, 0.0) if self._waiting else None

    def _key(self, message: Message) -> str:
        return f"group:{message.group_id}" if self._is_fifo and message.group_id is not None else message.message_id

    def _offer(self, lane: _GroupLane) -> None:
        """Put *lane* into the ring if it has something to handle now; forget it when it has nothing at all."""
        if lane.is_empty:
            if self._lanes.get(lane.key) is lane:
                del self._lanes[lane.key]
        elif lane.is_ready and not lane.is_ringed:
            lane.is_ringed = True
            self._ring.append(lane)

    def _next_lane(
        self, taken: list[tuple[_GroupLane, list[Message]]], open_lanes: deque[tuple[_GroupLane, list[Message]]]
    ) -> tuple[_GroupLane, list[Message]] | None:
        """Return the lane whose turn it is: one that has had none yet, else the first of those that have more."""
        while self._ring:
            lane = self._ring.popleft()
            lane.is_ringed = False
            if lane.is_ready:
                entry: tuple[_GroupLane, list[Message]] = (lane, [])
                taken.append(entry)
                return entry
        return open_lanes.popleft() if open_lanes else None

    def _started(self, lane: _GroupLane) -> Message:
        message = lane.queued.popleft()
        self.queued_count -= 1
        _, count = lane.waits.get(message.message_id, (0.0, 0))
        return msgspec.structs.replace(message, wait_count=count) if count else message

    def _settle_lane(
        self,
        lane: _GroupLane,
        pairs: Sequence[tuple[Message, Verdict]],
        ours: Sequence[tuple[Message, Verdict]],
        settled: Settled,
        *,
        now: float,
        room: _Room | None,
    ) -> None:
        """Take the verdicts on messages of one lane in, in order.

        From the first that is not decided on, the others stay in hand behind it, when it waits, or go back with it.
        One that was lost comes again before those behind it may: they go back.
        """
        undecided = [(message, verdict) for message, verdict in ours if isinstance(verdict, ReturnToQueue | RetryHeld)]
        head, head_verdict = undecided[0] if undecided else (None, None)
        stays = isinstance(head_verdict, RetryHeld) and self._may_stay(lane, head, head_verdict.delay_s, now, room)
        is_lost = len(ours) < len(pairs)
        for message, _ in pairs:
            lane.handling.pop(message.message_id, None)
        for message, verdict in ours:
            match verdict:
                case Done():
                    settled.done.append(message)
                case ToDeadLetter():
                    settled.bury.append((message, verdict))
                    lane.handling[message.message_id] = message
                case ReturnToQueue() | RetryHeld():
                    pass
                case _:
                    assert_never(verdict)
        if head is not None and stays and not is_lost:
            self._keep(lane, [message for message, _ in undecided], head_verdict, now)
        elif undecided or is_lost:
            queued = list(lane.queued)
            self._unqueue(lane, queued)
            # The first one last: until it is back, the group is locked.
            settled.back += [(message, 0.0) for message in [*queued, *(message for message, _ in undecided[1:])]]
            if head is not None and head_verdict is not None:
                settled.back.append((head, float(math.ceil(head_verdict.delay_s))))
                settled.retried_count += 1
        staying = {message.message_id for message in lane.queued}
        lane.waits = {message_id: wait for message_id, wait in lane.waits.items() if message_id in staying}
        self._offer(lane)

    def _keep(
        self, lane: _GroupLane, messages: Sequence[Message], verdict: ReturnToQueue | RetryHeld | None, now: float
    ) -> None:
        """Put *messages* back to the front of *lane*, to be handled again when the first has waited."""
        lane.queued.extendleft(reversed(messages))
        self.queued_count += len(messages)
        head = messages[0]
        since, count = lane.waits.get(head.message_id, (now, 0))
        lane.waits[head.message_id] = (since, count + 1)
        if verdict is not None and verdict.delay_s > 0:
            lane.wait_until = now + verdict.delay_s
            heapq.heappush(self._waiting, (lane.wait_until, next(self._numbers), lane))

    def _may_stay(
        self, lane: _GroupLane, message: Message | None, delay_s: float, now: float, room: _Room | None
    ) -> bool:
        """Tell whether *message* may wait in hand: not for long, and not when that keeps others out of the hand."""
        if room is None or message is None:
            return False
        since, _ = lane.waits.get(message.message_id, (now, 0))
        if now + delay_s - since > TROUBLE_IN_HAND_S:
            return False
        return delay_s <= 0 or room.fits([message, *lane.queued])

    def _end_waits(self, now: float) -> None:
        while self._waiting and (self._waiting[0][0] <= now or not _is_of(self._waiting[0])):
            entry = heapq.heappop(self._waiting)
            if _is_of(entry):
                lane = entry[2]
                lane.wait_until = None
                self._offer(lane)

    def _waiting_lanes(self) -> list[_GroupLane]:
        return [entry[2] for entry in self._waiting if _is_of(entry)]

    def _unqueue(self, lane: _GroupLane, messages: Sequence[Message]) -> None:
        """Take *messages*, the last of its queue, out of *lane*."""
        for message in reversed(messages):
            lane.queued.pop()
            lane.waits.pop(message.message_id, None)
        self.queued_count -= len(messages)
        if not lane.queued:
            lane.wait_until = None


class _Room:
    """How much of the hand may wait for a dependency: half of it, so that others are not kept out."""

    def __init__(self, limits: SchedulerLimits, waiting: Sequence[Message]) -> None:
        self._count = limits.message_count // 2 - len(waiting)
        self._bytes = limits.byte_count // 2 - sum(message.size_bytes for message in waiting)

    def fits(self, messages: Sequence[Message]) -> bool:
        """Tell whether *messages* may wait too, and count them if so."""
        count, size = len(messages), sum(message.size_bytes for message in messages)
        if count > self._count or size > self._bytes:
            return False
        self._count, self._bytes = self._count - count, self._bytes - size
        return True


def _is_of(entry: tuple[float, int, _GroupLane]) -> bool:
    """Tell whether the lane of *entry* still waits for its moment."""
    return entry[2].wait_until == entry[0]


def _index_of(message: Message, queued: Iterable[Message]) -> int | None:
    return next((index for index, other in enumerate(queued) if other.message_id == message.message_id), None)
