"""Settings of a queue that do not fit how the worker consumes it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.aws.sqs_queue import RETENTION_MAX_S, QueueAttributes
from simplu_worker.consumers.sqs.receive.message_table import HELD_MAX_S

# During an outage a message is received about once in two minutes, so this is an outage of some hours.
OUTAGE_MIN_RECEIVES: Final = 100


class RedriveRules(msgspec.Struct, frozen=True):
    """The delays between tries, and how long a drain may take."""

    retry_delays_s: Sequence[float]
    grace_s: float

    @property
    def receive_count(self) -> int:
        """How many receives the tries of a message take: it stays in flight between them, unless that is too long."""
        receive_count, held_s = 1, 0.0
        for delay_s in self.retry_delays_s:
            held_s += delay_s
            if held_s > HELD_MAX_S:
                receive_count, held_s = receive_count + 1, 0.0
        return receive_count


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
