"""Which resources are missing, and the commands that create them, rule by rule."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

import botocore.session
import pytest
from botocore.validate import ParamValidator
from msgspec.structs import replace
from support.aws.command_line import parse_arguments

from simplu_worker.aws.dynamodb_tables import TableSummary
from simplu_worker.aws.sqs_queue import RETENTION_MAX_S, QueueAttributes
from simplu_worker.commands.aws.plan_rules import AwsFacts, plan
from simplu_worker.config.settings import Settings

URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/"
CONTROL, ORDERS, PRIORITY, LETTERS = (f"{URL}{name}" for name in ("c", "o.fifo", "p.fifo", "letters"))
ALL: Mapping[str, object] = {
    "aws_region": "eu-central-1",
    "kinesis_stream_name": "s",
    "kinesis_shard_count": 4,
    "kinesis_application_name": "leases",
    "sqs_shard_creation_queue_url": CONTROL,
    "sqs_order_events_queue_url": ORDERS,
    "sqs_priority_queue_url": PRIORITY,
    "sqs_dead_letter_queue_url": LETTERS,
}
TABLE = TableSummary("ACTIVE", ("id",))
QUEUE = QueueAttributes(
    visibility_timeout_s=30,
    max_message_bytes=None,
    retention_s=RETENTION_MAX_S,
    visible_count=0,
    in_flight_count=0,
    delayed_count=0,
    redrive_policy=None,
)
NOTHING = AwsFacts(
    has_stream=False,
    tables={"leases": None, "business-info": None},
    queues={CONTROL: None, ORDERS: None, PRIORITY: None, LETTERS: None},
)
EVERYTHING = AwsFacts(
    has_stream=True,
    tables={"leases": TABLE, "business-info": TABLE},
    queues=dict.fromkeys((CONTROL, ORDERS, PRIORITY, LETTERS), QUEUE),
)


def settings_with(**changes: object) -> Settings:
    """Return settings of every source, but for *changes*."""
    return Settings(**({**ALL, **changes}))  # type: ignore[arg-type]


def requests_of(lines: list[str]) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield service and operation of each line, and its parameters as botocore's model of the service takes them."""
    for line in lines:
        aws, service, operation, region, name, *arguments = shlex.split(line)
        assert (aws, region, name) == ("aws", "--region", "eu-central-1")
        session = botocore.session.get_session()
        model = session.get_service_model(service)
        operations = {one.lower(): one for one in model.operation_names}
        shape = model.operation_model(operations[operation.replace("-", "")]).input_shape
        parameters = parse_arguments(arguments, shape)
        report = ParamValidator().validate(parameters, shape)
        assert not report.has_errors(), report.generate_report()
        yield f"{service} {operation}", parameters


@pytest.mark.slow
def test_plan_creates_each_resource_that_is_missing() -> None:
    steps = plan(NOTHING, settings_with())
    about = ["stream s", "table leases", "table business-info", "queue c", "queue o.fifo", "queue p.fifo"]
    assert [step.about for step in steps] == [*about, "queue letters"]
    lines = [line for step in steps for line in step.commands]
    waits = [line for line in lines if shlex.split(line)[2] == "wait"]
    assert [shlex.split(line)[1:4] for line in waits] == [
        ["kinesis", "wait", "stream-exists"],
        ["dynamodb", "wait", "table-exists"],
        ["dynamodb", "wait", "table-exists"],
    ]
    made = list(requests_of([line for line in lines if line not in waits]))
    assert [words for words, _ in made] == [
        "kinesis create-stream",
        "kinesis increase-stream-retention-period",
        *["dynamodb create-table"] * 2,
        *["sqs create-queue"] * 4,
    ]
    assert made[0][1] == {"StreamName": "s", "ShardCount": 4}
    assert made[1][1] == {"StreamName": "s", "RetentionPeriodHours": 168}
    assert made[3][1]["KeySchema"] == [{"AttributeName": "id", "KeyType": "HASH"}]
    queues = {str(one["QueueName"]): one["Attributes"] for _, one in made[4:]}
    common = {"MessageRetentionPeriod": "1209600", "SqsManagedSseEnabled": "true", "VisibilityTimeout": "30"}
    source = common | {"ReceiveMessageWaitTimeSeconds": "20"}
    fifo = source | {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
    assert queues == {
        "c": source,
        "o.fifo": fifo,
        "p.fifo": fifo,
        "letters": common | {"MaximumMessageSize": "1048576"},
    }


def test_plan_is_empty_when_nothing_is_missing() -> None:
    assert plan(EVERYTHING, settings_with()) == []
    unset = Settings()
    assert plan(AwsFacts(has_stream=False, tables={"business-info": TABLE}, queues={}), unset) == []


@pytest.mark.parametrize(
    ("url", "changed", "changes", "expected"),
    [
        (CONTROL, replace(QUEUE, visibility_timeout_s=25), {}, None),
        (CONTROL, replace(QUEUE, visibility_timeout_s=24), {}, {"VisibilityTimeout": "30"}),
        (CONTROL, QUEUE, {"shutdown_grace_seconds": 30.5}, {"VisibilityTimeout": "31"}),
        (LETTERS, replace(QUEUE, retention_s=RETENTION_MAX_S - 1), {}, {"MessageRetentionPeriod": "1209600"}),
        (LETTERS, replace(QUEUE, retention_s=None), {}, None),
        (LETTERS, replace(QUEUE, visibility_timeout_s=0), {}, None),
    ],
)
def test_plan_mends_settings_of_queues_that_do_not_fit(
    url: str, changed: QueueAttributes, changes: Mapping[str, object], expected: Mapping[str, str] | None
) -> None:
    quiet = EVERYTHING.queues | dict.fromkeys((ORDERS, PRIORITY), replace(QUEUE, visibility_timeout_s=60))  # type: ignore[operator]
    steps = plan(replace(EVERYTHING, queues=quiet | {url: changed}), settings_with(**changes))
    made = [one for step in steps for one in requests_of(step.commands)]
    wanted = {"QueueUrl": url, "Attributes": expected}
    assert made == ([] if expected is None else [("sqs set-queue-attributes", wanted)])


def test_plan_names_the_resource_of_an_arn_and_the_default_dead_letter_queue() -> None:
    arn = "arn:aws:kinesis:eu-central-1:123456789012:stream/of-arn"
    settings = settings_with(kinesis_stream_name=arn, sqs_dead_letter_queue_url=None)
    facts = replace(EVERYTHING, has_stream=False, queues={**EVERYTHING.queues, f"{CONTROL}-dead-letters": None})
    assert [step.about for step in plan(facts, settings)] == ["stream of-arn", "queue c-dead-letters"]


def test_commands_without_a_region_leave_it_to_the_profile() -> None:
    (step,) = plan(replace(EVERYTHING, has_stream=False), settings_with(aws_region=None))
    assert "--region" not in step.commands[0]
