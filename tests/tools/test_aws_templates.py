"""The templates of deploy/aws are valid, make what the worker needs, and agree with docs/aws.md."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.aws.endpoints import running_moto
from support.aws_access.templates import TEMPLATES, Account
from support.requires import ROOT, required_program

from simplu_worker.commands.aws.plan import read_facts
from simplu_worker.commands.aws.plan_rules import plan
from simplu_worker.config.settings import Settings
from simplu_worker.local.aws_server.account import ACCOUNT_ID, REGION

FILES = sorted(TEMPLATES.glob("*.yaml"))
# A worker of each source, with the names that are the templates' defaults.
URL_OUTPUTS = {
    "sqs_shard_creation_queue_url": "ControlQueueUrl",
    "sqs_order_events_queue_url": "OrderQueueUrl",
    "sqs_priority_queue_url": "PriorityQueueUrl",
    "sqs_dead_letter_queue_url": "DeadLetterQueueUrl",
}


def lint(*files: Path) -> subprocess.CompletedProcess[str]:
    """Run cfn-lint, for a region that has all services."""
    program = required_program("cfn-lint", how="python3 run.py tools")
    command = [program, "--regions", "eu-central-1", "--", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    """Return an account of an empty moto."""
    with running_moto() as url:
        yield Account(url)


@pytest.mark.slow(5)
def test_templates_pass_cfn_lint() -> None:
    """Without an error, a warning or an information."""
    done = lint(*FILES)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow(4)
def test_template_with_an_unknown_property_is_refused(tmp_path: Path) -> None:
    """The check above has teeth."""
    text = (TEMPLATES / "data.yaml").read_text(encoding="utf-8")
    (tmp_path / "data.yaml").write_text(text.replace("ShardCount:", "ShardsCount:"), encoding="utf-8")
    assert "ShardsCount" in lint(tmp_path / "data.yaml").stdout


@pytest.mark.slow(6)
async def test_resources_of_the_templates_leave_nothing_to_plan(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`aws plan`, which asks for everything that the worker uses, finds each resource, and its settings fit."""
    outputs = account.create("data", {})
    for name, value in account.environment().items():
        monkeypatch.setenv(name, value)
    urls = {name: outputs[output] for name, output in URL_OUTPUTS.items()}
    settings = Settings(aws_region=REGION, kinesis_stream_name="resources-operations", **urls)  # type: ignore[arg-type]
    facts = await read_facts(settings)
    assert plan(facts, settings) == []
    assert {url.rpartition("/")[2]: queue and queue.visibility_timeout_s for url, queue in facts.queues.items()} == {
        "shard-creation-queue": 30,
        "order-events.fifo": 30,
        "order-events-priority.fifo": 30,
        "simplu-worker-dead-letters": 30,
    }
    policies = [json.loads(queue.redrive_policy) for queue in facts.queues.values() if queue and queue.redrive_policy]
    targets = [policy["deadLetterTargetArn"].rpartition(":")[2] for policy in policies]
    assert targets == ["shard-creation-queue-redrive", *["order-events-redrive.fifo"] * 2]
    assert {policy["maxReceiveCount"] for policy in policies} == {1000}


@pytest.mark.slow(3)
def test_policy_of_the_page_is_the_template_s(account: Account) -> None:
    """docs/aws.md has the worker's policy for those who have no CloudFormation."""
    account.create("access", {})
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    shown = json.loads(text.replace("REGION", REGION).replace("ACCOUNT", ACCOUNT_ID))
    assert shown == account.documents("access")["WorkerPolicy"]


def test_templates_have_the_same_defaults() -> None:
    """A name that is the parameter of several templates means one resource."""
    defaults: defaultdict[str, set[str]] = defaultdict(set)
    for file in FILES:
        text = file.read_text(encoding="utf-8").partition("\nResources:")[0]
        for name, default in re.findall(r"^  (\w+):\n(?:    .*\n)*?    Default: (.*)$", text, re.MULTILINE):
            defaults[name].add(default)
    assert {name: values for name, values in defaults.items() if len(values) > 1} == {}
    assert defaults["StreamName"] == {"resources-operations"}


def test_service_sets_variables_that_the_worker_has() -> None:
    """And all that `run` needs are among them."""
    text = (TEMPLATES / "service.yaml").read_text(encoding="utf-8")
    named = set(re.findall(r"\{Name: ([A-Z_]+), Value", text))
    assert named - {name.upper() for name in Settings.model_fields} == set()
    assert named >= {"AWS_REGION", "KINESIS_STREAM_NAME", "SQS_DEAD_LETTER_QUEUE_URL", "CITRUS_SERVER_URL"}


def test_alarms_name_pages_that_exist() -> None:
    """Each description of an alarm for people leads to a page, and to a heading or alert that it has."""
    text = (TEMPLATES / "alarms.yaml").read_text(encoding="utf-8")
    for page, names in re.findall(r"(docs/[\w-]+\.md)(?:, ([\w ]+))?", text):
        content = (ROOT / page).read_text(encoding="utf-8").lower()
        assert not [name for name in names.split(" and ") if name and name.lower() not in content], page
