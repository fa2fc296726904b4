"""Find what is odd about a configuration that works, and the remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import msgspec

from simplu_worker.aws.sqs_queue import QueueAttributes, queue_name
from simplu_worker.config.settings import SOURCES, Settings, set_of
from simplu_worker.consumers.kinesis.fleet.fleet import SCAN_CAPACITY_PER_S
from simplu_worker.consumers.sqs.receive.redrive_rules import RedriveRules, parse_redrive_policy, redrive_problems
from simplu_worker.operations.retention_rules import effective_retention

RECEIVES_MAX: Final = 1000  # a message that crashes the worker is received that often


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
    missing_tables: dict[str, str] = field(default_factory=dict)  # name → remedy
    lease_table_read_units: int = 0  # provisioned a second; 0 when it is on-demand
    shard_count: int = 0
    empty_shards: list[str] = field(default_factory=list)
    inactive_shards: list[str] = field(default_factory=list)
    told: dict[str, list[str]] = field(default_factory=dict)  # of shards: a problem and the advice, after a semicolon
    eviction_policy: str | None = None  # of Redis


def find_oddities(facts: CheckFacts, settings: Settings, misspellings: Mapping[str, str]) -> list[Finding]:
    """Return all oddities."""
    return [
        *_queue_findings(facts, settings),
        *_source_findings(settings),
        *_retention_findings(facts, settings),
        *_stream_findings(facts, settings),
        *_shard_findings(facts, settings),
        *_cache_findings(facts),
        *_settings_findings(facts, settings),
        *(
            Finding(name, "no variable of the worker, which ignores it", f"did you mean {nearest}?")
            for name, nearest in misspellings.items()
        ),
    ]


def _queue_findings(facts: CheckFacts, settings: Settings) -> Iterator[Finding]:
    with_orders = {
        f"queue {queue_name(url)}"
        for url in (settings.sqs_order_events_queue_url, settings.sqs_priority_queue_url)
        if url is not None
    }
    for name, queue in facts.queues.items():
        rules = RedriveRules(
            settings.sqs_retry_delays_seconds, settings.shutdown_grace_seconds, has_orders=name in with_orders
        )
        policy = parse_redrive_policy(queue.redrive_policy)
        if policy is None:
            yield Finding(
                name,
                "no redrive policy",
                "nothing to do: the worker stores dead letters itself, and only a message that crashes it comes back "
                "without end",
            )
        elif policy.max_receive_count > RECEIVES_MAX:
            yield Finding(
                name,
                f"maxReceiveCount {policy.max_receive_count}, a message that crashes the worker does so that often",
                f"set {RECEIVES_MAX} or fewer",
            )
        for problem in redrive_problems(queue, facts.redrive_targets.get(name), rules):
            yield Finding(name, problem, "change the queue's settings, or those of the worker")


def _source_findings(settings: Settings) -> Iterator[Finding]:
    sources = set_of(settings, *SOURCES)
    if sources == ["SQS_SHARD_CREATION_QUEUE_URL"]:
        operations = " or ".join(name for name in SOURCES if name not in sources)
        yield Finding(
            "sources", f"expected a source of operations, {operations}, got the control queue alone", "set one"
        )


def _stream_findings(facts: CheckFacts, settings: Settings) -> Iterator[Finding]:
    if 0 < facts.lease_table_read_units < SCAN_CAPACITY_PER_S:
        yield Finding(
            f"lease table {settings.kinesis_application_name}",
            f"provisioned for {facts.lease_table_read_units} read units a second, where the scans of each replica may "
            f"take {SCAN_CAPACITY_PER_S:.0f}",
            "switch it to on-demand",
        )


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


def _cache_findings(facts: CheckFacts) -> Iterator[Finding]:
    policy = facts.eviction_policy or ""
    if policy.startswith("allkeys"):
        yield Finding(
            "Redis",
            f"maxmemory-policy {policy}, Redis may evict versions and the epoch, and stale lists are read again",
            "set a volatile policy or noeviction, and give entries a time to live",
        )


def _shard_findings(facts: CheckFacts, settings: Settings) -> Iterator[Finding]:
    for name in facts.empty_shards:
        yield Finding(
            name,
            "no schema yet",
            "nothing to do: the schema is created with the first tenant; before tenants move there, name the shard in "
            "simplu-worker shards upgrade SHARD --apply",
        )
    for name in facts.inactive_shards:
        yield Finding(name, "marked inactive by Citrus, its tenants wait", "ask the operators of Citrus")
    for name, told in facts.told.items():
        for one in told:
            problem, _, advice = one.rpartition("; ")
            yield Finding(name, problem, advice)
    connections = facts.shard_count * settings.database_pool_size
    if connections > settings.database_max_connections:
        yield Finding(
            "connections",
            f"DATABASE_POOL_SIZE {settings.database_pool_size} × {facts.shard_count} shards = {connections}, "
            f"DATABASE_MAX_CONNECTIONS is {settings.database_max_connections}",
            "lower the pool size or raise the maximum, unless few shards are busy at a time",
        )


def _settings_findings(facts: CheckFacts, settings: Settings) -> Iterator[Finding]:
    if settings.api_token is None:
        yield Finding("API_TOKEN", "not set, the protected pages answer 403", "set it to see /status")
    for name, advice in facts.missing_tables.items():
        yield Finding(name, "does not exist", advice)


def format_hours(duration: timedelta) -> str:
    """Return *duration* in hours, for people."""
    return f"{duration.total_seconds() / 3600:g} h"
