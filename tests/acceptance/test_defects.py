"""A worker with a defect in every loop: each raises once what nobody foresaw, and the worker goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.defects.sitecustomize import AT_ONCE, LATER
from support.full_stack import Chain, FullStack

from simplu_local.processes.loopback import poll_until

DEFECTS = Path(__file__).resolve().parents[1] / "support" / "defects"
WELL_WITHIN_S = 60.0  # of several back-offs one behind the other
ROUNDS = 40
ROUNDS_MIN = 5


@pytest.mark.slow(45)
async def test_worker_goes_on_when_every_loop_raises_what_nobody_foresaw(tmp_path: Path) -> None:
    """Nothing is lost, doubled or out of order, the process stays, and each error is counted, logged and shown.

    When every reader of the stream fails, the worker is not ready.
    """
    trigger = tmp_path / "defects"
    raised = trigger.with_name("defects.raised")
    async with FullStack(env={"PYTHONPATH": str(DEFECTS), "DEFECTS_FILE": str(trigger)}) as full_stack:
        pid = full_stack.worker.pid
        orders_url = full_stack.stack.env["SQS_ORDER_EVENTS_QUEUE_URL"]
        for url in (orders_url, full_stack.stack.env["SQS_SHARD_CREATION_QUEUE_URL"]):
            await full_stack.sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "4"})

        async def has_all() -> bool:
            return _has_all(raised)

        trigger.touch()
        chains = [Chain(tenant) for tenant in full_stack.steady for _ in range(2)]
        expected: set[str] = set()
        for number in range(ROUNDS):
            await full_stack.put(*chains)
            await _put_bad_record(full_stack, number)
            expected.add(await _send_order(full_stack, orders_url, number))
            if number % 10 == 0:
                await full_stack.register([full_stack.new_tenant()])
            if _has_all(raised) and number > ROUNDS_MIN:
                break
        await full_stack.wait_until_applied(*chains, within_s=WELL_WITHIN_S)
        tenant = full_stack.steady[0]
        await full_stack.wait_for_rows(tenant, expected, within_s=WELL_WITHIN_S)
        assert await poll_until(has_all, within_s=WELL_WITHIN_S)
        await full_stack.wait_for_readiness(200, within_s=WELL_WITHIN_S)

        assert full_stack.worker.pid == pid
        errors = await full_stack.read_metric("simplu_internal_errors_total")
        assert errors >= len(AT_ONCE) + len(LATER)
        status = await full_stack.read_status()
        assert {"shard", "stream_shard", "leases", "queue"} <= {one["target"] for one in status["troubles"]}
        lines = [json.loads(line) for line in full_stack.worker.log_path.read_text().splitlines()]
        failed = [line for line in lines if line["event"] == "loop.failed"]
        assert all("sitecustomize.py" in str(line["traceback"]) for line in failed)

        lasting = trigger.with_name("defects.lasting")
        lasting.touch()
        await full_stack.put(*chains)
        assert "source_failing" in await full_stack.wait_for_readiness(503, within_s=WELL_WITHIN_S)
        lasting.unlink()
        await full_stack.wait_for_readiness(200, within_s=WELL_WITHIN_S)
        await full_stack.wait_until_applied(*chains, within_s=WELL_WITHIN_S)
        await full_stack.worker.stop(within_s=WELL_WITHIN_S)


def _has_all(raised: Path) -> bool:
    return set(raised.read_text().split()) == {*AT_ONCE, *LATER}


async def _put_bad_record(full_stack: FullStack, number: int) -> None:
    """Put a record that is rejected, so that dead letters and notes are written."""
    tenant = full_stack.steady[0]
    record = {"operation": "none", "businessId": tenant.business_id, "locationId": tenant.location_id}
    await full_stack.kinesis.put_record(
        StreamName=full_stack.stream,
        PartitionKey=f"bad-{number}",
        Data=json.dumps(record | {"resourceType": "note", "requestId": f"bad-{number}"}).encode(),
    )


async def _send_order(full_stack: FullStack, url: str, number: int) -> str:
    """Send an order event, the next of its group; return its request id."""
    tenant, request_id = full_stack.steady[0], f"order-{number}"
    event = {
        "type": "CREATE",
        "orderId": request_id,
        "data": {"n": number},
        "groupId": "g",
        "deduplicationId": request_id,
        "businessId": tenant.business_id,
        "locationId": tenant.location_id,
    }
    await full_stack.sqs.send_message(
        QueueUrl=url, MessageBody=json.dumps(event), MessageGroupId="g", MessageDeduplicationId=request_id
    )
    return request_id
