"""Tenants that nobody sent a message about: made at their first operation, or all at once by a person."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from acceptance.test_commands import Terminal, operation, text_of

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.aws import put_businesses
from simplu_local.stack.stack import Stack
from simplu_local.workload.producer import open_client

WITHIN_S = 20.0


def logged(worker: WorkerProcess, event: str, **facts: str) -> list[dict[str, Any]]:
    """Return the lines of the worker's log with that event and those facts."""
    lines = [json.loads(line) for line in worker.log_path.read_text().splitlines() if event in line]
    return [line for line in lines if line["event"] == event and facts.items() <= line.items()]


@pytest.mark.slow(40)
async def test_tenants_without_a_message_are_made_by_business_info(tmp_path: Path) -> None:
    """At their first operation, of either kind; one that is not listed waits, told once; then all is right."""
    async with Stack(shards=2, stream_shards=1) as stack:
        terminal = Terminal(stack, tmp_path)
        worker = WorkerProcess(stack.group, stack.env | {"PROVISION_ON_FIRST_USE": "true"})
        worker.start()
        table = stack.env["DYNAMODB_BUSINESS_INFO_TABLE"]
        shards = stack.citrus.registry.shards
        for name, shard_id in {"clinic-main": "shard-2", "gym-main": "shard-1", "late-main": "shard-1"}.items():
            stack.citrus.registry.place(name, shards[shard_id])
        async with stack.aws_client("dynamodb") as dynamodb, open_client("sqs", stack.env) as sqs:
            await put_businesses(dynamodb, table, {"clinic": ("dental", ["main"]), "gym": ("gym", ["main", "side"])})
            await worker.wait_ready()
            await sqs.send_message(
                QueueUrl=stack.env["SQS_ORDER_EVENTS_QUEUE_URL"],
                MessageBody=json.dumps({"type": "CREATE", "orderId": "o-1", "data": {}}),
                MessageGroupId="group",
                MessageDeduplicationId="order-1",
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": value}
                    for name, value in {"BusinessId": "gym", "LocationId": "main"}.items()
                },
            )
            mine = text_of(operation(resourceId="a", requestId="first"), operation(resourceId="b"))
            late = text_of(operation(businessId="late", resourceId="a", requestId="late"))
            waiting, sent = await asyncio.gather(
                terminal.run("operations", "send", "-", "--json", text=late),
                terminal.run("operations", "send", "-", "--wait", "--json", text=mine),
            )
            assert [fate["status"] for fate in sent.json["operations"]] == ["succeeded"] * 2, log_tail(worker.log_path)
            assert waiting.status == 0

            async def is_told() -> bool:
                return bool(logged(worker, "tenant.held", business_id="late", reason="not_here"))

            assert await poll_until(is_told, within_s=WITHIN_S), log_tail(worker.log_path)
            (told,) = logged(worker, "tenant.not_provisioned", business_id="late")
            assert told["error"] == "its business is not in business-info"
            await put_businesses(dynamodb, table, {"late": ("hotel", ["main"])})

            async def are_there() -> bool:
                shown = [
                    await terminal.run("operations", "show", request_id, "--json") for request_id in ("late", "order-1")
                ]
                return [one.json["status"] for one in shown] == ["succeeded"] * 2

            assert await poll_until(are_there, within_s=WITHIN_S), log_tail(worker.log_path)
        await asyncio.gather(worker.stop(within_s=35), _by_hand(terminal))


async def _by_hand(terminal: Terminal) -> None:
    """Make what is left, and audit."""
    odd, planned, missing = await terminal.run_all(
        (("tenants", "audit", "--json"), {}),
        (("tenants", "provision", "--from-business-info"), {}),
        (("check", "--json"), {"DYNAMODB_BUSINESS_INFO_TABLE": "none", "PROVISION_ON_FIRST_USE": "true"}),
    )
    results = {one["dependency"]: (one["status"], one["result"]) for one in missing.json["dependencies"]}
    assert (missing.status, results["business-info"]) == (1, ("failed", "does not exist"))
    assert {(one["kind"], one["businessId"], one["locationId"]) for one in odd.json["differences"]} == {
        ("no_row", "gym", "side"),
        ("not_in_citrus", "gym", "side"),
    }
    assert (odd.status, planned.status) == (1, 0)
    assert "3 there, 1 make" in planned.out
    made = await terminal.run("tenants", "provision", "--from-business-info", "--apply", "--json")
    assert (made.status, made.json["counts"]) == (0, {"made": 1})
    agreed, listed, refused = await terminal.run_all(
        (("tenants", "audit"), {}), (("tenants", "list", "--json"), {}), (("tenants", "provision", "--apply"), {})
    )
    assert (agreed.status, "4 tenants in business-info: no difference" in agreed.out) == (0, True)
    names = ("businessId", "locationId", "businessType", "shardId")
    assert {tuple(one[name] for name in names) for one in listed.json["tenants"]} == {
        ("clinic", "main", "dental", "shard-2"),
        ("gym", "main", "gym", "shard-1"),
        ("gym", "side", "gym", "shard-1"),
        ("late", "main", "hotel", "shard-1"),
    }
    assert (refused.status, refused.out) == (2, "")
    assert "expected BUSINESS LOCATION --type TYPE, or --from-business-info" in refused.err
