"""Find the resources that a configuration names and AWS lacks, and the commands that create them. Pure."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec

from simplu_worker.aws.dynamodb_tables import TableSummary
from simplu_worker.aws.sqs_queue import RETENTION_MAX_S, QueueAttributes, queue_name
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.leases.lease_table import TABLE_DEFINITION

RETENTION_HOURS: Final = 168  # a week for a shard that is down, in place of the 24 h of a new stream
VISIBILITY_MIN_S: Final = 30
LONG_POLL_S: Final = 20
ABSENT: Final = "does not exist"
MESSAGE_MAX_BYTES: Final = 1_048_576
BUSINESS_INFO_DEFINITION: Final[Mapping[str, Any]] = {
    "BillingMode": "PAY_PER_REQUEST",
    "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
    "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
}


class AwsFacts(msgspec.Struct, frozen=True):
    """The answers of AWS: by the name of a table and the URL of a queue, None for one that does not exist."""

    has_stream: bool
    tables: Mapping[str, TableSummary | None]
    queues: Mapping[str, QueueAttributes | None]


class PlannedStep(msgspec.Struct, frozen=True):
    """A missing resource, or a setting that does not fit, and the commands that mend it, in order."""

    about: str
    problem: str
    commands: list[str]


def plan(facts: AwsFacts, settings: Settings) -> list[PlannedStep]:
    """Return a step for each missing resource, the sources first; none when nothing is missing.

    The commands create what the worker needs, with the settings of docs/queues.md.
    """
    return [
        *_plan_stream(facts, settings),
        *_plan_tables(facts, settings),
        *_plan_source_queues(facts, settings),
        *_plan_dead_letters(facts, settings),
    ]


def source_queues(settings: Settings) -> dict[str, str]:
    """Return the names for people of the configured source queues, by URL."""
    urls = {
        "control queue": settings.sqs_shard_creation_queue_url,
        "order events": settings.sqs_order_events_queue_url,
        "priority order events": settings.sqs_priority_queue_url,
    }
    return {url: name for name, url in urls.items() if url is not None}


def _plan_stream(facts: AwsFacts, settings: Settings) -> Iterator[PlannedStep]:
    if settings.kinesis_stream_name is None or facts.has_stream:
        return
    name = settings.kinesis_stream_name.rpartition("/")[2]
    commands = [
        _command(settings, "kinesis create-stream", StreamName=name, ShardCount=settings.kinesis_shard_count),
        _command(settings, "kinesis wait stream-exists", StreamName=name),
        _command(
            settings,
            "kinesis increase-stream-retention-period",
            StreamName=name,
            RetentionPeriodHours=RETENTION_HOURS,
        ),
    ]
    yield PlannedStep(f"stream {name}", ABSENT, commands)


def _plan_tables(facts: AwsFacts, settings: Settings) -> Iterator[PlannedStep]:
    wanted = {
        settings.kinesis_application_name: TABLE_DEFINITION,
        settings.dynamodb_business_info_table: BUSINESS_INFO_DEFINITION,
    }
    for table, definition in wanted.items():
        if table in facts.tables and facts.tables[table] is None:
            name = table.rpartition("/")[2]
            commands = [
                _command(settings, "dynamodb create-table", TableName=name, **definition),
                _command(settings, "dynamodb wait table-exists", TableName=name),
            ]
            yield PlannedStep(f"table {name}", ABSENT, commands)


def _plan_source_queues(facts: AwsFacts, settings: Settings) -> Iterator[PlannedStep]:
    visibility_s = max(VISIBILITY_MIN_S, math.ceil(settings.shutdown_grace_seconds))
    for url in source_queues(settings):
        queue = facts.queues[url]
        name = queue_name(url)
        if queue is None:
            attributes = {
                "VisibilityTimeout": visibility_s,
                "MessageRetentionPeriod": RETENTION_MAX_S,
                "ReceiveMessageWaitTimeSeconds": LONG_POLL_S,
                "SqsManagedSseEnabled": "true",
            }
            yield _missing_queue(settings, name, attributes)
        elif queue.visibility_timeout_s < settings.shutdown_grace_seconds:
            yield PlannedStep(
                f"queue {name}",
                f"visibility timeout {queue.visibility_timeout_s} s, expected {visibility_s} s or more",
                [_attributes_command(settings, url, {"VisibilityTimeout": visibility_s})],
            )


def _plan_dead_letters(facts: AwsFacts, settings: Settings) -> Iterator[PlannedStep]:
    url = settings.dead_letter_queue_url
    if url is None:
        return
    queue, name = facts.queues[url], queue_name(url)
    if queue is None:
        attributes = {
            "VisibilityTimeout": VISIBILITY_MIN_S,
            "MessageRetentionPeriod": RETENTION_MAX_S,
            "MaximumMessageSize": MESSAGE_MAX_BYTES,
            "SqsManagedSseEnabled": "true",
        }
        yield _missing_queue(settings, name, attributes)
    elif queue.retention_s is not None and queue.retention_s < RETENTION_MAX_S:
        yield PlannedStep(
            f"queue {name}",
            f"keeps dead letters for {timedelta(seconds=queue.retention_s)}, expected 14 days",
            [_attributes_command(settings, url, {"MessageRetentionPeriod": RETENTION_MAX_S})],
        )


def _missing_queue(settings: Settings, name: str, attributes: Mapping[str, object]) -> PlannedStep:
    fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if name.endswith(".fifo") else {}
    command = _command(settings, "sqs create-queue", QueueName=name, Attributes=_texts({**attributes, **fifo}))
    return PlannedStep(f"queue {name}", ABSENT, [command])


def _attributes_command(settings: Settings, url: str, attributes: Mapping[str, object]) -> str:
    return _command(settings, "sqs set-queue-attributes", QueueUrl=url, Attributes=_texts(attributes))


def _texts(attributes: Mapping[str, object]) -> dict[str, str]:
    """Return *attributes* as SQS takes them, all as text."""
    return {name: str(value) for name, value in attributes.items()}


def _command(settings: Settings, words: str, **members: Any) -> str:
    """Return a command of the AWS CLI, quoted for a shell; a member that is no text or number is JSON."""
    argv = ["aws", *words.split()]
    if settings.aws_region is not None:
        argv += ["--region", settings.aws_region]
    for name, value in members.items():
        option = re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
        argv += [f"--{option}", str(value) if isinstance(value, str | int) else json.dumps(value)]
    return shlex.join(argv)
