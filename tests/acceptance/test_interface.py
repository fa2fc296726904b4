from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from support.page_examples import Example, page_examples
from support.requires import ROOT
from support.rows import fetch

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.aws import STREAM_NAME
from simplu_local.stack.stack import Stack

pytestmark = pytest.mark.slow(15)

SENDING, OUTCOMES = (ROOT / "docs" / f"{name}.md" for name in ("sending", "outcomes"))
PATIENCE_S = 30.0
CREATION = "control SHARD_CREATION"
TOLD = (("role", "u-1"),)  # resources whose data the page has in its text


class Reader:
    def __init__(self, stack: Stack, worker: WorkerProcess, bin_path: Path) -> None:
        self._stack = stack
        self._worker = worker
        own = {"HTTP_PORT": str(worker.port)}
        path = {
            "PATH": f"{bin_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT / 'clients' / 'python'}",
        }
        self._env = dict(os.environ) | stack.env | own | path
        self._sent_count = 0

    async def follow(self, example: Example) -> None:
        match example.what, example.name.split():
            case "run", ["record"]:
                await self._put_record(example.text)
            case "run", ["order"]:
                await self._send_message("SQS_ORDER_EVENTS_QUEUE_URL", example.text, group=True)
            case "run", ["control", kind]:
                await self._send_message("SQS_SHARD_CREATION_QUEUE_URL", example.text, kind=kind)
            case "run", ["shell"]:
                await self._run("bash", "-euo", "pipefail", "-c", example.text)
            case "run", ["python"]:
                await self._run(sys.executable, "-c", example.text)
            case "outcome", [request_id]:
                found = await self.find_operation(request_id)
                assert found | json.loads(example.text) == found
            case "result", [request_id]:
                assert (await self.find_operation(request_id))["result"] == json.loads(example.text)
            case "list", [query]:
                found = await self.ask(f"/operations?{query}")
                shown = json.loads(example.text)
                pairs = zip(found.pop("operations"), shown.pop("operations"), strict=True)
                assert all(one | expected == one for one, expected in pairs)
                assert found | shown == found
            case _:
                raise AssertionError(f"expected a known kind of example, got {example.what}: {example.name}")
        await self._wait_for_control_messages()

    async def find_operation(self, request_id: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def is_decided() -> bool:
            found.update(await self.ask(f"/operations/{request_id}?businessId=smile&locationId=berlin"))
            return found["status"] in {"succeeded", "failed"}

        assert await poll_until(is_decided, within_s=PATIENCE_S), found
        return found

    async def ask(self, path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._env['API_TOKEN']}"}
        async with aiohttp.ClientSession() as session, session.get(self._worker.url + path, headers=headers) as answer:
            return dict(await answer.json())

    async def _put_record(self, text: str) -> None:
        record = json.loads(text)
        first = record[0] if isinstance(record, list) else record
        key = "-".join(first[name] for name in ("businessId", "locationId", "resourceType"))
        async with self._stack.aws_client("kinesis") as kinesis:
            await kinesis.put_record(StreamName=STREAM_NAME, Data=text.encode(), PartitionKey=key)

    async def _send_message(self, variable: str, text: str, *, group: bool = False, kind: str | None = None) -> None:
        self._sent_count += 1
        fifo = {"MessageGroupId": "orders", "MessageDeduplicationId": str(self._sent_count)} if group else {}
        typed = {"MessageAttributes": {"MessageType": {"DataType": "String", "StringValue": kind}}} if kind else {}
        async with self._stack.aws_client("sqs") as sqs:
            await sqs.send_message(QueueUrl=self._env[variable], MessageBody=text, **fifo, **typed)

    async def _run(self, *command: str) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=self._env, stdout=pipe, stderr=pipe)
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        if output:
            json.loads(output)

    async def _wait_for_control_messages(self) -> None:
        async def are_decided() -> bool:
            control = (await self.ask("/sqs/stats"))["queues"][0]
            return not (control["visible"] or control["inFlight"] or control["inHand"])

        assert await poll_until(are_decided, within_s=PATIENCE_S)


async def test_examples_of_the_pages_do_what_they_say(tmp_path: Path) -> None:
    examples = [*page_examples(SENDING), *page_examples(OUTCOMES)]
    assert len(examples) >= 20
    aws = tmp_path / "aws"
    aws.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m support.aws.command_line "$@"\n', encoding="utf-8")
    aws.chmod(0o755)
    async with Stack(shards=1, stream_shards=1) as stack:
        worker = WorkerProcess(stack.group, stack.env)
        worker.start()
        await worker.wait_ready()
        reader = Reader(stack, worker, tmp_path)
        # The page tells of control messages last.
        await reader.follow(next(example for example in examples if example.name == CREATION))
        for example in examples:
            await reader.follow(example)

        order = await reader.find_operation("o-1-created")
        listed = await reader.ask("/operations?businessId=smile&locationId=berlin&resourceType=patient")
        tenant = await reader.ask("/tenants/smile/berlin")
        letters = (await reader.ask("/sqs/stats"))["queues"][-1]
        await worker.stop(within_s=PATIENCE_S)
        (server,) = stack.servers.values()
        rows = await fetch(server.url, 'SELECT "resourceName", "resourceId", data FROM resources')

    (patient,) = listed["operations"]
    assert (order["status"], patient["status"], UUID(patient["requestId"]).version) == ("succeeded", "succeeded", 7)
    assert (tenant["state"], tenant["businessType"], letters["visible"]) == ("active", "dental", 0)
    resources = {(row["resourceName"], row["resourceId"]): json.loads(row["data"]) for row in rows}
    assert resources.keys() == {
        ("settings", "default"),
        ("role", "u-1"),
        ("medic", "u-1"),
        ("appointment", "a6"),
        ("patient", "p2"),
        ("treatment", "t1"),
        ("order", "o-1"),
    }
    assert resources["patient", "p2"] == {"phone": "030"}
    assert resources["appointment", "a6"] == {
        "patientName": "Ben",
        "status": "moved",
        "appointmentTime": "2026-03-09T10:00:00Z",
    }
    told = [
        json.loads(block)
        for block in re.findall(r"`(\{[^`]*\})`", SENDING.read_text(encoding="utf-8"))
        if _is_json(block)
    ]
    assert all(resources[key] in told for key in TOLD)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
