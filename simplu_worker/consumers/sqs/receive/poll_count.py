"""How many polls a queue needs at a time, and which receive of a FIFO queue repeats one before. Pure: no clock."""

from __future__ import annotations

from typing import Final

import msgspec

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT

ATTEMPT_MAX_S: Final = 240.0  # SQS API reference, ReceiveRequestAttemptId: five minutes, less what clocks differ by


class ReceiveAttempt(msgspec.Struct, frozen=True):
    """A receive whose answer did not come: asked for again as it was, it gives the same messages."""

    attempt_id: str
    max_messages: int
    made_at: float

    def is_usable(self, now: float) -> bool:
        """Tell whether SQS still knows it."""
        return now - self.made_at < ATTEMPT_MAX_S


class PollCount:
    """The number of polls that shall run: one more for each that came back full, one again when one came back empty."""

    def __init__(self, most_count: int) -> None:
        self._most_count = max(most_count, 1)
        self.wanted_count = 1

    def __repr__(self) -> str:
        return f"PollPace({self.wanted_count} of {self._most_count})"

    def note(self, received_count: int, asked_count: int) -> None:
        """Take in that a poll brought *received_count* messages of *asked_count*.

        A poll that asked for fewer than fit says nothing about what is left in the queue.
        """
        if received_count == 0:
            self.wanted_count = 1
        elif received_count >= asked_count == BATCH_MAX_COUNT:
            self.wanted_count = min(self.wanted_count + 1, self._most_count)

    def note_failure(self) -> None:
        """Take in that a poll failed: one is enough to see when that is over."""
        self.wanted_count = 1


class PollReservations:
    """Room in hand that polls under way may need, so that polls at one time together keep to the limits.

    How large the messages are that come is not known before: the largest of late stands for each.
    """

    def __init__(self, *, message_count: int, byte_count: int) -> None:
        self._message_count = message_count
        self._byte_count = byte_count
        self._asked_count = 0
        self._largest_bytes = 0.0

    def __repr__(self) -> str:
        return f"Reserve({self._asked_count} messages of about {self._largest_bytes:.0f} bytes)"

    def ask(self, *, in_hand_count: int, in_hand_bytes: int) -> int:
        """Return how many messages a poll may ask for now, 0 for none; they count until `end`."""
        room = min(self._message_count - in_hand_count - self._asked_count, BATCH_MAX_COUNT)
        room_bytes = self._byte_count - in_hand_bytes - self._asked_count * self._largest_bytes
        if self._largest_bytes:
            room = min(room, int(room_bytes // self._largest_bytes))
        if room < 1 and not in_hand_count and not self._asked_count:
            room = 1  # a single message that is larger than all the room has to be taken at some time
        count = max(room, 0)
        self._asked_count += count
        return count

    def end(self, asked_count: int, sizes_bytes: list[int]) -> None:
        """Note that a poll that asked for *asked_count* messages has ended, and brought ones of these sizes."""
        self._asked_count -= asked_count
        if sizes_bytes:
            self._largest_bytes = max(*sizes_bytes, 0.9 * self._largest_bytes, 1.0)
