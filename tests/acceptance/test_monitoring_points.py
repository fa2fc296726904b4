"""The references' monitoring points of a worker that runs: all of its queues, its handlers, and what empties them."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack

pytestmark = pytest.mark.slow(8)

QUEUES = (
    "SQS_SHARD_CREATION_QUEUE_URL",
    "SQS_PRIORITY_QUEUE_URL",
    "SQS_ORDER_EVENTS_QUEUE_URL",
    "SQS_DEAD_LETTER_QUEUE_URL",
)
SHOWN = ("/sqs/stats", "/handler/status", "/handler/stats", "/cache/stats", "/status")
GRACE_S = 10.0
PATIENCE_S = 60.0


async def ask(stack: Stack, worker: WorkerProcess, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    """Return status and JSON of a path, asked with the token."""
    headers = {"Authorization": f"Bearer {stack.env['API_TOKEN']}"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, worker.url + path, headers=headers) as answer,
    ):
        return answer.status, json.loads(await answer.text())


async def test_monitoring_points_show_and_empty_what_the_worker_is_configured_with() -> None:
    async with Stack(shards=1, stream_shards=1) as stack:
        names = [stack.env[name].rsplit("/", 1)[-1] for name in QUEUES]
        purge = f"/sqs/purge?queue={names[-1]}"
        env = stack.env | {"SHUTDOWN_GRACE_SECONDS": str(GRACE_S), "ALLOW_DESTRUCTIVE_HTTP": "true"}
        worker = WorkerProcess(stack.group, env)
        worker.start()
        await worker.wait_ready()
        async with stack.aws_client("sqs") as sqs:
            url = stack.env["SQS_ORDER_EVENTS_QUEUE_URL"]
            await sqs.send_message(QueueUrl=url, MessageBody="no JSON", MessageGroupId="g", MessageDeduplicationId="d")

        async def is_buried() -> bool:  # and the message is deleted, a call of SQS later
            _, stats = await ask(stack, worker, "/sqs/stats")
            _, handled = await ask(stack, worker, "/handler/stats")
            (orders,) = [row for row in handled["handlers"] if row["queue"] == names[2]]
            decided = (orders["outcomes"].get("dead_letter"), orders["onTheirWay"])
            return bool(stats["queues"][-1]["visible"] == 1 and decided == (1, {}))

        assert await poll_until(is_buried, within_s=PATIENCE_S)
        shown = {path: await ask(stack, worker, path) for path in SHOWN}
        purged, again = await ask(stack, worker, purge, "DELETE"), await ask(stack, worker, purge, "DELETE")
        unknown = await ask(stack, worker, "/sqs/purge?queue=another", "DELETE")
        _, emptied = await ask(stack, worker, "/sqs/stats")
        await worker.stop(within_s=PATIENCE_S)

        secrets = [server.password for server in stack.servers.values()] + [stack.env["API_TOKEN"]]

    assert {status for status, _ in shown.values()} == {200}
    assert [row["name"] for row in shown["/sqs/stats"][1]["queues"]] == names
    assert [row["consumed"] for row in shown["/sqs/stats"][1]["queues"]] == [True, True, True, False]
    assert (shown["/handler/status"][1]["state"], shown["/cache/stats"][1]) == ("running", {"enabled": False})
    handlers = {row["queue"]: row for row in shown["/handler/stats"][1]["handlers"]}
    assert (handlers[names[2]]["outcomes"]["dead_letter"], handlers[names[2]]["onTheirWay"]) == (1, {})
    assert [row["name"] for row in shown["/status"][1]["queues"]] == names[:-1]
    assert (purged[0], again[0], unknown[0], emptied["queues"][-1]["visible"]) == (202, 429, 404, 0)
    assert [secret for secret in secrets if secret in repr(shown)] == []
