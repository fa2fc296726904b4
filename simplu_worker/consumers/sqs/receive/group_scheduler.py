"""Decide which messages may be handled now, in which order, and which return to the queue together. Pure."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import Final, assert_never

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict

HELD_MAX_S: Final = 60.0  # how long a message may be held for a dependency before it returns to the queue


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


class CallDecision(msgspec.Struct, frozen=True):
    """What to do with the messages of a call, and with those behind them.

    *returned* are in an order that keeps a group locked until the last of it is back. The verdicts of *lost* ones do
    not count.
    """

    done: Sequence[Message]
    dead_letters: Sequence[tuple[Message, ToDeadLetter]]
    returned: Sequence[tuple[Message, float]]
    retried_count: int
    lost: Sequence[Message]


class _HoldQuota(msgspec.Struct, frozen=True):
    """How many messages and bytes more may be held: half of the room in flight."""

    message_count: int
    byte_count: int

    def without(self, messages: Sequence[Message]) -> _HoldQuota:
        size_bytes = sum(message.size_bytes for message in messages)
        return _HoldQuota(self.message_count - len(messages), self.byte_count - size_bytes)

    @property
    def is_exceeded(self) -> bool:
        return self.message_count < 0 or self.byte_count < 0


class _LaneDecision(msgspec.Struct, frozen=True):
    """The decision on one lane after a call, and the *quota* that it leaves; *held* messages stay for *hold_s*."""

    done: Sequence[Message]
    dead_letters: Sequence[tuple[Message, ToDeadLetter]]
    held: Sequence[Message]
    hold_s: float
    returned: Sequence[tuple[Message, float]]
    is_retried: bool
    lost: Sequence[Message]
    quota: _HoldQuota | None


class GroupState(Enum):
    """What becomes of a lane's messages: drawn in the docstring of the package."""

    EMPTY = auto()  # it has no messages: it is new, or forgotten
    READY = auto()  # its messages may be handled now: it is in the ring
    BUSY = auto()  # messages are with the handler, or their dead letters are being stored
    HELD = auto()  # its messages wait for a time
    BUSY_AND_HELD = auto()  # the same, while the dead letters of messages in front of them are being stored


MAY_FOLLOW: Final[Mapping[GroupState, Collection[GroupState]]] = {
    GroupState.EMPTY: {GroupState.READY},
    GroupState.READY: {GroupState.BUSY, GroupState.EMPTY},
    GroupState.BUSY: {GroupState.READY, GroupState.HELD, GroupState.BUSY_AND_HELD, GroupState.EMPTY},
    GroupState.HELD: {GroupState.READY, GroupState.EMPTY},
    GroupState.BUSY_AND_HELD: {GroupState.BUSY, GroupState.HELD},
}


class _GroupLane:
    """The messages in flight of one group, in order.

    *handling* are with the handler, or their dead letters are being stored; *queued* are behind them.
    """

    __slots__ = ("handling", "held_until", "holds", "key", "queued", "state")

    def __init__(self, key: str) -> None:
        self.key = key
        self.queued: deque[Message] = deque()
        self.handling: dict[str, Message] = {}
        self.held_until = 0.0
        self.holds: dict[str, tuple[float, int]] = {}  # by message id: since when it is held, and how often it was
        self.state = GroupState.EMPTY

    @property
    def is_held(self) -> bool:
        return self.state in {GroupState.HELD, GroupState.BUSY_AND_HELD}

    def state_of_messages(self, *, is_held: bool) -> GroupState:
        if is_held and self.queued:
            return GroupState.BUSY_AND_HELD if self.handling else GroupState.HELD
        if self.handling:
            return GroupState.BUSY
        return GroupState.READY if self.queued else GroupState.EMPTY


