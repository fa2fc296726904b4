"""Order events and control messages for one tenant, for as long as a test lasts, and what they have to leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from support.load.order_checker import compare_orders, count_orders
from support.load.order_plan import OrderPlan
from support.rows import fetch

from simplu_local.processes.loopback import poll_until
from simplu_local.workload.order_events import OrderEvent, SendReceipt, send_events
from simplu_local.workload.producer import open_client
from simplu_local.workload.workload import Tenant

EVENTS_MAX: Final = 20_000
GROUPS: Final = 20
ATTEMPTS: Final = 10  # of a request: a FIFO queue drops the repetition, a control message done twice changes nothing
CHANGE_EVERY_S: Final = 0.5
ADMIN_EVERY: Final = 4  # changes: the others are renames
RESOURCE_TYPES: Final = ("order", "role", "medic")  # made by them, beside what is renamed
CHANGED_SQL: Final = """
SELECT "resourceName" AS resource_type, "resourceId" AS resource_id
FROM resources
WHERE id = $1 AND ("resourceId" = ANY($2) OR "resourceId" = ANY($3) OR starts_with("resourceId", 'admin-'))
"""


class TenantMessages:
    """FIFO order events, *rate* a second, renames of the settings *name*-1 and so on, and new administrators."""

    def __init__(self, env: Mapping[str, str], tenant: Tenant, *, rate: float, name: str) -> None:
        self._env = env
        self._tenant = tenant
        self._rate = rate
        self._name = name
        self._events_sent = 0
        self._changes_sent = 0
        self._is_stopping = False

    @asynccontextmanager
    async def sent(self) -> AsyncIterator[None]:
        """Send them while the context is entered; `stop` ends it earlier."""
        async with open_client("sqs", self._env, attempts=ATTEMPTS) as sqs, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_events(sqs))
            tasks.create_task(self._send_changes(sqs))
            try:
                yield
            finally:
                self.stop()

    def stop(self) -> None:
        self._is_stopping = True

    def describe(self) -> str:
        return f"{self._events_sent} order events, {self._changes_sent} control messages"

    async def find_differences(self, urls: Sequence[str], home: str, *, within_s: float) -> list[str]:
        """Return what is not as it has to be *within_s* after the last one; *home* is the URL of the tenant's shard."""
        plan = self._plan(self._events_sent)
        changed: list[str] = []

        async def are_applied() -> bool:
            nonlocal changed
            changed = [line for url in urls for line in await self._compare_changes(url, is_home=url == home)]
            return not changed and await count_orders(urls, plan) >= len(plan.steps)

        await poll_until(are_applied, within_s=within_s)
        return [*await compare_orders(urls, [plan], has_moved=True), *changed]

    def _plan(self, count: int) -> OrderPlan:
        return OrderPlan("messages", [self._tenant], count=count, groups=GROUPS)

    async def _send_events(self, sqs: Any) -> None:
        def note(_: OrderEvent, __: SendReceipt) -> None:
            self._events_sent += 1

        queue_url = self._env["SQS_ORDER_EVENTS_QUEUE_URL"]
        await send_events(sqs, queue_url, self._events(), on_sent=note, rate=self._rate)

    def _events(self) -> Iterator[OrderEvent]:
        for event in self._plan(EVENTS_MAX).events:
            if self._is_stopping:
                return
            yield event

    async def _send_changes(self, sqs: Any) -> None:
        queue_url = self._env["SQS_SHARD_CREATION_QUEUE_URL"]
        while not self._is_stopping:
            number = self._changes_sent + 1
            kind, members = self._change(number)
            body = {
                "businessId": self._tenant.business_id,
                "locationId": self._tenant.location_id,
                "businessType": self._tenant.business_type,
                "timestamp": datetime.now(UTC).isoformat(),
                **members,
            }
            fifo = {"MessageGroupId": f"change-{number}", "MessageDeduplicationId": f"change-{number}"}
            await sqs.send_message(
                QueueUrl=queue_url,
                MessageBody=json.dumps(body),
                MessageAttributes={"MessageType": {"DataType": "String", "StringValue": kind}},
                **(fifo if queue_url.endswith(".fifo") else {}),
            )
            self._changes_sent = number
            await asyncio.sleep(CHANGE_EVERY_S)

    def _change(self, number: int) -> tuple[str, dict[str, str]]:
        if number % ADMIN_EVERY == 0:
            return "ADMIN_ACCOUNT_CREATION", {
                "adminUserId": f"admin-{number}",
                "adminEmail": f"a{number}@clinic.example",
            }
        ids = {"oldResourceId": f"{self._name}-{number}", "newResourceId": f"renamed-{number}"}
        return "UPDATE_RESOURCE_ID", {"resourceType": "settings", **ids}

    async def _compare_changes(self, url: str, *, is_home: bool) -> list[str]:
        numbers = range(1, self._changes_sent + 1) if is_home else ()
        renamed = {number for number in numbers if number % ADMIN_EVERY}
        wanted = {("settings", f"renamed-{number}") for number in renamed}
        wanted |= {(kind, f"admin-{number}") for number in {*numbers} - renamed for kind in RESOURCE_TYPES[1:]}
        before = [f"{self._name}-{number}" for number in range(1, self._changes_sent + 1) if number % ADMIN_EVERY]
        after = [f"renamed-{number}" for number in range(1, self._changes_sent + 1)]
        rows = await fetch(url, CHANGED_SQL, self._tenant.tenant_id, before, after)
        found = {(row["resource_type"], row["resource_id"]) for row in rows}
        missing, strange = sorted(wanted - found), sorted(found - wanted)
        lines = [f"control messages without effect ({len(missing)}), such as {missing[0]}"] if missing else []
        return [
            *lines,
            *([f"resources before a control message ({len(strange)}), such as {strange[0]}"] if strange else []),
        ]
