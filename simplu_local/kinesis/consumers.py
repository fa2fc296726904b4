"""The consumers that are registered with a stream, and their subscriptions to stream shards. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from simplu_local.kinesis.errors import KinesisError, resource_in_use, resource_not_found

CONSUMERS_MAX = 20  # of one stream: API_RegisterStreamConsumer
RESUBSCRIBE_AFTER_MS = 5000  # API_SubscribeToShard


@dataclass
class RegisteredConsumer:
    """A consumer of a stream, and its last successful call of SubscribeToShard for each stream shard."""

    name: str
    arn: str
    created_ms: int
    active_at_ms: int
    calls: dict[str, tuple[int, int]] = field(default_factory=dict)  # by stream shard: number of the call, and its time

    def status(self, now_ms: int) -> str:
        """Return CREATING or ACTIVE."""
        return "CREATING" if now_ms < self.active_at_ms else "ACTIVE"

    def subscribe(self, stream_shard_id: str, now_ms: int) -> int:
        """Count a successful call; return its number. The call before, if any, loses its subscription.

        Raises ResourceInUseException less than five seconds after that (API_SubscribeToShard).
        """
        number, called_ms = self.calls.get(stream_shard_id, (0, now_ms - RESUBSCRIBE_AFTER_MS))
        if now_ms - called_ms < RESUBSCRIBE_AFTER_MS:
            raise resource_in_use(
                f"consumer {self.name} subscribed to shard {stream_shard_id} {now_ms - called_ms} ms ago"
            )
        self.calls[stream_shard_id] = number + 1, now_ms
        return number + 1


class ConsumerRegistry:
    """The consumers of one stream, by name."""

    def __init__(self, stream_arn: str) -> None:
        self._stream_arn = stream_arn
        self._consumers: dict[str, RegisteredConsumer] = {}

    def __repr__(self) -> str:
        return f"ConsumerRegistry({sorted(self._consumers)})"

    def __len__(self) -> int:
        """Return the number of consumers."""
        return len(self._consumers)

    def all(self) -> list[RegisteredConsumer]:
        """Return the consumers, sorted by name."""
        return [consumer for _, consumer in sorted(self._consumers.items())]

    def register(self, name: str, now_ms: int, *, active_at_ms: int) -> RegisteredConsumer:
        """Register a consumer (API_RegisterStreamConsumer)."""
        if name in self._consumers:
            raise resource_in_use(f"consumer {name} is registered already")
        if len(self._consumers) >= CONSUMERS_MAX:
            raise KinesisError("LimitExceededException", f"{CONSUMERS_MAX} consumers are registered, as many as may be")
        arn = f"{self._stream_arn}/consumer/{name}:{now_ms // 1000}"
        consumer = self._consumers[name] = RegisteredConsumer(name, arn, now_ms, active_at_ms)
        return consumer

    def find(self, name: str | None, arn: str | None) -> RegisteredConsumer:
        """Return a consumer by name or ARN. Raises ResourceNotFoundException."""
        for consumer in self._consumers.values():
            if consumer.arn == arn or (arn is None and consumer.name == name):
                return consumer
        raise resource_not_found(f"consumer {arn or name} not found")

    def deregister(self, consumer: RegisteredConsumer) -> None:
        """Remove a consumer; its subscriptions end."""
        del self._consumers[consumer.name]
