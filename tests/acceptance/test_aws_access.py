"""Every call of AWS that a demo, a worker with all options and every command make, held against deploy/aws."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import asyncpg
import botocore.session
import pytest
from acceptance.test_commands import Terminal, operation, text_of
from botocore import xform_name
from support.aws.endpoints import running_moto
from support.aws_access.parts import FEED_QUEUE, FEED_STREAM, feed_file
from support.aws_access.recording import (
    Access,
    Policy,
    RecordedCall,
    install_hook,
    recorded_calls,
    refused,
    superfluous,
)
from support.aws_access.templates import Account
from support.commands_page import program_commands
from support.requires import ROOT
from support.typescript_worker import TypescriptShard

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import INHERITED, WorkerProcess, log_tail
from simplu_local.stack.aws import put_businesses
from simplu_local.stack.stack import Stack
from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker
from simplu_worker.dead_letters.letter import encode_dead_letter
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.vocabulary import DeadLetterReason, Source

pytestmark = pytest.mark.nightly

WITHIN_S = 90.0
# Names of the embedded stack.
PARAMETERS = {
    "ControlQueueName": "shard-creation",
    "OrderQueueName": "order-events",
    "DeadLetterQueueName": "dead-letters",
    "FeedStreamName": FEED_STREAM,
    "FeedQueueName": FEED_QUEUE.removesuffix(".fifo"),
}
OPTIONS = dict.fromkeys(("ProvisionOnFirstUse", "FanOut", "KclFollower", "Purge", "HttpDeadLetters"), "true")
EVERY_OPTION = {"PROVISION_ON_FIRST_USE": "true", "KINESIS_READ": "fan-out", "ALLOW_DESTRUCTIVE_HTTP": "true"}
WORKER = (
    *("WorkerPolicy", "FirstUsePolicy", "FanOutPolicy", "FollowerPolicy", "PurgePolicy", "HttpDeadLettersPolicy"),
    *("FeedStreamPolicy", "FeedQueuePolicy"),
)
PRODUCERS = ("OperationsProducerPolicy", "OrdersProducerPolicy", "ControlProducerPolicy")
PUTS = {"kinesis:PutRecord", "kinesis:PutRecords", "sqs:SendMessage"}
# What producers of the references ask at their start, and ours do not.
DESCRIPTIONS = {"kinesis:DescribeStream", "kinesis:DescribeStreamSummary", "sqs:GetQueueAttributes"}
# What a worker creates where it is missing, and no template's worker has to (docs/aws.md).
CREATING = {"kinesis:CreateStream", "dynamodb:CreateTable", "sqs:CreateQueue"}
NOT_FOR_PEOPLE = {"run", "demo", "stack"}  # the worker, and commands that need no AWS
PARTS = "support.aws_access.parts"
# The type of the tenants is that of business-info.
MAPPING = """
[tenants]
location = "main"

[[tables]]
table = "resources"
resource_type = "patients"
key = ["id"]
tenant = ["business_id"]
"""
BAD_RECORDS = 3
LETTERS = BAD_RECORDS + 3  # a message of each source queue
TENANT = {"businessId": "clinic", "locationId": "main"}


@pytest.fixture(scope="module")
def policies() -> Iterator[dict[str, Policy]]:
    with running_moto() as url:
        account = Account(url)
        account.create("access", PARAMETERS | OPTIONS)
        yield account.policies("access")


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have all programs that the test starts record their calls; return the folder."""
    folder = tmp_path / "recording"
    install_hook(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT / 'tests'}")
    return folder


def made_by(calls: list[RecordedCall], *words: str) -> set[Access]:
    return {call.access for call in calls if call.arguments[: len(words)] == words}


def of_worker(calls: list[RecordedCall]) -> set[Access]:
    return {access for access in made_by(calls, "run") if access.action not in CREATING}


async def run_program(*words: str, env: dict[str, str]) -> None:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, env=inherited | env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


async def test_demo_needs_the_policies_of_worker_and_producers(policies: dict[str, Policy], recording: Path) -> None:
    await run_program("-m", "simplu_worker", "demo", "--operations=200", "--tenants=3", "--shards=1", env={})
    calls = recorded_calls(recording)
    assert refused([policies["WorkerPolicy"]], of_worker(calls)) == []
    sent = {access for access in made_by(calls, "demo") if access.action in PUTS}
    assert refused([policies[name] for name in PRODUCERS], sent) == []
    assert {access.action for access in sent} >= {"kinesis:PutRecords", "sqs:SendMessage"}


