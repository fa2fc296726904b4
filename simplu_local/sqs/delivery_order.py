"""The order in which a queue of the local SQS delivers its messages, and the locks of message groups. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from simplu_local.sqs.message import MessageState, StoredMessage

Accept = Callable[[StoredMessage], bool]
"""Receives the next message; returns true when the message counts as delivered."""


class DeliveryOrder(Protocol):
    """The visible messages. A message that has another state when its turn comes is skipped."""

    def add(self, message: StoredMessage) -> None:
        """Add *message*, which has become visible."""

    def take(self, limit: int, accept: Accept) -> None:
        """Pass the next messages to *accept* until it has accepted *limit* of them."""

    def release(self, message: StoredMessage) -> None:
        """Note that *message* is no longer in flight: it was deleted, or is about to become visible."""

    def clear(self) -> None:
        """Remove all messages."""


class StandardOrder:
    """The order of a standard queue: oldest first, whichever messages are in flight."""

    def __init__(self) -> None:
        self._visible: list[tuple[int, StoredMessage]] = []

    def __repr__(self) -> str:
        return f"StandardOrder({len(self._visible)} visible)"

    def add(self, message: StoredMessage) -> None:
        """Add *message*, which has become visible."""
        heapq.heappush(self._visible, (message.number, message))

    def take(self, limit: int, accept: Accept) -> None:
        """Pass the next messages to *accept* until it has accepted *limit* of them."""
        while limit and self._visible:
            _, message = heapq.heappop(self._visible)
            if message.state is MessageState.VISIBLE:
                limit -= accept(message)

    def release(self, message: StoredMessage) -> None:
        """Do nothing: no message waits for another."""

    def clear(self) -> None:
        """Remove all messages."""
        self._visible.clear()


class MessageGroup:
    """The visible messages of one group, and the number of its messages in flight."""

    __slots__ = ("in_flight", "queued_as", "visible")

    def __init__(self) -> None:
        self.visible: list[tuple[int, StoredMessage]] = []
        self.in_flight = 0
        self.queued_as = -1  # the message number under which the group waits for its turn

    def head(self) -> int | None:
        """Return the number of the first visible message."""
        while self.visible and self.visible[0][1].state is not MessageState.VISIBLE:
            heapq.heappop(self.visible)
        return self.visible[0][0] if self.visible else None


class FifoOrder:
    """The order of a FIFO queue: a group's messages in the order sent, and none while one of them is in flight.

    "When receiving messages from a FIFO queue with multiple message group IDs, Amazon SQS first attempts to return as
    many messages with the same message group ID as possible." (developer guide, "FIFO queue delivery logic")
    """

    def __init__(self) -> None:
        self._groups: dict[str, MessageGroup] = {}
        self._open: list[tuple[int, str]] = []  # by the number of a group's head; may contain outdated entries

    def __repr__(self) -> str:
        return f"FifoOrder({len(self._groups)} groups)"

    def add(self, message: StoredMessage) -> None:
        """Add *message*, which has become visible."""
        group_id = message.content.group_id or ""
        group = self._groups.setdefault(group_id, MessageGroup())
        heapq.heappush(group.visible, (message.number, message))
        self._queue_group(group_id, group)

    def take(self, limit: int, accept: Accept) -> None:
        """Pass the next messages to *accept* until it has accepted *limit* of them."""
        while limit and self._open:
            number, group_id = heapq.heappop(self._open)
            group = self._groups.get(group_id)
            if group is None or group.queued_as != number:
                continue
            group.queued_as = -1
            limit = self._take_from(group, limit, accept)
            self._queue_group(group_id, group)

    def release(self, message: StoredMessage) -> None:
        """Note that *message* is no longer in flight: it was deleted, or is about to become visible."""
        group_id = message.content.group_id or ""
        group = self._groups[group_id]
        group.in_flight -= 1
        self._queue_group(group_id, group)

    def clear(self) -> None:
        """Remove all messages."""
        self._groups.clear()
        self._open.clear()

    def _take_from(self, group: MessageGroup, limit: int, accept: Accept) -> int:
        """Pass the messages of one group to *accept*; return the remaining limit."""
        while limit and group.head() is not None:
            _, message = heapq.heappop(group.visible)
            if accept(message):
                group.in_flight += 1
                limit -= 1
        return limit

    def _queue_group(self, group_id: str, group: MessageGroup) -> None:
        """Queue a group without a message in flight for its turn, once; remove a group without messages."""
        if group.in_flight:
            return
        head = group.head()
        if head is None:
            del self._groups[group_id]
        elif group.queued_as != head:
            group.queued_as = head
            heapq.heappush(self._open, (head, group_id))
