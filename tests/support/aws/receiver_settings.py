"""Settings of SQS receivers from single options."""

from __future__ import annotations

from simplu_worker.consumers.sqs.receive.message_table import SchedulerLimits
from simplu_worker.consumers.sqs.receive.poller import POLL_WAIT_S
from simplu_worker.consumers.sqs.receive.receiver import DRAIN_S, ReceiverSettings


def receiver_settings(
    *, limits: SchedulerLimits | None = None, poll_wait_s: int = POLL_WAIT_S, drain_s: float = DRAIN_S
) -> ReceiverSettings:
    """Return the settings of a receiver; the defaults are the worker's own."""
    return ReceiverSettings(limits or SchedulerLimits(), poll_wait_s, drain_s)
