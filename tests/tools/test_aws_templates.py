"""The templates of deploy/aws are valid, make what the worker needs, and agree with docs/aws.md."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import botocore.session
import pytest
from botocore import xform_name
from support.aws.endpoints import running_moto
from support.aws_access.template_values import CREATES_IAM, Template
from support.aws_access.templates import TEMPLATES, Account
from support.requires import ROOT, required_program

from simplu_local.aws_server.account import ACCOUNT_ID, REGION
from simplu_worker.config.settings import VARIABLES

FILES = sorted(TEMPLATES.glob("*.yaml"))
PAGE = ROOT / "docs" / "aws.md"
OPTIONS = ("ProvisionOnFirstUse", "FanOut", "KclFollower", "Purge", "HttpDeadLetters")
# What a worker creates where it is missing, and no template's worker has to (docs/aws.md).
CREATING = {"CreateStream", "CreateTable", "CreateQueue"}
QUEUE_OUTPUTS = ("ControlQueueUrl", "OrderQueueUrl", "PriorityQueueUrl", "DeadLetterQueueUrl")


def lint(*files: Path) -> subprocess.CompletedProcess[str]:
    program = required_program("cfn-lint", how="python3 run.py tools")
    command = [program, "--regions", "eu-central-1", "--", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


class Deployment(NamedTuple):
    """A command of the page that creates a stack of the template *name*."""

    name: str
    stack: str
    parameters: dict[str, str]
    may_make_roles: bool


def deployments() -> list[Deployment]:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in re.findall(r"(?m)^aws cloudformation deploy (.+)$", text):
        words = shlex.split(line)
        options = {word: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}
        begin = words.index("--parameter-overrides") + 1 if "--parameter-overrides" in words else len(words)
        file = ROOT / options["--template-file"]
        assert file in FILES
        parameters = dict(word.split("=", 1) for word in words[begin:])
        may_make_roles = options.get("--capabilities") == "CAPABILITY_IAM"
        found.append(Deployment(file.stem, options["--stack-name"], parameters, may_make_roles))
    return found


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with running_moto() as url:
        yield Account(url)


@pytest.mark.slow(5)
def test_templates_pass_cfn_lint() -> None:
    done = lint(*FILES)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow(6)
def test_source_queues_of_the_template_have_redrive_queues(account: Account) -> None:
    outputs = account.create("data", {})
    with account.client("sqs") as sqs:
        queues = {
            (url := outputs[output]).rpartition("/")[2]: sqs.get_queue_attributes(
                QueueUrl=url, AttributeNames=["VisibilityTimeout", "RedrivePolicy"]
            )["Attributes"]
            for output in QUEUE_OUTPUTS
        }
    assert {name: queue["VisibilityTimeout"] for name, queue in queues.items()} == {
        "shard-creation-queue": "30",
        "order-events.fifo": "30",
        "order-events-priority.fifo": "30",
        "simplu-worker-dead-letters": "30",
    }
    policies = [json.loads(queue["RedrivePolicy"]) for queue in queues.values() if "RedrivePolicy" in queue]
    targets = [policy["deadLetterTargetArn"].rpartition(":")[2] for policy in policies]
    assert targets == ["shard-creation-queue-redrive", *["order-events-redrive.fifo"] * 2]
    assert {policy["maxReceiveCount"] for policy in policies} == {1000}


@pytest.mark.slow(3)
def test_policies_allow_each_operation_that_the_package_calls() -> None:
    with running_moto() as url:
        account = Account(url)
        account.create("access", dict.fromkeys(OPTIONS, "true"))
        documents = account.documents("access")
    statements = [one for name, text in documents.items() if "Producer" not in name for one in text["Statement"]]
    listed = [one["Action"] if isinstance(one["Action"], list) else [one["Action"]] for one in statements]
    actions = {action for names in listed for action in names}
    allowed = {action.partition(":")[2] for action in actions if not action.startswith("kms:")}
    assert allowed == operations_in_package() - CREATING


def operations_in_package() -> set[str]:
    """Return the operations of AWS that the worker's package names: methods of clients, and names in calls."""
    session = botocore.session.get_session()
    models = [session.get_service_model(service) for service in ("kinesis", "dynamodb", "sqs")]
    operations = {xform_name(name): name for model in models for name in model.operation_names}
    named: set[object] = set()
    for path in (ROOT / "simplu_worker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and "client" in ast.unparse(node.value):
                named.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("call"):
                named |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    return {operations[name].removesuffix("Batch") for name in operations.keys() & named}


@pytest.mark.slow(3)
def test_policy_as_a_file_is_the_template_s(account: Account) -> None:
    account.create("access", {})
    text = (TEMPLATES / "worker-policy.json").read_text(encoding="utf-8")
    shown = json.loads(text.replace("REGION", REGION).replace("ACCOUNT", ACCOUNT_ID))
    assert shown == account.documents("access")["WorkerPolicy"]


def test_page_deploys_each_template_with_the_parameters_that_it_needs() -> None:
    found = deployments()
    assert {one.name for one in found} == {file.stem for file in FILES}
    for one in found:
        template = Template(TEMPLATES / f"{one.name}.yaml", {})
        assert template.parameters(required=True) <= one.parameters.keys() <= template.parameters(), one.name
        text = (TEMPLATES / f"{one.name}.yaml").read_text(encoding="utf-8")
        assert one.may_make_roles == (CREATES_IAM.search(text) is not None), one.name


def test_templates_have_the_same_defaults() -> None:
    defaults: defaultdict[str, set[str]] = defaultdict(set)
    for file in FILES:
        text = file.read_text(encoding="utf-8").partition("\nResources:")[0]
        for name, default in re.findall(r"^  (\w+):\n(?:    .*\n)*?    Default: (.*)$", text, re.MULTILINE):
            defaults[name].add(default)
    assert {name: values for name, values in defaults.items() if len(values) > 1} == {}
    assert defaults["StreamName"] == {"resources-operations"}


def test_service_sets_variables_that_the_worker_has() -> None:
    text = (TEMPLATES / "service.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"\{Name: ([A-Z_]+), Value", text))
    assert named - VARIABLES.keys() == set()
    assert named >= {"AWS_REGION", "KINESIS_STREAM_NAME", "SQS_DEAD_LETTER_QUEUE_URL", "CITRUS_SERVER_URL"}
