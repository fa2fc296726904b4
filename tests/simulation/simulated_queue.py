"""A FIFO queue of order events behind the simulated network, and its consumer in a replica.

The queue is the local SQS's model; the consumer is the worker's own receiver and handler.
"""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from random import Random
from typing import Any, cast

import msgspec
from botocore.exceptions import ConnectionClosedError
from simulation.simulated_network import Network
from simulation.simulated_shards import SimulatedDeadLetters, SimulatedGateway
from simulation.sqs_world import NamedCalls, client_error, do
from support.aws.receiver_settings import receiver_settings

from simplu_local.sqs.actions import SqsActions
from simplu_local.sqs.errors import SqsError
from simplu_local.sqs.model import SqsAccount
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.consumers.sqs.order_handler import open_orders
from simplu_worker.consumers.sqs.order_messages import OrderRules, tenant_of_order
from simplu_worker.consumers.sqs.receive.message_table import SchedulerLimits
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.operations.tries import RetryRules
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import UtcClock

SQS, QUEUE = "sqs", "orders.fifo"
POLL_WAIT_S, POLL_PAUSE_S = 2, 0.5
LIMITS = SchedulerLimits(message_count=20, batch_count=6, call_count=3, poll_count=1)
RETRY_DELAYS_S = (0.5, 1.0)


class QueueService:
    def __init__(self, network: Network, *, visibility_s: int) -> None:
        self.network = network
        ids = itertools.count()
        self.account = SqsAccount(new_id=lambda: f"m{next(ids):06}")
        self._actions = SqsActions(self.account)
        self._actions.base_url = "http://sqs"
        attributes = {"FifoQueue": "true", "VisibilityTimeout": str(visibility_s)}
        self.url = f"http://sqs/123456789012/{QUEUE}"
        self.account.create(QUEUE, attributes, self.now_ms)

    @property
    def now_ms(self) -> int:
        return int(self.network.loop.utc().timestamp() * 1000)

    @property
    def message_count(self) -> int:
        queue = self.account.find(QUEUE)
        queue.apply_due(self.now_ms)
        return queue.visible_count + queue.in_flight_count

    def do(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            return do(self._actions, action, arguments, self.now_ms)
        except SqsError as exc:
            raise client_error(exc.code, exc.status, action) from None

    def send(self, body: str, group_id: str, deduplication_id: str) -> str:
        ids = {"MessageGroupId": group_id, "MessageDeduplicationId": deduplication_id}
        answer = self.do("SendMessage", {"QueueUrl": self.url, "MessageBody": body, **ids})
        return str(answer["SequenceNumber"])


class QueueClient(NamedCalls):
    """The calls of a client of SQS, over the network."""

    def __init__(self, service: QueueService) -> None:
        self._service = service

    async def _call(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if action.endswith("Batch") and not arguments["Entries"]:
            return {}
        network = self._service.network
        ends_at = network.loop.time() + arguments.pop("WaitTimeSeconds", 0)
        while True:
            answer = await network.ask(SQS, lambda: self._service.do(action, arguments), lost=_lost)
            if action != "ReceiveMessage" or answer.get("Messages") or network.loop.time() >= ends_at:
                return answer
            await asyncio.sleep(POLL_PAUSE_S)


async def consume_orders(
    service: QueueService,
    gateway: SimulatedGateway,
    letters: SimulatedDeadLetters,
    stopping: asyncio.Event,
    *,
    tenant_wait: timedelta,
    draws: Random,
    utc: UtcClock,
) -> None:
    queue = Queue(cast("Any", QueueClient(service)), service.url)
    rules, retries = OrderRules(100_000), RetryRules(RETRY_DELAYS_S, tenant_wait)
    settings = receiver_settings(limits=LIMITS, poll_wait_s=POLL_WAIT_S, drain_s=4.0)
    shards = cast("ShardGateway", gateway)
    async with open_orders(shards, queue, rules=rules, retries=retries, draw=draws.random, utc=utc) as handler:
        receiver = QueueReceiver(
            queue,
            handler,
            letters,
            settings,
            tenant_of=lambda message: tenant_of_order(message, rules),
            clock=service.network.loop.time,
            utc=utc,
            draw=draws.random,
        )
        await receiver.run(stopping)


def order_event(tenant_id: str, request_id: str, order_id: str, number: str) -> str:
    business_id, _, location_id = tenant_id.partition("-")
    members = {
        "type": "UPDATE",
        "orderId": order_id,
        "deduplicationId": request_id,
        "businessId": business_id,
        "locationId": location_id,
        "data": {"n": number},
    }
    return msgspec.json.encode(members).decode()


def _lost() -> ConnectionClosedError:
    return ConnectionClosedError(endpoint_url="http://sqs")