async def test_worker_and_every_command_need_exactly_their_policies(
    policies: dict[str, Policy], recording: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nothing outside, nothing superfluous; and no operation in the package is missing from the recording.

    The summary of the run has the table: each call with the programs that made it.
    """
    async with Stack(shards=3, stream_shards=2) as stack:
        terminal = Terminal(stack, tmp_path)
        async with stack.aws_client("dynamodb") as dynamodb:
            await put_businesses(dynamodb, stack.env["DYNAMODB_BUSINESS_INFO_TABLE"], {"clinic": ("dental", ["main"])})
        for name in ("clinic-main", "known-main"):
            stack.citrus.registry.place(name, stack.citrus.registry.shards["shard-1"])
        worker = WorkerProcess(stack.group, stack.env | EVERY_OPTION)
        worker.start()
        await worker.wait_ready()
        await _use(stack, terminal, worker, recording)
        await _run_commands(stack, terminal)
        await worker.stop(within_s=35)
        await _run_parts(stack)
        await terminal.run("check")  # beside the rows of a KCL
    calls = recorded_calls(recording)
    record_property("note", f"Calls of AWS, each with the programs that made it:\n{table_of(calls)}")
    parts = {call.access for call in calls if call.arguments == ()}  # the program without arguments
    of_commands = {call.access for call in calls if call.arguments and call.arguments[0] not in NOT_FOR_PEOPLE}
    run = of_worker(calls) | parts
    assert (refused([policies[name] for name in WORKER], run), refused([policies["CommandsPolicy"]], of_commands)) == (
        [],
        [],
    )
    assert superfluous([policies[name] for name in WORKER], run) == []
    assert superfluous([policies["CommandsPolicy"]], of_commands) == []
    sent = {access for access in of_commands if access.action in PUTS}
    vain = superfluous([policies[name] for name in PRODUCERS], sent)
    assert {access.action for _, access in vain} == DESCRIPTIONS
    assert operations_in_package() == {access.action.partition(":")[2] for access in run | of_commands} | {
        action.partition(":")[2] for action in CREATING
    }


def table_of(calls: list[RecordedCall]) -> str:
    """Return each call once, with the programs that made it: without arguments, it is that of `_run_parts`."""
    rows: dict[Access, set[str]] = {}
    for call in calls:
        words = " ".join(word for word in call.arguments[:2] if not word.startswith("-"))
        rows.setdefault(call.access, set()).add(words or "parts")
    return "\n".join(f"{access.action} {access.resource}: {', '.join(sorted(rows[access]))}" for access in sorted(rows))


def operations_in_package() -> set[str]:
    """Return the operations of AWS that the worker's package names: methods of clients, and names in calls."""
    session = botocore.session.get_session()
    models = [session.get_service_model(service) for service in ("kinesis", "dynamodb", "sqs")]
    operations = {xform_name(name): name for model in models for name in model.operation_names}
    named: set[object] = set()
    for path in (ROOT / "simplu_worker").rglob("*.py"):
        if "local" not in path.relative_to(ROOT / "simplu_worker").parts:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and "client" in ast.unparse(node.value):
                    named.add(node.attr)
                elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("call"):
                    named |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    return {operations[name].removesuffix("Batch") for name in operations.keys() & named}


async def _use(stack: Stack, terminal: Terminal, worker: WorkerProcess, recording: Path) -> None:
    queue_urls = [stack.env[f"SQS_{name}_QUEUE_URL"] for name in ("SHARD_CREATION", "ORDER_EVENTS", "PRIORITY")]
    two = text_of(operation(resourceId="a"), operation(resourceId="b"))
    assert (await terminal.run("operations", "send", "-", "--wait", text=two)).status == 0, log_tail(worker.log_path)
    known = text_of(operation(businessId="known", resourceId="b"))  # to Citrus, and not to business-info: it waits
    assert (await terminal.run("operations", "send", "-", "--wait", "--timeout=3", text=known)).status == 1
    one = text_of(operation(resourceId="c"))
    assert (await terminal.run("operations", "send", "-", "--wait", text=one)).status == 0
    assert (await terminal.run("operations", "send", "-", "--force", text="no JSON\n" * BAD_RECORDS)).status == 1
    event: dict[str, object] = {"type": "CREATE", "orderId": "o", "data": {}}
    for priority in ((), ("--priority",)):
        await terminal.run("operations", "send", "-", "--orders", *priority, text=text_of(event | TENANT))
    async with stack.aws_client("sqs") as sqs:
        unknown = json.dumps(event | {"businessId": "nobody", "locationId": "main"})
        for number, url in enumerate(queue_urls):
            group = {"MessageGroupId": "g", "MessageDeduplicationId": "d"} if number else {}
            control = {"businessId": "nobody", "locationId": "main", "action": "destroy"}
            control |= {"messageType": "SHARD_DESTRUCTION", "timestamp": "2026-01-31T09:00:00Z"}
            body = unknown if number else json.dumps(control)
            await sqs.send_message(QueueUrl=url, MessageBody=body, **group)
            bad = {name: f"{value}-bad" for name, value in group.items()}
            await sqs.send_message(QueueUrl=url, MessageBody="no message", **bad)
    names = [url.rpartition("/")[2] for url in queue_urls]
    awaited = {Access("sqs:ChangeMessageVisibility", name) for name in names}

    async def are_handled() -> bool:
        return awaited <= {call.access for call in recorded_calls(recording)}

    assert await poll_until(are_handled, within_s=WITHIN_S), log_tail(worker.log_path)
    headers = {"Authorization": f"Bearer {stack.env['API_TOKEN']}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        await _handle_letters(stack, session, worker)
        for name in names:
            async with session.delete(f"{worker.url}/sqs/purge?queue={name}") as answer:
                assert answer.status == 202


async def _handle_letters(stack: Stack, session: aiohttp.ClientSession, worker: WorkerProcess) -> None:
    """List and replay the dead letters over HTTP, one of the stream and then all; they come back each time."""

    async def are_stored() -> bool:
        async with stack.aws_client("sqs") as sqs:
            names = ["ApproximateNumberOfMessages"]
            url = stack.env["SQS_DEAD_LETTER_QUEUE_URL"]
            answer = await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)
        return int(answer["Attributes"][names[0]]) >= LETTERS

    async def ask(path: str, **members: object) -> None:
        async with session.post(f"{worker.url}/dead-letters/{path}", json=members) as answer:
            assert answer.status == 200, await answer.text()

    everything = {"apply": True, "force": True, "until": "2999-01-01T00:00:00Z"}
    assert await poll_until(are_stored, within_s=WITHIN_S), log_tail(worker.log_path)
    await ask("list")
    await ask("replay", **everything, source="kinesis", limit=1)
    assert await poll_until(are_stored, within_s=WITHIN_S), log_tail(worker.log_path)
    await ask("replay", **everything)
    assert await poll_until(are_stored, within_s=WITHIN_S), log_tail(worker.log_path)


async def _run_commands(stack: Stack, terminal: Terminal) -> None:
    """Run each command once, far enough that it makes its calls; with what it needs, or until it refuses."""
    urls = stack.env["STACK_POSTGRES_URLS"].split()
    connection = await asyncpg.connect(urls[2])
    shard = TypescriptShard(connection, is_joined=False)
    await shard.make()
    await shard.insert(("clinic", "main"), "patient", "p", {})
    await connection.close()
    mapping = terminal.folder / "mapping.toml"
    mapping.write_text(MAPPING, encoding="utf-8")
    backup = {"BACKUP_URL": urls[0]}
    feed = terminal.folder / "feed.json"
    feed.write_text(feed_file(stack.env["SQS_SHARD_CREATION_QUEUE_URL"]), encoding="utf-8")
    fed = {"FEED_FILE": str(feed)}
    commands: dict[str, list[tuple[tuple[str, ...], dict[str, str]]]] = {
        "check": [((), fed), ((), {"KINESIS_READ": "fan-out"})],
        "dead-letters discard": [(("--apply",), {})],
        "dead-letters list": [((), {})],
        "dead-letters replay": [(("--apply", "--force"), {})],
        "feed forget": [(("a-kinesis",), fed)],
        "feed replay": [(("a-kinesis", "--since=2026-01-01"), fed)],
        "feed show": [((), fed)],
        "feed skip": [(("a-kinesis", "--shard", "shard-1"), fed)],
        "fleet release": [(("shardId-000000000000",), {})],
        "fleet retry": [((), {})],
        "fleet show": [((), {})],
        "operations list": [(("clinic", "main"), {})],
        "operations send": [],  # above
        "operations show": [(("never-sent", "--tenant", "clinic", "main"), {})],
        "operations test": [(("-",), {})],
        "replay": [(("--since=2026-01-01",), {})],
        "shards accept-gap": [(("shard-1", "--apply"), {})],
        "shards adopt": [(("shard-3",), {})],
        "shards drain": [(("shard-2",), {})],
        "shards list": [((), {})],
        "shards query": [(("SELECT 1 AS a",), {"READER_USERNAME": "nobody"})],
        "shards raise-numbers": [(("shard-1",), {})],
        "shards rebalance": [((), {})],
        "shards route": [(("clinic-main",), {})],
        "shards upgrade": [((), {})],
        "stream remove-consumer": [(("simplu-worker", "--apply"), {})],
        "tap": [(("--url=http://127.0.0.1:9",), {})],  # where nothing listens: it would show for a quarter of an hour
        "tenants audit": [((), {})],
        "types apply": [((str(ROOT / "tests" / "support" / "business_types"),), {})],
        "types check": [((str(ROOT / "tests" / "support" / "business_types"),), {})],
        "types show": [((), {})],
        "top": [(("--url=http://127.0.0.1:9",), {})],
        "tenants cleanup": [((), {})],
        "tenants erase-resource": [(("clinic", "main", "patient", "erased", "--apply"), {})],
        "tenants import": [((str(mapping),), {"IMPORT_SOURCE_URL": urls[2]})],
        "tenants list": [((), {})],
        "tenants move": [(("clinic", "main", "--to", "shard-2"), {})],
        "tenants pause": [(("clinic", "main", "--for", "1s"), {})],
        "tenants provision": [(("--from-business-info",), {})],
        "tenants restore": [(("clinic", "main"), backup)],
        "tenants resume": [(("clinic", "main"), {})],
        "tenants rollback": [(("clinic", "main"), {})],
        "tenants show": [(("clinic", "main"), {})],
        "tenants verify": [(("clinic", "main"), {})],
        "tenants weight": [(("clinic", "main", "1"), {})],
    }
    assert commands.keys() == {command.words for command in program_commands()} - NOT_FOR_PEOPLE
    every = [((*words.split(), *more), env) for words, runs in commands.items() for more, env in runs]
    # What reads dead letters hides them from what runs beside it.
    alone = [("tenants", "erase-resource"), ("dead-letters", "replay")]
    first = [one for words in alone for one in every if one[0][:2] == words]
    last = [one for one in every if {"stream", "discard"} & {*one[0]}]
    others = [one for one in every if one not in first + last]
    await _put_aggregate(stack)
    for one in first:
        await terminal.run_all(one)
    for begin in range(0, len(others), 3):
        ended = await terminal.run_all(*others[begin : begin + 3])
        assert {one.status for one in ended} <= {0, 1, 2}, ended
    await terminal.run_all(*last)


async def _put_aggregate(stack: Stack) -> None:
    packer = AggregatePacker()
    for resource_id in ("erased", "other"):
        packer.add("key", json.dumps({**TENANT, "resourceType": "patient", "resourceId": resource_id}).encode())
    at = datetime.now(UTC)
    origin = Origin(source=Source.KINESIS, name="stream", arrived_at=at, stream_shard_id="s", sequence_number="1")
    letter = DeadLetter(DeadLetterReason.INVALID_MESSAGE, "", origin, at, 1, packer.seal())
    async with stack.aws_client("sqs") as sqs:
        body = encode_dead_letter(letter, 262_144)
        await sqs.send_message(QueueUrl=stack.env["SQS_DEAD_LETTER_QUEUE_URL"], MessageBody=body)


async def _run_parts(stack: Stack) -> None:
    async with stack.aws_client("dynamodb") as dynamodb:
        await dynamodb.create_table(
            TableName="simplu-worker-WorkerMetricStats",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "wid", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "wid", "KeyType": "HASH"}],
        )
    await run_program("-m", PARTS, env={**stack.env, "KINESIS_KCL_FOLLOWER": "true"})
