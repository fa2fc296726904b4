"""The queues that pages create have the settings of the templates, which fit the worker's own rules."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
import pytest
from support.aws.command_line import parse_arguments
from support.aws_access.template_values import Template
from support.aws_access.templates import TEMPLATES
from support.requires import ROOT

from simplu_worker.aws.sqs_queue import QueueAttributes
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.sqs.receive.redrive_rules import RedriveRules, parse_redrive_policy, redrive_problems

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# On this page the dead-letter queue is a new one of another name.
OTHER_NAMES = {"region-loss.md": re.compile(r"-2$")}
REDRIVE = ("RedrivePolicy",)
_ARNS = {f"{name}RedriveQueue.Arn": "" for name in ("Control", "Order")}


def template_queues() -> dict[str, dict[str, str]]:
    """Return the attributes of each queue of data.yaml, as SQS takes them and without redrive policies, by its name."""
    queues = {}
    for properties in Template(TEMPLATES / "data.yaml", _ARNS).resources("AWS::SQS::Queue").values():
        name = properties.pop("QueueName")
        queues[name] = {key: text_of(value) for key, value in properties.items() if key not in REDRIVE}
    return queues


def text_of(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def created_queues(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and the attributes of each queue that commands of the AWS CLI in *text* create."""
    model = botocore.session.get_session().get_service_model("sqs")
    shape = model.operation_model("CreateQueue").input_shape
    for words in commands_in(text, "aws sqs create-queue"):
        region = words.index("--region") if "--region" in words else len(words)
        given: dict[str, Any] = parse_arguments(words[3:region] + words[region + 2 :], shape)
        yield given["QueueName"], given["Attributes"]


def commands_in(text: str, prefix: str) -> Iterator[list[str]]:
    """Yield the words of each command in *text* that begins with *prefix*; what is quoted may have several lines."""
    for found in re.finditer(rf"(?m)^{prefix} (?:'[^']*'|[^'\n])*$", text):
        yield shlex.split(found[0])


@pytest.mark.slow
def test_queues_that_pages_create_are_those_of_the_template() -> None:
    expected = template_queues()
    created = [
        (OTHER_NAMES.get(page.name, re.compile(r"$^")).sub("", name), attributes)
        for page in PAGES
        for name, attributes in created_queues(page.read_text(encoding="utf-8"))
    ]
    assert len(created) >= 6
    assert [(name, attributes) for name, attributes in created if expected[name] != attributes] == []


def test_redrive_policies_fit_by_the_worker_s_own_rules() -> None:
    targets = {
        "ControlRedriveQueue.Arn": "shard-creation-queue-redrive",
        "OrderRedriveQueue.Arn": "order-events-redrive.fifo",
    }
    template = Template(TEMPLATES / "data.yaml", {name: f"arn:aws:sqs:r:1:{queue}" for name, queue in targets.items()})
    queues = {one["QueueName"]: attributes_of(one) for one in template.resources("AWS::SQS::Queue").values()}
    rules = RedriveRules(Settings().sqs_retry_delays_seconds, Settings().shutdown_grace_seconds, has_orders=True)
    problems = [
        problem
        for queue in queues.values()
        if (policy := parse_redrive_policy(queue.redrive_policy)) is not None
        for problem in redrive_problems(queue, queues[policy.target_name], rules)
    ]
    assert problems == []


def attributes_of(properties: Mapping[str, Any]) -> QueueAttributes:
    """Return the attributes of an empty queue with the *properties* of a template."""
    return QueueAttributes(
        visibility_timeout_s=properties.get("VisibilityTimeout", 30),
        max_message_bytes=properties.get("MaximumMessageSize"),
        retention_s=properties["MessageRetentionPeriod"],
        visible_count=0,
        in_flight_count=0,
        delayed_count=0,
        redrive_policy=json.dumps(properties["RedrivePolicy"]) if "RedrivePolicy" in properties else None,
    )
