"""In which order a queue of the local SQS gives its messages out, and which it holds back. Does no I/O."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from simplu_worker.local.sqs.message import MessageState, StoredMessage

Accept = Callable[[StoredMessage], bool]
"""Takes a message that is next; true when it counts as given out."""


class DeliveryOrder(Protocol):
    """The messages that are visible. One that is gone meanwhile is passed over."""

    def add(self, message: StoredMessage) -> None:
        """*message* is visible now."""

    def take(self, limit: int, accept: Accept) -> None:
        """Hand the next messages to *accept* until it has taken *limit* of them."""

    def release(self, message: StoredMessage) -> None:
        """*message* is not in flight any more: deleted, or about to be visible again."""

    def clear(self) -> None:
        """Forget all."""


class StandardOrder:
    """A standard queue's: the oldest first, whoever has the others."""

    def __init__(self) -> None:
        self._visible: list[tuple[int, StoredMessage]] = []

    def __repr__(self) -> str:
        return f"AnyOrder({len(self._visible)} visible)"

    def add(self, message: StoredMessage) -> None:
        """*message* is visible now."""
        heapq.heappush(self._visible, (message.number, message))

    def take(self, limit: int, accept: Accept) -> None:
        """Hand the next messages to *accept* until it has taken *limit* of them."""
        while limit and self._visible:
            _, message = heapq.heappop(self._visible)
            if message.state is MessageState.VISIBLE:
                limit -= accept(message)

    def release(self, message: StoredMessage) -> None:
        """Do nothing: no message waits for another."""

    def clear(self) -> None:
        """Forget all."""
        self._visible.clear()


class MessageGroup:
    """The messages of one group: those that are visible, and how many are in flight."""

    __slots__ = ("in_flight", "queued_as", "visible")

    def __init__(self) -> None:
        self.visible: list[tuple[int, StoredMessage]] = []
        self.in_flight = 0
        self.queued_as = -1  # the number under which the group waits for its turn

    def head(self) -> int | None:
        """Return the number of the first visible message."""
        while self.visible and self.visible[0][1].state is not MessageState.VISIBLE:
            heapq.heappop(self.visible)
        return self.visible[0][0] if self.visible else None


class FifoOrder:
    """A FIFO queue's: within a group in the order sent, and none of a group while one of it is in flight.

    "When receiving messages from a FIFO queue with multiple message group IDs, Amazon SQS first attempts to return as
    many messages with the same message group ID as possible." (developer guide, "FIFO queue delivery logic")
    """

    def __init__(self) -> None:
        self._groups: dict[str, MessageGroup] = {}
        self._open: list[tuple[int, str]] = []  # by the number of a group's head; may name what has changed since

    def __repr__(self) -> str:
        return f"GroupOrder({len(self._groups)} groups)"

    def add(self, message: StoredMessage) -> None:
        """*message* is visible now."""
        group_id = message.content.group_id or ""
        group = self._groups.setdefault(group_id, MessageGroup())
        heapq.heappush(group.visible, (message.number, message))
        self._queue_group(group_id, group)

    def take(self, limit: int, accept: Accept) -> None:
        """Hand the next messages to *accept* until it has taken *limit* of them."""
        while limit and self._open:
            number, group_id = heapq.heappop(self._open)
            group = self._groups.get(group_id)
            if group is None or group.queued_as != number:
                continue
            group.queued_as = -1
            limit = self._take_from(group, limit, accept)
            self._queue_group(group_id, group)

    def release(self, message: StoredMessage) -> None:
        """*message* is not in flight any more: deleted, or about to be visible again."""
        group_id = message.content.group_id or ""
        group = self._groups[group_id]
        group.in_flight -= 1
        self._queue_group(group_id, group)

    def clear(self) -> None:
        """Forget all."""
        self._groups.clear()
        self._open.clear()

    def _take_from(self, group: MessageGroup, limit: int, accept: Accept) -> int:
        """Take what one group has; return what is left of the limit."""
        while limit and group.head() is not None:
            _, message = heapq.heappop(group.visible)
            if accept(message):
                group.in_flight += 1
                limit -= 1
        return limit

    def _queue_group(self, group_id: str, group: MessageGroup) -> None:
        """Let a group that is not locked wait for its turn, once; forget one that has nothing left."""
        if group.in_flight:
            return
        head = group.head()
        if head is None:
            del self._groups[group_id]
        elif group.queued_as != head:
            group.queued_as = head
            heapq.heappush(self._open, (head, group_id))
