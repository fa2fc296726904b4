"""Settings of a queue that do not fit how the worker consumes it; messages of paused tenants. Pure.

SQS counts each receive, and has a quota for what is hidden. So messages of a paused tenant are hidden for HIDDEN_S, no
more than HIDDEN_MAX of a queue, and remembered, to come back at a resume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.aws.sqs_queue import RETENTION_MAX_S, Message, QueueAttributes
from simplu_worker.consumers.sqs.receive.message_table import HELD_MAX_S

HIDDEN_S: Final = 1800.0
HIDDEN_MAX: Final = 5000  # of the 120,000 of a queue that SQS hides, which all replicas share
BEYOND_S: Final = 30.0  # of the others
RETURNED_AFTER_S: Final = 5.0  # so long after its verdict a message is hidden at the latest, and may be shown again


class _Hidden(msgspec.Struct, frozen=True):
    message: Message
    decided_at: float
    until: float


class PausedMessages:
    """The messages that this replica has hidden, by tenant. Times are monotonic."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, dict[str, _Hidden]] = {}  # by the message's id

    def __len__(self) -> int:
        return sum(map(len, self._by_tenant.values()))

    @property
    def tenants(self) -> list[str]:
        """The tenants with hidden messages."""
        return list(self._by_tenant)

    def add(self, tenant_id: str, message: Message, *, paused_s: float, now: float) -> float:
        """Remember a message that is returned now; return for how long to hide it."""
        self._forget(tenant_id, message.message_id)
        if len(self) >= HIDDEN_MAX:
            return min(BEYOND_S, paused_s)
        hidden_s = min(HIDDEN_S, paused_s)
        self._by_tenant.setdefault(tenant_id, {})[message.message_id] = _Hidden(message, now, now + hidden_s)
        return hidden_s

    def take(self, tenant_id: str, *, now: float) -> list[Message]:
        """Remove and return a tenant's messages that are still hidden."""
        own = self._by_tenant.get(tenant_id, {})
        due = [one for one in own.values() if one.decided_at + RETURNED_AFTER_S <= now]
        for one in due:
            self._forget(tenant_id, one.message.message_id)
        return [one.message for one in due if one.until > now]

    def forget_returned(self, *, now: float) -> None:
        """Forget the messages that have come back by themselves."""
        for tenant_id, own in list(self._by_tenant.items()):
            for one in [one for one in own.values() if one.until <= now]:
                self._forget(tenant_id, one.message.message_id)

    def _forget(self, tenant_id: str, message_id: str) -> None:
        own = self._by_tenant.get(tenant_id, {})
        own.pop(message_id, None)
        if not own:
            self._by_tenant.pop(tenant_id, None)


# During an outage a message is received about once in two minutes, so this is an outage of some hours.
OUTAGE_MIN_RECEIVES: Final = 100


class RedriveRules(msgspec.Struct, frozen=True):
    """The delays between tries, how long a drain may take, and whether messages wait for paused tenants."""

    retry_delays_s: Sequence[float]
    grace_s: float
    has_orders: bool = False

    @property
    def receive_count(self) -> int:
        """How many receives the tries of a message take: it stays in flight between them, unless that is too long."""
        receive_count, held_s = 1, 0.0
        for delay_s in self.retry_delays_s:
            held_s += delay_s
            if held_s > HELD_MAX_S:
                receive_count, held_s = receive_count + 1, 0.0
        return receive_count


def pause_receives(retention_s: int) -> int:
    """Return how many receives the longest pause of its tenant costs a message."""
    return math.ceil(retention_s / 2 / HIDDEN_S)


class RedrivePolicy(msgspec.Struct, frozen=True):
    """The queue to which SQS itself moves messages, and after how many receives."""

    target_name: str
    max_receive_count: int


def parse_redrive_policy(text: str | None) -> RedrivePolicy | None:
    """Parse the attribute RedrivePolicy; None when it is malformed."""
    try:
        found: Any = json.loads(text or "null")
        return RedrivePolicy(
            target_name=str(found["deadLetterTargetArn"]).rpartition(":")[2],
            max_receive_count=int(found["maxReceiveCount"]),
        )
    except (ValueError, TypeError, KeyError):
        return None


def redrive_problems(queue: QueueAttributes, target: QueueAttributes | None, rules: RedriveRules) -> Iterator[str]:
    """Yield a sentence for each setting that does not fit; *target* is the queue that the redrive policy names.

    SQS counts every receive, so its policy cannot spare messages during an outage.
    """
    policy = parse_redrive_policy(queue.redrive_policy)
    if policy is not None and policy.max_receive_count < rules.receive_count:
        yield (
            f"maxReceiveCount {policy.max_receive_count} is lower than the {rules.receive_count} receives that "
            f"SQS_RETRY_DELAYS_SECONDS takes: SQS moves a message to {policy.target_name} before its tries are over; "
            f"set {OUTAGE_MIN_RECEIVES} or more"
        )
    elif policy is not None and policy.max_receive_count < OUTAGE_MIN_RECEIVES:
        yield (
            f"maxReceiveCount {policy.max_receive_count}: SQS moves messages to {policy.target_name} when a dependency "
            f"is down for longer than about {2 * policy.max_receive_count} min, or when as many workers are killed; "
            f"set {OUTAGE_MIN_RECEIVES} or more"
        )
    elif policy is not None and rules.has_orders and queue.retention_s is not None:
        least = pause_receives(queue.retention_s)
        if policy.max_receive_count < least:
            yield (
                f"maxReceiveCount {policy.max_receive_count}: SQS moves messages of a paused tenant to "
                f"{policy.target_name} before its pause ends by itself; set {least} or more"
            )
    if queue.visibility_timeout_s < rules.grace_s:
        yield (
            f"visibility timeout {queue.visibility_timeout_s} s is shorter than SHUTDOWN_GRACE_SECONDS, "
            f"{rules.grace_s:g} s: when a worker is killed, another receives its messages before a drain would end"
        )
    if policy is None or target is None or policy.target_name.endswith(".fifo"):
        return  # a move to a FIFO queue restarts the retention
    if target.retention_s is None or queue.retention_s is None or target.retention_s >= RETENTION_MAX_S:
        return  # nothing is kept for longer, whatever the retention of the queue itself
    if target.retention_s <= queue.retention_s:
        yield (
            f"{policy.target_name} keeps messages for {target.retention_s} s, the queue itself for {queue.retention_s} "
            f"s: the time in the queue counts there too, so an old message expires soon after it was moved"
        )
