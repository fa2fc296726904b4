"""How many polls a queue needs at a time, how much each may ask for, and which receive repeats a failed one. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT

ATTEMPT_MAX_S: Final = 240.0  # SQS API reference, ReceiveRequestAttemptId: five minutes, less a margin for clocks


class ReceiveAttempt(msgspec.Struct, frozen=True):
    """A receive of a FIFO queue; when its answer got lost, a repetition of it gives the same messages."""

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

    def __repr__(self) -> str:
        return f"PollCount({self.wanted_count} of {self._max_count})"

    def record_answer(self, received_count: int, asked_count: int) -> None:
        """Record that a poll received *received_count* messages of *asked_count*.

        A poll that asked for fewer messages than a receive may give shows nothing about the rest of the queue.
        """
        if received_count == 0:
            self.wanted_count = 1
        elif received_count >= asked_count == BATCH_MAX_COUNT:
            self.wanted_count = min(self.wanted_count + 1, self._max_count)

    def record_failure(self) -> None:
        """Record that a poll failed: one poll is enough to notice the recovery."""
        self.wanted_count = 1


class PollReservations:
    """The room in flight that polls under way may need, so that concurrent polls together keep to the limits.

    The sizes of messages are unknown before they arrive: the largest recent size stands for each.
    """

    def __init__(self, *, message_count: int, byte_count: int) -> None:
        self._message_count = message_count
        self._byte_count = byte_count
        self._asked_count = 0
        self._largest_bytes = 0.0

    def __repr__(self) -> str:
        return f"PollReservations({self._asked_count} messages of about {self._largest_bytes:.0f} bytes)"

    def reserve(self, *, in_flight_count: int, in_flight_bytes: int) -> int:
        """Reserve room for a poll until `release`; return how many messages it may ask for, 0 for none."""
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
        """Release the room of a poll that asked for *asked_count* messages and received messages of these sizes."""
        self._asked_count -= asked_count
        if sizes_bytes:
            self._largest_bytes = max(*sizes_bytes, 0.9 * self._largest_bytes, 1.0)
