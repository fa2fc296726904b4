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

from simplu_local.workload.order_events import Members, OrderEvent, event_members, spoil_event
from simplu_local.workload.workload import Tenant

ROUND = 10  # events of a group: the last one is about the other order
AGAIN_SHARE = 0.02  # half of them as a message with another deduplication id, half with the same
REUSED = frozenset({"request_id_reused"})
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


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """An event and its expected outcome: a step, dead letters with one of *reasons*, or no effect.

    With *is_dropped* the queue itself drops the event.
    """

    event: OrderEvent
    step: OrderStep | None = None
    reasons: frozenset[str] = frozenset()
    is_dropped: bool = False


class OrderPlan:
    """*count* events over *groups*, *poison_percent* of them poison; *name* makes its ids unique among plans."""

    def __init__(
        self, name: str, tenants: Sequence[Tenant], *, count: int, groups: int, poison_percent: float = 0, seed: int = 0
    ) -> None:
        self.name = name
        self.tenants = tuple(tenants)
        self.group_count = groups
        self._random = Random(seed)
        self._last: dict[int, PlannedEvent] = {}  # by group: its last step
        self._step_counts: Counter[int] = Counter()
        self.planned = tuple(self._make_events(count, poison_percent))
        self.steps = [one.step for one in self.planned if one.step is not None]
        self.poison_count = sum(bool(one.reasons) for one in self.planned)

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

    def _make_events(self, count: int, poison_percent: float) -> Iterator[PlannedEvent]:
        random = self._random
        bad = set(random.sample(range(count), round(count * poison_percent / 100)))
        order = list(range(self.group_count))
        bad_number = 0
        for index in range(count):
            if index % self.group_count == 0:
                random.shuffle(order)
            group = order[index % self.group_count]
            last = self._last.get(group)
            if index in bad:
                yield self._make_poison(bad_number, group, index, last)
                bad_number += 1
            elif last is not None and random.random() < AGAIN_SHARE:
                yield self._make_repeat(last, index)
            else:
                self._last[group] = self._make_step(group)
                yield self._last[group]

    def _make_step(self, group: int) -> PlannedEvent:
        number = self._step_counts[group]
        self._step_counts[group] += 1
        if (number + 1) % ROUND == 0:
            is_there = number // ROUND % 2 == 1
            kind, order_id, data = ("DELETE" if is_there else "CREATE"), self._beside_id(group), {"n": 0}
            return self._make_planned(group, number, kind, order_id, {} if is_there else data)
        change = _change_number(number)
        if change == 0:
            return self._make_planned(group, number, "CREATE", self._order_id(group), {"n": 0, "steps": {"0": True}})
        steps = {str(change - 1): None, str(change): True}
        return self._make_planned(group, number, "UPDATE", self._order_id(group), {"n": change, "steps": steps})

    def _make_planned(self, group: int, number: int, kind: str, order_id: str, data: Members) -> PlannedEvent:
        event, _ = self._make_event(group, f"{self.name}-{group}-{number}", kind, order_id, data)
        tenant_id = self._tenant(group).tenant_id
        return PlannedEvent(
            event, OrderStep(tenant_id, event.deduplication_id, event.group_id, number, KINDS[kind], order_id)
        )

    def _make_repeat(self, last: PlannedEvent, index: int) -> PlannedEvent:
        event = last.event
        if index % 2 and "deduplicationId" in json.loads(event.body):
            again = OrderEvent(event.group_id, f"{self.name}-again-{index}", event.body, event.tenant)
            return PlannedEvent(again)
        return PlannedEvent(event, is_dropped=True)

    def _make_poison(self, number: int, group: int, index: int, last: PlannedEvent | None) -> PlannedEvent:
        own_id = f"{self.name}-bad-{index}"
        event, members = self._make_event(group, own_id, "CREATE", f"{self.name}-never-{index}", {"never": "kept"})
        if number % 6 == 5 and last is not None:
            body = json.dumps(members | {"deduplicationId": last.event.deduplication_id})
            return PlannedEvent(OrderEvent(event.group_id, own_id, body, event.tenant), reasons=REUSED)
        spoilt, reasons = spoil_event(number, members, event)
        return PlannedEvent(spoilt, reasons=reasons)

    def _make_event(
        self, group: int, own_id: str, kind: str, order_id: str, data: Members
    ) -> tuple[OrderEvent, Members]:
        tenant, group_id = self._tenant(group), f"{self.name}-{group}"
        in_body = tenant if group % 3 == 0 else None
        named = own_id if group % 2 == 0 else None
        members = event_members(kind, order_id, data, group_id=group_id, deduplication_id=named, tenant=in_body)
        return OrderEvent(group_id, own_id, json.dumps(members), None if in_body else tenant), members

    def _tenant(self, group: int) -> Tenant:
        return self.tenants[group % len(self.tenants)]

    def _order_id(self, group: int) -> str:
        return f"{self.name}-order-{group}"

    def _beside_id(self, group: int) -> str:
        return f"{self.name}-beside-{group}"


def _change_number(number: int) -> int:
    return number - (number + 1) // ROUND
