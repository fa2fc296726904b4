from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import ClassVar

import msgspec
from botocore.exceptions import ConnectionClosedError
from simulation.simulated_network import Network

from simplu_local.kinesis.errors import KinesisError
from simplu_local.kinesis.fan_out.event_stream import encode_event, encode_exception
from simplu_local.kinesis.fan_out.subscription import LocalSubscription

CHECK_INTERVAL_S = 0.1
UNREAD_MAX_BYTES = 16 * 1024  # then the connection is full
TAKEN_AFTER_S = (5.0, 15.0)
REFUSALS = ("AccessDeniedException", "LimitExceededException", "ResourceInUseException")
FAULTY_AFTER = (0, 6)  # events


class PushFaults(msgspec.Struct, frozen=True):
    """Chances: of a call that is refused, and of a subscription with one fault."""

    refused: float = 0.0
    silent: float = 0.0  # after some events nothing comes, and the connection stays
    ends: float = 0.0  # after some events, with an error or without
    repeats: float = 0.0  # events come again
    taken: float = 0.0  # by a zombie: a call that nobody reads
    late: float = 0.02  # an event that comes up to the network's longest delay later
    draws: Random = Random(0)

    def refuse(self) -> None:
        if self.draws.random() < self.refused:
            raise KinesisError(self.draws.choice(REFUSALS), "as simulated")


class PushedBody:
    """The unread body of an answer of SubscribeToShard: events come into it whoever is stopped."""

    KINDS: ClassVar = ("silent", "ends", "repeats", "taken")

    def __init__(
        self, subscription: LocalSubscription, network: Network, now_ms: Callable[[], int], faults: PushFaults
    ) -> None:
        self._subscription = subscription
        self._network = network
        self._now_ms = now_ms
        self._draws = faults.draws
        self._late = faults.late
        fate = faults.draws.random()
        self._fault: str | None = None
        for kind in self.KINDS:
            fate -= getattr(faults, kind)
            if fate < 0:
                self._fault = kind
                break
        self._faulty_after = faults.draws.randint(*FAULTY_AFTER)
        self._nobody = network.nobody
        self._parts: deque[bytes | Exception] = deque([encode_event("initial-response", b"{}", "application/json")])
        self._came = asyncio.Event()
        self._came.set()
        self._delivered_at = 0.0
        self._before: bytes | None = None
        self.is_closed = False
        if self._fault == "taken":
            self._later(faults.draws.uniform(*TAKEN_AFTER_S), self._take)
        self._later(0.0, self._check)

    async def read_any(self) -> bytes:
        await self._came.wait()
        part = self._parts.popleft()
        if not self._parts:
            self._came.clear()
        if isinstance(part, Exception):
            raise part
        return part

    def close(self) -> None:
        self.is_closed = True

    def _later(self, delay_s: float, callback: Callable[..., None], *arguments: object) -> None:
        self._network.loop.call_later(delay_s, callback, *arguments, context=self._nobody)

    def _check(self) -> None:
        if self.is_closed:
            return
        unread_bytes = sum(len(part) for part in self._parts if isinstance(part, bytes))
        if "kinesis" not in self._network.down and unread_bytes < UNREAD_MAX_BYTES and self._send_next():
            return
        self._later(CHECK_INTERVAL_S, self._check)

    def _send_next(self) -> bool:
        try:
            event = self._subscription.next_event(self._now_ms())
        except KinesisError as exc:
            body = msgspec.json.encode({"message": exc.message})
            self._deliver(encode_exception(exc.code, body, "application/json"), b"")
            return True
        if event is not None:
            is_faulty = self._faulty_after <= 0
            self._faulty_after -= 1
            if is_faulty and self._fault == "silent":
                return True
            if is_faulty and self._fault == "ends":
                lost = ConnectionClosedError(endpoint_url="https://kinesis.simulated")
                self._deliver(self._draws.choice([lost, b""]))
                return True
            frame = encode_event("SubscribeToShardEvent", event, "application/json")
            again = [self._before] if is_faulty and self._fault == "repeats" and self._before is not None else []
            self._deliver(frame, *again)
            self._before = frame
        if self._subscription.is_over:
            self._deliver(b"")
        return self._subscription.is_over

    def _take(self) -> None:
        try:
            self._subscription.consumer.subscribe(self._subscription.stream_shard.stream_shard_id, self._now_ms())
        except KinesisError:
            return  # another was faster

    def _deliver(self, *parts: bytes | Exception) -> None:
        delay_s = 0.001 + self._draws.random() * 0.02
        if self._draws.random() < self._late:
            delay_s += self._draws.random() * self._network.trouble.longest_s
        # Timers of one instant may run in any order, and bytes of a connection do not overtake each other.
        self._delivered_at = max(self._delivered_at + 1e-6, self._network.loop.time() + delay_s)
        self._later(self._delivered_at - self._network.loop.time(), self._arrive, parts)

    def _arrive(self, parts: tuple[bytes | Exception, ...]) -> None:
        self._parts.extend(parts)
        self._came.set()
