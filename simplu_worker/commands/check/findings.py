"""Find what is odd about a configuration that works, and the remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec

from simplu_worker.aws.sqs_queue import QueueAttributes
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.sqs.receive.redrive_rules import RedriveRules, parse_redrive_policy, redrive_problems
from simplu_worker.operations.retention_rules import effective_retention


class Finding(msgspec.Struct, frozen=True):
    """Something odd, its problem, and the remedy."""

    about: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.about}: {self.problem}; {self.advice}"


@dataclass
class CheckFacts:
    """The properties of the dependencies that answered."""

    retentions: dict[str, timedelta] = field(default_factory=dict)  # of sources, by their names for people
    queues: dict[str, QueueAttributes] = field(default_factory=dict)  # of sources
    redrive_targets: dict[str, QueueAttributes] = field(default_factory=dict)  # where SQS moves their messages
    dead_letters_retention: timedelta | None = None


def find_oddities(facts: CheckFacts, settings: Settings) -> list[Finding]:
    """Return all oddities."""
    found = [*_queue_findings(facts, settings), *_retention_findings(facts, settings)]
    if settings.api_token is None:
        found.append(Finding("API_TOKEN", "not set, the protected pages answer 403", "set it to see /status"))
    return found


def _queue_findings(facts: CheckFacts, settings: Settings) -> Iterator[Finding]:
    rules = RedriveRules(settings.sqs_retry_delays_seconds, settings.shutdown_grace_seconds)
    for name, queue in facts.queues.items():
        if parse_redrive_policy(queue.redrive_policy) is None:
            yield Finding(
                name,
                "no redrive policy",
                "nothing to do: the worker stores dead letters itself, and only a message that crashes it comes back "
                "without end",
            )
        for problem in redrive_problems(queue, facts.redrive_targets.get(name), rules):
            yield Finding(name, problem, "change the queue's settings, or the worker's")


def _retention_findings(facts: CheckFacts, settings: Settings) -> Iterator[Finding]:
    configured = timedelta(hours=settings.operation_retention_hours)
    letters = facts.dead_letters_retention
    for name, retention in facts.retentions.items():
        effective = effective_retention(configured, [retention])
        if effective is not None and effective > configured:
            yield Finding(
                name,
                f"keeps records for {format_hours(retention)}, "
                f"OPERATION_RETENTION_HOURS is {format_hours(configured)}: "
                f"it will be raised to {format_hours(effective)}",
                f"set OPERATION_RETENTION_HOURS to {effective.total_seconds() / 3600:g} or more",
            )
        if letters is not None and letters < retention:
            yield Finding(
                name,
                f"keeps records for {format_hours(retention)}, the dead-letter queue for {format_hours(letters)} only",
                "raise the MessageRetentionPeriod of the dead-letter queue",
            )


def format_hours(duration: timedelta) -> str:
    """Return *duration* in hours, for people."""
    return f"{duration.total_seconds() / 3600:g} h"
