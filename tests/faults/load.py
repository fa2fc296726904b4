"""The load of a history: operations at random on few resources, some of them sent twice, and order events."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from simplu_local.stack.stack import Stack
from simplu_local.workload.producer import put_items
from simplu_local.workload.reference_model import Effect, Verdict
from simplu_local.workload.workload import Item, Tenant

OPERATIONS: Final = {"create": 4, "update": 4, "patch": 6, "delete": 2, "read": 4}
ORDER_EVENTS: Final = {"create": "CREATE", "patch": "UPDATE", "delete": "DELETE"}
TYPES: Final = ("note", "task", "visit")
RESOURCES: Final = 4  # of a type, and orders of a tenant
TWICE: Final = 0.03  # of the records
ORDERS: Final = 0.15  # of the operations
LOGGED: Final = Verdict(Effect.LOGGED)

NotePut = Callable[..., None]


class Load:
    """*count* operations for *tenants*, *rate* a second; *note* is called for each that was accepted.

    Their ids begin with *name*.
    """

    def __init__(
        self,
        stack: Stack,
        tenants: Sequence[Tenant],
        chance: random.Random,
        *,
        name: str,
        count: int,
        rate: float,
        note: NotePut,
    ) -> None:
        self._stack = stack
        self._tenants = tenants
        self._chance = chance
        self._name = name
        self._order_count = int(count * ORDERS)
        self._count = count - self._order_count
        self._seconds = count / rate
        self._note = note

    async def send(self) -> None:
        # Each has its own source of chance: which is drawn from first is up to the machine.
        chances = [random.Random(self._chance.getrandbits(64)) for _ in range(2)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._put_operations(chances[0]))
            tasks.create_task(self._send_orders(chances[1]))

    async def _put_operations(self, chance: random.Random) -> None:
        def note(pairs: Sequence[tuple[Any, Item]]) -> None:
            for _, item in pairs:
                sent = json.loads(item.record)
                self._note(
                    "put",
                    key=item.partition_key,
                    tenant=f"{sent['businessId']}-{sent['locationId']}",
                    request=sent["requestId"],
                    operation=sent["operation"],
                    type=sent["resourceType"],
                    id=sent["resourceId"],
                    data=sent.get("data"),
                )

        async with self._stack.aws_client("kinesis") as kinesis:
            stream, rate = self._stack.env["KINESIS_STREAM_NAME"], self._count / self._seconds
            await put_items(kinesis, stream, self._items(chance), on_put=note, rate=rate)

    def _items(self, chance: random.Random) -> Iterator[Item]:
        recent: list[Item] = []
        for number in range(self._count):
            if recent and chance.random() < TWICE:
                yield chance.choice(recent)
            tenant, kind = chance.choice(self._tenants), _draw(OPERATIONS, chance)
            resource_type = chance.choice(TYPES)
            members: dict[str, Any] = {
                "operation": kind,
                "businessId": tenant.business_id,
                "locationId": tenant.location_id,
                "resourceType": resource_type,
                "resourceId": f"r-{chance.randrange(RESOURCES)}",
                "requestId": f"{self._name}-s-{number}",
                "timestamp": datetime.now(UTC).isoformat(),
            }
            if kind in {"create", "update", "patch"}:
                members["data"] = {"n": number, f"m{chance.randrange(3)}": {"n": number}}
            item = Item(f"{tenant.tenant_id}-{resource_type}", json.dumps(members).encode(), LOGGED)
            recent = [*recent[-200:], item]
            yield item

    async def _send_orders(self, chance: random.Random) -> None:
        url, loop = self._stack.env["SQS_ORDER_EVENTS_QUEUE_URL"], asyncio.get_running_loop()
        pause_s = self._seconds / self._order_count
        begun_at = loop.time()
        async with self._stack.aws_client("sqs") as sqs:
            for number in range(self._order_count):
                await asyncio.sleep(begun_at + number * pause_s - loop.time())
                tenant, kind = chance.choice(self._tenants), _draw(OPERATIONS, chance, ORDER_EVENTS)
                order, request = f"o-{chance.randrange(RESOURCES)}", f"{self._name}-q-{number}"
                data = None if kind == "delete" else {"n": number}
                body = {"type": ORDER_EVENTS[kind], "orderId": order, "deduplicationId": request}
                body |= {"businessId": tenant.business_id, "locationId": tenant.location_id}
                await sqs.send_message(
                    QueueUrl=url,
                    MessageBody=json.dumps(body | ({} if data is None else {"data": data})),
                    MessageGroupId=f"{tenant.tenant_id}-{order}",
                    MessageDeduplicationId=request,
                )
                self._note(
                    "put",
                    key=f"{tenant.tenant_id}-order-{order}",
                    tenant=tenant.tenant_id,
                    request=request,
                    operation=kind,
                    type="order",
                    id=order,
                    data=data,
                )


def _draw(shares: dict[str, int], chance: random.Random, among: Any = None) -> str:
    kinds = [kind for kind in shares if among is None or kind in among]
    return chance.choices(kinds, [shares[kind] for kind in kinds])[0]