class GroupScheduler:
    """The lanes of one queue."""

    def __init__(self, *, is_fifo: bool) -> None:
        self._is_fifo = is_fifo
        self._lanes: dict[str, _GroupLane] = {}
        self._ring: deque[_GroupLane] = deque()
        self._held: list[tuple[float, int, _GroupLane]] = []
        self._numbers = itertools.count()
        self.queued_count = 0

    @property
    def handling_count(self) -> int:
        """How many messages are with the handler, or have a dead letter to store."""
        return sum(len(lane.handling) for lane in self._lanes.values())

    def held_messages(self) -> list[Message]:
        """Return the messages that are held, and those behind them."""
        return [message for entry in self._held if _is_current(entry) for message in entry[2].queued]

    def ready_messages(self) -> list[Message]:
        """Return the messages that may be handled, those of a group in order."""
        return [message for lane in self._ring if lane.state is GroupState.READY for message in lane.queued]

    def add(self, messages: Iterable[Message]) -> None:
        """Put *messages* behind those of their groups."""
        for message in messages:
            key = self._key(message)
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _GroupLane(key)
            lane.queued.append(message)
            self.queued_count += 1
            self._update(lane, is_held=lane.is_held)

    def take_call(self, limits: SchedulerLimits, *, now: float) -> list[Message]:
        """Return the messages of the next call, those of a group together and in order.

        A message that is larger than a batch may be goes alone.
        """
        self._release_held(now)
        taken: list[tuple[_GroupLane, list[Message]]] = []
        count = size = 0
        open_lanes: deque[tuple[_GroupLane, list[Message]]] = deque()
        while count < limits.batch_count:
            entry = self._take_lane(taken, open_lanes)
            if entry is None:
                break
            lane, messages = entry
            head = lane.queued[0]
            if count and size + head.size_bytes > limits.batch_bytes:
                if not messages:  # the lane had no turn: it keeps its place
                    taken.pop()
                    self._ring.appendleft(lane)
                break
            messages.append(self._take_head(lane))
            count, size = count + 1, size + head.size_bytes
            if lane.queued:
                open_lanes.append(entry)
        for lane, messages in taken:
            lane.handling.update((message.message_id, message) for message in messages)
            self._update(lane, is_held=False)
        return [message for _, messages in taken for message in messages]

    def apply_verdicts(
        self,
        call: Sequence[Message],
        verdicts: Sequence[Verdict],
        *,
        now: float,
        limits: SchedulerLimits,
        is_ours: Callable[[Message], bool],
        may_hold: bool = True,
    ) -> CallDecision:
        """Apply the handler's *verdicts* on *call* to the lanes; return what to do with each message.

        Messages with dead letters stay in their lanes until `finish`.
        """
        by_key: dict[str, list[tuple[Message, Verdict]]] = {}
        for message, verdict in zip(call, verdicts, strict=True):
            by_key.setdefault(self._key(message), []).append((message, verdict))
        whole = _HoldQuota(limits.message_count // 2, limits.byte_count // 2)
        quota = whole.without(self.held_messages()) if may_hold else None
        decisions: list[_LaneDecision] = []
        for key, pairs in by_key.items():
            lane = self._lanes[key]
            decision = _decide_lane(lane, pairs, now=now, quota=quota, is_ours=is_ours)
            self._apply(lane, pairs, decision, now)
            quota = decision.quota
            decisions.append(decision)
        return CallDecision(
            done=[one for decision in decisions for one in decision.done],
            dead_letters=[one for decision in decisions for one in decision.dead_letters],
            returned=[one for decision in decisions for one in decision.returned],
            retried_count=sum(decision.is_retried for decision in decisions),
            lost=[one for decision in decisions for one in decision.lost],
        )

    def finish(self, messages: Iterable[Message]) -> None:
        """Record that the dead letters of *messages* are stored, or their call was cancelled."""
        for message in messages:
            lane = self._lanes.get(self._key(message))
            if lane is not None and lane.handling.pop(message.message_id, None) is not None:
                self._update(lane, is_held=lane.is_held)

    def remove(self, message: Message) -> list[Message]:
        """Remove *message* from its lane; return those behind it, which have to return to the queue too.

        One that is with the handler stays until its call has ended.
        """
        lane = self._lanes.get(self._key(message))
        if lane is None:
            return []
        index = 0 if message.message_id in lane.handling else _index_of(message, lane.queued)
        if index is None:
            return []
        removed = list(lane.queued)[index:]
        self._unqueue(lane, removed)
        self._update(lane, is_held=lane.is_held)
        return [other for other in removed if other.message_id != message.message_id]

    def is_queued(self, message: Message) -> bool:
        """Return whether *message* is in its lane and not with the handler."""
        lane = self._lanes.get(self._key(message))
        return lane is not None and _index_of(message, lane.queued) is not None

    def take_unstarted(self, keep: Callable[[Message], bool] = lambda _: False) -> list[Message]:
        """Take out all messages that are not with the handler, but those to *keep* and those before them."""
        unstarted: list[Message] = []
        for lane in list(self._lanes.values()):
            queued = list(lane.queued)
            kept_count = max((index + 1 for index, message in enumerate(queued) if keep(message)), default=0)
            unstarted += queued[kept_count:]
            self._unqueue(lane, queued[kept_count:])
            self._update(lane, is_held=False)
        return unstarted

    def next_retry_in_s(self, now: float) -> float | None:
        """Return the seconds until the next held message is due; None without one."""
        while self._held and not _is_current(self._held[0]):
            heapq.heappop(self._held)
        return max(self._held[0][0] - now, 0.0) if self._held else None

    def _key(self, message: Message) -> str:
        return f"group:{message.group_id}" if self._is_fifo and message.group_id is not None else message.message_id

    def _update(self, lane: _GroupLane, *, is_held: bool) -> None:
        state = lane.state_of_messages(is_held=is_held)
        if state is lane.state:
            return
        if state not in MAY_FOLLOW[lane.state]:
            raise AssertionError(f"{state} does not follow {lane.state}")
        lane.state = state
        match state:
            case GroupState.READY:
                self._ring.append(lane)
            case GroupState.EMPTY:
                del self._lanes[lane.key]
            case GroupState.BUSY | GroupState.HELD | GroupState.BUSY_AND_HELD:
                pass
            case _:
                assert_never(state)

    def _take_lane(
        self, taken: list[tuple[_GroupLane, list[Message]]], open_lanes: deque[tuple[_GroupLane, list[Message]]]
    ) -> tuple[_GroupLane, list[Message]] | None:
        while self._ring:
            lane = self._ring.popleft()
            if lane.state is GroupState.READY:  # else its messages have left it
                entry: tuple[_GroupLane, list[Message]] = (lane, [])
                taken.append(entry)
                return entry
        return open_lanes.popleft() if open_lanes else None

    def _take_head(self, lane: _GroupLane) -> Message:
        message = lane.queued.popleft()
        self.queued_count -= 1
        _, count = lane.holds.get(message.message_id, (0.0, 0))
        return msgspec.structs.replace(message, held_count=count) if count else message

    def _apply(
        self, lane: _GroupLane, pairs: Sequence[tuple[Message, Verdict]], decision: _LaneDecision, now: float
    ) -> None:
        for message, _ in pairs:
            lane.handling.pop(message.message_id, None)
        for message, _ in decision.dead_letters:
            lane.handling[message.message_id] = message
        if decision.held:
            self._hold(lane, decision.held, decision.hold_s, now)
        elif decision.returned:
            self._unqueue(lane, list(lane.queued))
        staying = {message.message_id for message in lane.queued}
        lane.holds = {message_id: hold for message_id, hold in lane.holds.items() if message_id in staying}
        self._update(lane, is_held=decision.hold_s > 0)

    def _hold(self, lane: _GroupLane, messages: Sequence[Message], hold_s: float, now: float) -> None:
        lane.queued.extendleft(reversed(messages))
        self.queued_count += len(messages)
        head = messages[0]
        since, count = lane.holds.get(head.message_id, (now, 0))
        lane.holds[head.message_id] = (since, count + 1)
        if hold_s > 0:
            lane.held_until = now + hold_s
            heapq.heappush(self._held, (lane.held_until, next(self._numbers), lane))

    def _release_held(self, now: float) -> None:
        while self._held and (self._held[0][0] <= now or not _is_current(self._held[0])):
            entry = heapq.heappop(self._held)
            if _is_current(entry):
                self._update(entry[2], is_held=False)

    def _unqueue(self, lane: _GroupLane, messages: Sequence[Message]) -> None:
        for message in reversed(messages):
            lane.queued.pop()
            lane.holds.pop(message.message_id, None)
        self.queued_count -= len(messages)


def _decide_lane(
    lane: _GroupLane,
    pairs: Sequence[tuple[Message, Verdict]],
    *,
    now: float,
    quota: _HoldQuota | None,
    is_ours: Callable[[Message], bool],
) -> _LaneDecision:
    """Return the decision on the messages of one lane; from the first undecided or lost one on, they stay together."""
    done: list[Message] = []
    dead_letters: list[tuple[Message, ToDeadLetter]] = []
    undecided: list[tuple[Message, ReturnToQueue | RetryHeld]] = []
    for message, verdict in pairs:
        if not is_ours(message):
            continue
        match verdict:
            case Done():
                done.append(message)
            case ToDeadLetter():
                dead_letters.append((message, verdict))
            case ReturnToQueue() | RetryHeld():
                undecided.append((message, verdict))
            case _:
                assert_never(verdict)
    lost = [message for message, _ in pairs if not is_ours(message)]
    held: list[Message] = []
    returned: list[tuple[Message, float]] = []
    left = _quota_after_hold(lane, *undecided[0], now=now, quota=quota) if undecided else None
    if left is not None and not lost:
        held = [message for message, _ in undecided]
    elif undecided or lost:
        returned = [(message, 0.0) for message in [*lane.queued, *(message for message, _ in undecided[1:])]]
        # The head last: until it is back, the group is locked.
        returned += [(message, float(math.ceil(verdict.delay_s))) for message, verdict in undecided[:1]]
    return _LaneDecision(
        done=done,
        dead_letters=dead_letters,
        held=held,
        hold_s=undecided[0][1].delay_s if held else 0.0,
        returned=returned,
        is_retried=bool(undecided) and not held,
        lost=lost,
        quota=quota if left is None else left,
    )


def _quota_after_hold(
    lane: _GroupLane, head: Message, verdict: ReturnToQueue | RetryHeld, *, now: float, quota: _HoldQuota | None
) -> _HoldQuota | None:
    """Return the quota that is left when *head* is held with those behind it; None when it must not be held."""
    if quota is None or not isinstance(verdict, RetryHeld):
        return None
    since, _ = lane.holds.get(head.message_id, (now, 0))
    if now + verdict.delay_s - since > HELD_MAX_S:
        return None
    if verdict.delay_s <= 0:
        return quota
    left = quota.without([head, *lane.queued])
    return None if left.is_exceeded else left


def _is_current(entry: tuple[float, int, _GroupLane]) -> bool:
    until, _, lane = entry
    return lane.is_held and lane.held_until == until


def _index_of(message: Message, queued: Iterable[Message]) -> int | None:
    return next((index for index, other in enumerate(queued) if other.message_id == message.message_id), None)
