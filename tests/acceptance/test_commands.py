"""The commands for people, as processes, against a real stack and a running worker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import pytest_asyncio
from support.processes.command_server import CommandServer

from simplu_local.processes.loopback import HOST, free_port, poll_until
from simplu_local.processes.worker_process import INHERITED, WorkerProcess
from simplu_local.stack.stack import Stack

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(2)]

COMMAND_S = 60.0
PAUSED_S = 240.0  # more than all takes that is done while a tenant is paused
QUEUES = ["control queue", "order events", "priority order events", "dead letters"]
DEPENDENCIES = ["credentials", "stream", "lease table", "business-info", *QUEUES, "Citrus"]
SHARDS = ["shard shard-1", "shard shard-2"]


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal:
    """Runs commands; no secret of the stack may come out of any of them.

    Those that run to their end are forks of one process, which has imported what they need.
    """

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.env_file = folder / "stack.env"
        stack.write_env_file(self.env_file)
        urls = stack.env["STACK_POSTGRES_URLS"].split()
        self._secrets = [stack.env[name] for name in ("CITRUS_API_KEY", "API_TOKEN", "AWS_SECRET_ACCESS_KEY")]
        self._secrets += [url.partition("@")[0].rpartition(":")[2] for url in urls]
        self._server = CommandServer(stack.group)

    async def start(self, *words: str, **env: str) -> asyncio.subprocess.Process:
        return await self._start([sys.executable, "-m", "simplu_worker", *words], env)

    async def _start(self, command: Sequence[str], env: Mapping[str, str]) -> asyncio.subprocess.Process:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ and name != "LOG_LEVEL"}
        return await asyncio.create_subprocess_exec(
            *command,
            f"--env-file={self.env_file}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=inherited | dict(env),
        )

    async def end(self, process: asyncio.subprocess.Process, text: str = "", *, within_s: float = COMMAND_S) -> Ended:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate(text.encode())
        ended = Ended(process.returncode or 0, out.decode(), err.decode())
        leaked = [secret for secret in self._secrets if secret in ended.out + ended.err]
        assert leaked == []
        assert "Traceback" not in ended.err
        return ended

    async def run(self, *words: str, text: str = "", **env: str) -> Ended:
        await self._server.wait_ready()
        return await self.end(await self._start([*self._server.command("simplu-worker"), *words], env), text)

    async def run_all(self, *commands: tuple[tuple[str, ...], Mapping[str, str]]) -> list[Ended]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.run(*words, **env)) for words, env in commands]
        return [task.result() for task in tasks]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def terminal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Terminal]:
    async with Stack(shards=2) as stack:
        terminal = Terminal(stack, tmp_path_factory.mktemp("commands"))
        worker = WorkerProcess(stack.group, stack.env)
        worker.start()
        await worker.wait_ready()
        made = await terminal.run("tenants", "provision", "clinic", "main", "--type", "dental")
        assert made.out == "provisioned: clinic main, dental, on shard shard-1\n"
        yield terminal
        await worker.stop(within_s=35)


def operation(**members: object) -> dict[str, object]:
    whole = {"operation": "create", "businessId": "clinic", "locationId": "main", "resourceType": "order", "data": {}}
    return {name: value for name, value in (whole | members).items() if value is not None}


def text_of(*operations: Mapping[str, object]) -> str:
    return "".join(f"{json.dumps(one)}\n" for one in operations)


async def test_operations_send_waits_for_outcomes_in_the_order_sent(terminal: Terminal) -> None:
    file = terminal.folder / "operations.jsonl"
    lines = [operation(resourceId="o-1", requestId="send-1")]
    lines += [operation(operation="patch", resourceId="o-1", data={"last": number}) for number in range(20)]
    lines += [operation(operation="read", resourceId="o-1", data=None), operation(resourceId="o-2")]
    file.write_text(text_of(*lines) + "\n", encoding="utf-8")
    sent = await terminal.run("operations", "send", str(file), "--wait", "--json")
    fates = sent.json["operations"]
    assert [(fate["line"], fate["status"]) for fate in fates] == [(n, "succeeded") for n in range(1, 24)]
    assert fates[21]["result"]["data"] == {"last": 19}
    assert sent.status == 0
    shown = await terminal.run("operations", "show", fates[22]["requestId"], "--json")
    assert (shown.status, shown.json["status"], shown.json["resourceId"]) == (0, "succeeded", "o-2")
    of_tenant = await terminal.run("operations", "show", "send-1", "--tenant", "clinic", "main")
    assert of_tenant.status == 0
    assert "succeeded" in of_tenant.out
    unknown = await terminal.run("operations", "show", "never-sent", "--json")
    assert (unknown.status, unknown.json["status"]) == (1, "unknown")

    async def is_read() -> bool:
        absent = await terminal.run("operations", "show", "never-sent", "--tenant", "clinic", "main", "--json")
        assert (absent.status, absent.json["status"]) == (1, "unknown")
        return "readUpTo" in absent.json

    assert await poll_until(is_read, within_s=COMMAND_S)
    bad = '{"requestId": "bad-1", "businessId": "clinic", "locationId": "main", "operation": "create"}'
    assert (await terminal.run("operations", "send", "-", "--force", text=bad)).status == 1

    async def is_rejected() -> bool:
        shown = await terminal.run("operations", "show", "bad-1", "--tenant", "clinic", "main", "--json")
        return (shown.status, shown.json["status"]) == (0, "rejected")

    assert await poll_until(is_rejected, within_s=COMMAND_S)
    shown = await terminal.run("operations", "show", "bad-1")
    assert shown.status == 0
    assert "rejected" in shown.out
    assert "resourceType" in shown.out
    held = await terminal.run("operations", "show", "never-sent", "--tenant", "nobody", "main")
    assert (held.status, held.out) == (1, "held: unregistered; if operation never-sent was sent, it waits\n")


async def test_operations_send_waits_for_outcomes_of_order_events(terminal: Terminal) -> None:
    tenant = {"businessId": "clinic", "locationId": "main"}
    events = [{"type": "CREATE", "orderId": "e-1", "data": {"n": 0}, **tenant}]
    events += [{"type": "UPDATE", "orderId": "e-1", "data": {"n": number}, **tenant} for number in range(1, 13)]
    sent = await terminal.run("operations", "send", "-", "--orders", "--wait", "--json", text=text_of(*events))
    assert (sent.status, {fate["status"] for fate in sent.json["operations"]}) == (0, {"succeeded"}), sent.err
    late = {"type": "UPDATE", "orderId": "e-1", "data": {"n": 13}, "deduplicationId": "an id with spaces", **tenant}
    text = text_of(late, {"type": "DELETE", "orderId": "none", **tenant})
    urgent = await terminal.run("operations", "send", "-", "--orders", "--priority", "--wait", "--json", text=text)
    fates = [(fate["operation"], fate["status"], fate.get("error")) for fate in urgent.json["operations"]]
    assert (urgent.status, fates) == (1, [("patch", "succeeded", None), ("delete", "failed", "not_found")])
    read = operation(operation="read", resourceType="order", resourceId="e-1", data=None)
    found = await terminal.run("operations", "send", "-", "--wait", "--json", text=text_of(read))
    assert found.json["operations"][0]["result"]["data"] == {"n": 13}

    bad = await terminal.run("operations", "send", "-", "--orders", text=text_of(late, {"type": "PAY", **tenant}))
    assert (bad.status, bad.out) == (1, "")
    assert "line 2: unknown_type: type: expected one of CREATE, UPDATE, DELETE" in bad.err
    alone = await terminal.run("operations", "send", "-", "--priority", text="")
    assert (alone.status, "expected --orders with it" in alone.err) == (2, True)


async def test_check_shows_every_dependency_and_what_is_odd(terminal: Terminal) -> None:
    odd = {"OPERATION_RETENTION_HOURS": "24", "SHUTDOWN_GRACE_SECONDS": "60"}
    report, table = await terminal.run_all((("check", "--json"), odd), (("check",), {}))
    assert report.status == 0
    assert [one["dependency"] for one in report.json["dependencies"]] == [*DEPENDENCIES, *SHARDS]
    assert {one["status"] for one in report.json["dependencies"]} == {"ok"}
    about = [(finding["about"], finding["problem"].partition(",")[0]) for finding in report.json["odd"]]
    assert ("stream resources-operations", "keeps records for 24 h") in about
    assert any(problem.startswith("visibility timeout 30 s") for _, problem in about)
    assert table.status == 0
    assert all(name in table.out for name in DEPENDENCIES + SHARDS)


GONE = "gone"  # in the place of the URL of a server that is not there
AWS_DEPENDENCIES = ["stream", "lease table", *QUEUES]
BROKEN: list[tuple[dict[str, str], list[str], str]] = [
    ({"CITRUS_API_KEY": "another-key"}, ["Citrus"], "check CITRUS_API_KEY"),
    ({"CITRUS_SERVER_URL": GONE}, ["Citrus"], "nothing listens there; start it, or correct the address"),
    (
        {
            "AWS_ENDPOINT_URL": GONE,
            "AWS_ENDPOINT_URL_KINESIS": GONE,
            "AWS_ENDPOINT_URL_SQS": GONE,
            "DYNAMODB_ENDPOINT": GONE,
        },
        AWS_DEPENDENCIES,
        "nothing listens there; start it, or correct the address",
    ),
    (
        {"KINESIS_STREAM_NAME": "none", "KINESIS_CREATE_STREAM": "0", "KINESIS_APPLICATION_NAME": "business-info"},
        ["stream", "lease table"],
        "; ",
    ),
]


async def test_check_names_what_is_missing_and_shows_the_others(terminal: Terminal) -> None:
    nobody = f"http://{HOST}:{free_port()}"
    variables = [{name: nobody if value == GONE else value for name, value in env.items()} for env, _, _ in BROKEN]
    reports = await terminal.run_all(*((("check", "--json"), env) for env in variables))
    for (_, failed, says), report in zip(BROKEN, reports, strict=True):
        results = {one["dependency"]: one for one in report.json["dependencies"]}
        assert [name for name, one in results.items() if one["status"] == "failed"] == failed
        assert report.status == 1
        assert all(says in results[name]["result"] for name in failed)
        assert list(results) == [*DEPENDENCIES, *([] if "Citrus" in failed else SHARDS)]


async def test_commands_name_the_shard_that_does_not_answer(terminal: Terminal) -> None:
    server = terminal.stack.servers["shard-2"]
    await server.kill()
    try:
        commands = (("check", "--json"), ("tenants", "list", "--json"), ("operations", "show", "never-sent"))
        report, listed, looked_up = await terminal.run_all(*((words, {}) for words in commands))
        failed = [one["dependency"] for one in report.json["dependencies"] if one["status"] == "failed"]
        assert (report.status, failed) == (1, ["shard shard-2"])
        assert (listed.status, listed.json["shardsWithoutAnswer"]) == (1, ["shard-2"])
        assert looked_up.status == 1
        assert "no answer from: shard-2" in looked_up.err
    finally:
        await server.start()


async def test_paused_tenant_waits_in_all_sources_until_it_is_resumed(terminal: Terminal) -> None:
    await terminal.run("tenants", "provision", "clinic", "north", "--type", "dental")
    paused_at = datetime.now(UTC) - timedelta(seconds=1)
    paused = await terminal.run("tenants", "pause", "clinic", "north", "--for", "10m")
    assert paused.status == 0
    assert "clinic north on shard shard-" in paused.err
    assert ": paused until " in paused.err
    north = {"businessId": "clinic", "locationId": "north"}
    records = text_of(*(operation(**north, resourceId=f"p-{number}") for number in range(3)))
    events = text_of(*({"type": "CREATE", "orderId": f"q-{number}", "data": {}, **north} for number in range(3)))
    waiting = [
        await terminal.start("operations", "send", "-", *words, "--wait", f"--timeout={PAUSED_S:g}", "--json")
        for words in ((), ("--orders",))
    ]
    ends = [
        asyncio.create_task(terminal.end(process, text, within_s=PAUSED_S + COMMAND_S))
        for process, text in zip(waiting, (records, events), strict=True)
    ]

    async def is_held() -> bool:
        shown = await terminal.run("operations", "show", "never-sent", "--tenant", "clinic", "north", "--json")
        assert "since" not in shown.json or datetime.fromisoformat(shown.json["since"]) >= paused_at
        held = (shown.json["status"], shown.json.get("reason"), shown.json.get("target"))
        return held == ("held", "paused", "tenant clinic-north")

    assert await poll_until(is_held, within_s=COMMAND_S)
    late = text_of(operation(**north, resourceId="p-late"))
    given_up = await terminal.run("operations", "send", "-", "--wait", "--timeout", "0.5", text=late)
    assert (given_up.status, "operations show REQUEST_ID --tenant" in given_up.err) == (1, True)
    other = await terminal.run("operations", "send", "-", "--wait", text=text_of(operation(resourceId="p-4")))
    assert other.status == 0
    listed = await terminal.run("operations", "list", "clinic", "north", "--json")
    assert listed.json["operations"] == []
    assert not any(end.done() for end in ends)

    url = f"http://{HOST}:{terminal.stack.env['HTTP_PORT']}/tenants/clinic/north/resume"
    headers = {"Authorization": f"Bearer {terminal.stack.env['API_TOKEN']}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url) as response:
        answer = await response.json()
    assert (response.status, answer["pausedUntil"], answer["weight"]) == (200, None, 1)
    for sent in await asyncio.gather(*ends):
        assert [fate["status"] for fate in sent.json["operations"]] == ["succeeded"] * 3
    weighed = await terminal.run("tenants", "weight", "clinic", "north", "--to", "0.5", "--json")
    assert (weighed.status, weighed.json["weight"]) == (0, 0.5)
    limited = await terminal.run("tenants", "limit", "clinic", "--operations", "5000/s", "--bytes", "1.5MB/s", "--json")
    limits = {"operationsPerSecond": 5000.0, "bytesPerSecond": 1_500_000.0}
    assert (limited.status, limited.json["shardsWithoutAnswer"]) == (0, [])
    assert all(limits.items() <= shard.items() for shard in limited.json["shards"])
    assert ", limit none" in (await terminal.run("tenants", "limit", "clinic", "--none")).err
    for option in (("--operations", "50"), ("--bytes", "0MB/s"), ("--none", "--bytes", "1MB/s"), ()):
        assert (await terminal.run("tenants", "limit", "clinic", *option)).status == 2
    for words in (("pause", "clinic", "north", "--for", "0s"), ("pause", "clinic", "north", "--for", "15d")):
        refused = await terminal.run("tenants", *words)
        assert (refused.status, "--for: expected" in refused.err) == (2, True)
    absent = await terminal.run("tenants", "pause", "nobody", "main")
    assert (absent.status, "one that is unregistered" in absent.err) == (1, True)
