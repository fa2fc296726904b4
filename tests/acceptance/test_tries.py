"""An order event that always fails, and replicas killed between its tries: four tries, then one dead letter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Self

import asyncpg
import pytest

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.producer import create_tenants, open_client
from simplu_local.workload.workload import Tenant

TENANT = Tenant("shop", "main", "gym")
VISIBILITY_S = 5  # another replica gets the message of a killed one after that time
DELAYS = "60,60,60"  # no replica lives that long: each kill is between two tries
PATIENCE_S = 40.0
# A batch with the bad event fails. The worker then looks for it, in smaller and smaller batches; a batch of the event
# alone is one try of it. A sequence counts what was rolled back too.
COUNT_TRIES = """
CREATE SEQUENCE tries MINVALUE 0;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM made WHERE resource_id = 'bad' AND error IS NULL) THEN
        IF (SELECT count(*) FROM made) = 1 THEN PERFORM nextval('tries'); END IF;
        RAISE 'refused';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refuse AFTER INSERT ON operations REFERENCING NEW TABLE AS made
FOR EACH STATEMENT EXECUTE FUNCTION refuse();
SELECT nextval('tries');
"""


class Fleet:
    """A stack and two replicas."""

    def __init__(self) -> None:
        self.stack = Stack(shards=1, stream_shards=1, tenants_per_shard=2)
        self.workers: list[WorkerProcess] = []
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self.stack)
            env = self.stack.env | {"KINESIS_STREAM_NAME": "", "SQS_RETRY_DELAYS_SECONDS": DELAYS}
            self.queue_url = env["SQS_ORDER_EVENTS_QUEUE_URL"]
            self.sqs = await entered.enter_async_context(open_client("sqs", env))
            visibility = {"VisibilityTimeout": str(VISIBILITY_S)}
            await self.sqs.set_queue_attributes(QueueUrl=self.queue_url, Attributes=visibility)
            self.workers = [WorkerProcess(self.stack.group, env, number=number) for number in range(2)]
            for worker in self.workers:
                worker.start()
            for worker in self.workers:
                await worker.wait_ready()
            await create_tenants(self.sqs, env["SQS_SHARD_CREATION_QUEUE_URL"], [TENANT])
            await self.until(self._is_provisioned)
            self._exit = entered.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def _is_provisioned(self) -> bool:
        return TENANT.tenant_id in await read_tenant_ids(shard_urls(self.stack.env))

    async def until(self, condition: Any) -> None:
        """Wait until *condition* says yes; a failure shows the workers' logs."""
        if not await poll_until(condition, within_s=PATIENCE_S):
            pytest.fail("\n\n".join(log_tail(worker.log_path) for worker in self.workers))

    async def ask(self, query: str) -> list[Any]:
        """Return the first column of *query*."""
        connection = await asyncpg.connect(shard_urls(self.stack.env)[0])
        try:
            return [row[0] for row in await connection.fetch(query)]
        finally:
            await connection.close()

    async def execute(self, script: str) -> None:
        """Run a script on the shard."""
        connection = await asyncpg.connect(shard_urls(self.stack.env)[0])
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    async def send(self, group: str, *order_ids: str) -> None:
        """Send an event of each order, in one group."""
        attributes = {"BusinessId": TENANT.business_id, "LocationId": TENANT.location_id}
        entries = [
            {
                "Id": order_id,
                "MessageBody": json.dumps({"type": "CREATE", "orderId": order_id, "data": {}}),
                "MessageGroupId": group,
                "MessageDeduplicationId": order_id,
                "MessageAttributes": {
                    name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()
                },
            }
            for order_id in order_ids
        ]
        answer = await self.sqs.send_message_batch(QueueUrl=self.queue_url, Entries=entries)
        assert "Failed" not in answer

    async def failed_times(self, count: int) -> None:
        """Wait until the shard has *count* failures of the event."""

        async def has_failed() -> bool:
            return await self.ask("SELECT failure_count FROM message_failures") == [count]

        await self.until(has_failed)

    def owner(self, failure_count: int) -> WorkerProcess:
        """Return the replica that had this failure."""
        (owner,) = [worker for worker in self.workers if failure_count in failures_of(worker)]
        return owner

    async def is_empty(self) -> bool:
        """Tell whether the queue has nothing left."""
        answer = await self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["All"])
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return all(answer["Attributes"][name] == "0" for name in names)

    async def letters(self) -> list[dict[str, Any]]:
        """Take all dead letters."""
        url = self.stack.env["SQS_DEAD_LETTER_QUEUE_URL"]
        answer = await self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
        return [json.loads(message["Body"]) for message in answer.get("Messages", [])]


def failures_of(worker: WorkerProcess) -> list[int]:
    """Return which failures of the event a replica has logged."""
    lines = worker.log_path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["attempts"] for line in lines if '"operation.failing"' in line]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    """Run two replicas."""
    async with Fleet() as fleet:
        yield fleet


@pytest.mark.slow(30)
async def test_event_gets_four_tries_of_its_own_when_replicas_are_killed_between_them(fleet: Fleet) -> None:
    """The count survives each kill -9, and both replicas share it: then one dead letter, and its group continues."""
    await fleet.execute(COUNT_TRIES)
    await fleet.send("failing", "bad", "behind")
    await fleet.send("other", "free")
    for count in (1, 2, 3):
        await fleet.failed_times(count)

        async def is_logged(count: int = count) -> bool:
            return any(count in failures_of(worker) for worker in fleet.workers)

        await fleet.until(is_logged)
        killed = fleet.owner(count)
        killed.kill()
        assert await fleet.ask("SELECT last_value FROM tries") == [count]
        killed.start()

    await fleet.until(fleet.is_empty)

    assert await fleet.ask("SELECT last_value FROM tries") == [4]
    (letter,) = await fleet.letters()
    assert (letter["reason"], letter["requestId"], letter["attempts"]) == ("retries_exhausted", "bad", 4)
    assert letter["error"] == "it failed 4 times: RaiseError (P0001)"
    assert await fleet.ask('SELECT "resourceId" FROM resources WHERE "resourceName" = \'order\' ORDER BY 1') == [
        "behind",
        "free",
    ]
    assert await fleet.ask("SELECT failure_count FROM message_failures") == []
