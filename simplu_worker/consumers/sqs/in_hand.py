"""The messages that were received and are not decided yet, and when each must be claimed anew. Pure: no clock.

A received message is hidden from other receivers for the queue's visibility timeout. It is claimed again each third of
that, from the receive on, so that two claims may fail before anybody else gets it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from simplu_worker.consumers.sqs.queue import Message

BEATS_A_TIMEOUT: Final = 3
VISIBILITY_MIN_S: Final = 1  # a queue may say 0, which would mean claiming without end


class _Claim(msgspec.Struct):
    """*message* with its newest receipt handle; *due_at* is `None` once it is not to be claimed again."""

    message: Message
    due_at: float | None


class InHand:
    """Received messages by id, at most *limit*."""

    def __init__(self, *, limit: int, visibility_timeout_s: int) -> None:
        self.limit = limit
        self.visibility_timeout_s = max(visibility_timeout_s, VISIBILITY_MIN_S)
        self._beat_s = self.visibility_timeout_s / BEATS_A_TIMEOUT
        self._claims: dict[str, _Claim] = {}

    def __repr__(self) -> str:
        return f"InHand({sorted(self._claims)}, limit={self.limit}, visibility_timeout_s={self.visibility_timeout_s})"

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def room(self) -> int:
        """How many more messages fit."""
        return max(self.limit - len(self._claims), 0)

    def take(self, messages: Iterable[Message], *, now: float) -> list[Message]:
        """Add *messages* received at *now*; return those that were not in hand already.

        One that was, and came again, is the same work under a newer receipt handle.
        """
        fresh = []
        for message in messages:
            if message.message_id not in self._claims:
                fresh.append(message)
            self._claims[message.message_id] = _Claim(message, now + self._beat_s)
        return fresh

    def newest(self, message: Message) -> Message:
        """Return *message* with the receipt handle it has now."""
        claim = self._claims.get(message.message_id)
        return message if claim is None else claim.message

    def due(self, now: float) -> list[Message]:
        """Return the messages to claim again, most urgent first."""
        claims = [(claim.due_at, claim.message) for claim in self._claims.values() if claim.due_at is not None]
        return [message for due_at, message in sorted(claims, key=lambda pair: pair[0]) if due_at <= now]

    def next_due_in(self, now: float) -> float:
        """Return the seconds until something may be due: what is received from now on is not due before that."""
        dues = [claim.due_at for claim in self._claims.values() if claim.due_at is not None]
        return max(min(dues, default=now + self._beat_s) - now, 0.0)

    def renew(self, messages: Iterable[Message], *, now: float) -> None:
        """Note that *messages* were claimed at *now*."""
        self._set_due(messages, now + self._beat_s)

    def retry_soon(self, messages: Iterable[Message], *, now: float) -> None:
        """Note that claiming *messages* failed: there is time for some more tries."""
        self._set_due(messages, now + self._beat_s / BEATS_A_TIMEOUT)

    def rest(self, messages: Iterable[Message]) -> None:
        """Claim *messages* no more: they are going back, or another receiver has them."""
        self._set_due(messages, None)

    def drop(self, messages: Iterable[Message]) -> None:
        """Forget *messages*: they are decided."""
        for message in messages:
            self._claims.pop(message.message_id, None)

    def _set_due(self, messages: Iterable[Message], due_at: float | None) -> None:
        for message in messages:
            claim = self._claims.get(message.message_id)
            if claim is not None and claim.message.receipt_handle == message.receipt_handle:
                claim.due_at = due_at
