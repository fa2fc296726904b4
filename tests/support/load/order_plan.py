"""Order events of many groups with rows and a log that follow from the plan: lost, doubled or late events show.

Each group has one order that is changed step by step. A step writes its own mark and removes the mark before it, so a
late step leaves its mark in the row. Every tenth step creates or deletes another order of the group.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from simplu_local.workload.order_events import Members, OrderEvent, event_members
from simplu_local.workload.workload import Tenant

ROUND = 10  # events of a group: the last one is about the other order
AGAIN_SHARE = 0.02  # half of them as a message with another deduplication id, half with the same
KINDS = {"CREATE": "create", "UPDATE": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class OrderStep:
    """An expected row of the log: the event with that *number* in its group."""

    tenant_id: str
    request_id: str
    group_id: str
    number: int
    kind: str
    order_id: str


class OrderPlan:
    """*count* events over *groups*, some of them sent again; *name* makes its ids unique among plans."""

    def __init__(self, name: str, tenants: Sequence[Tenant], *, count: int, groups: int, seed: int = 0) -> None:
        self.name = name
        self.tenants = tuple(tenants)
        self.group_count = groups
        self._random = Random(seed)
        self._last: dict[int, OrderEvent] = {}  # by group: that of its last step
        self._step_counts: Counter[int] = Counter()
        self.steps: list[OrderStep] = []
        self.events = tuple(self._make_events(count))

    def rows(self) -> dict[tuple[str, str], Any]:
        rows: dict[tuple[str, str], Any] = {}
        for number in range(self.group_count):
            tenant_id = self._tenant(number).tenant_id
            if not (count := self._step_counts[number]):
                continue
            last = _change_number(count - 1)
            rows[tenant_id, self._order_id(number)] = {"n": last, "steps": {str(last): True}}
            if count % (2 * ROUND) // ROUND:
                rows[tenant_id, self._beside_id(number)] = {"n": 0}
        return rows

    def _make_events(self, count: int) -> Iterator[OrderEvent]:
        random = self._random
        order = list(range(self.group_count))
        for index in range(count):
            if index % self.group_count == 0:
                random.shuffle(order)
            group = order[index % self.group_count]
            last = self._last.get(group)
            if last is not None and random.random() < AGAIN_SHARE:
                yield self._make_repeat(last, index)
            else:
                self._last[group] = self._make_step(group)
                yield self._last[group]

    def _make_step(self, group: int) -> OrderEvent:
        number = self._step_counts[group]
        self._step_counts[group] += 1
        if (number + 1) % ROUND == 0:
            is_there = number // ROUND % 2 == 1
            kind, order_id, data = ("DELETE" if is_there else "CREATE"), self._beside_id(group), {"n": 0}
            return self._make_event(group, number, kind, order_id, {} if is_there else data)
        change = _change_number(number)
        if change == 0:
            return self._make_event(group, number, "CREATE", self._order_id(group), {"n": 0, "steps": {"0": True}})
        steps = {str(change - 1): None, str(change): True}
        return self._make_event(group, number, "UPDATE", self._order_id(group), {"n": change, "steps": steps})

    def _make_repeat(self, event: OrderEvent, index: int) -> OrderEvent:
        if index % 2 and "deduplicationId" in json.loads(event.body):
            return OrderEvent(event.group_id, f"{self.name}-again-{index}", event.body, event.tenant)
        return event

    def _make_event(self, group: int, number: int, kind: str, order_id: str, data: Members) -> OrderEvent:
        own_id, tenant, group_id = f"{self.name}-{group}-{number}", self._tenant(group), f"{self.name}-{group}"
        in_body = tenant if group % 3 == 0 else None
        named = own_id if group % 2 == 0 else None
        members = event_members(kind, order_id, data, group_id=group_id, deduplication_id=named, tenant=in_body)
        self.steps.append(OrderStep(tenant.tenant_id, own_id, group_id, number, KINDS[kind], order_id))
        return OrderEvent(group_id, own_id, json.dumps(members), None if in_body else tenant)

    def _tenant(self, group: int) -> Tenant:
        return self.tenants[group % len(self.tenants)]

    def _order_id(self, group: int) -> str:
        return f"{self.name}-order-{group}"

    def _beside_id(self, group: int) -> str:
        return f"{self.name}-beside-{group}"


def _change_number(number: int) -> int:
    return number - (number + 1) // ROUND
