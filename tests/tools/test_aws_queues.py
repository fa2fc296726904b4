"""The queues that pages create have the settings of the templates, which fit the worker's own rules."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from support.aws.command_line import parse_arguments
from support.aws_access.template_values import Template
from support.aws_access.templates import TEMPLATES
from support.requires import ROOT

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
