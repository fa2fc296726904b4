"""A repeatable stream of order events for many tenants and groups, each with its expected outcome from the model.

The time of an order event is that at which the queue accepts it, which is not known before. In the model a unique
moment stands for it until it is known (`ReferenceModel.replace_times`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random

from simplu_local.workload import documents
from simplu_local.workload.order_events import OrderEvent, event_members, spoil_event
from simplu_local.workload.reference_model import Effect, OperationRequest, ReferenceModel, Verdict
from simplu_local.workload.workload import Tenant

ORDER_TYPE = "order"
GROUPS = 20
URGENT_GROUPS = 2  # of these, sent to the priority queue
MOMENTS_FROM = datetime(1900, 1, 1, tzinfo=UTC)  # far from every other time in the load
KINDS = {"create": "CREATE", "patch": "UPDATE", "delete": "DELETE"}
WEIGHTS = (55, 38, 7)
# SQS accepts the characters of XML: SendMessage in its API reference.
NOT_SENDABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class OrderItem:
    """An event to send, its expected outcome, and the *moment* that stands for its time."""

    event: OrderEvent
    verdict: Verdict
    moment: datetime
    is_urgent: bool


@dataclass(frozen=True, slots=True)
class _SentOrder:
    tenant: Tenant
    request: OperationRequest
    event: OrderEvent


class OrderWorkload:
    """Makes order events for *tenants* of *model*; all events of one order or one request id are in one group."""

    def __init__(self, seed: int, tenants: Sequence[Tenant], model: ReferenceModel) -> None:
        self._random = Random(f"orders of {seed}")
        self._tenants = tuple(tenants)
        self._model = model
        self._number = 0
        self._sent: list[_SentOrder] = []
        self._orders: dict[tuple[str, int], list[str]] = defaultdict(list)  # by tenant and group, deleted ones too

    def items(self, count: int) -> Iterator[OrderItem]:
        """Yield *count* events, at least one per group; the last of each group is a `CREATE` of a new order."""
        for _ in range(count - GROUPS):
            yield self._make_next()
        for group in range(GROUPS):
            yield self._make_fresh(self._random.choice(self._tenants), group, "create")

    def _make_next(self) -> OrderItem:
        makers: list[tuple[float, Callable[[Tenant, int], OrderItem]]] = [
            (0.03, self._make_poison),
            (0.02, self._make_impossible),
            (0.01, self._make_unstorable),
        ]
        if self._sent:
            makers += [(0.03, self._make_repeat), (0.01, self._make_reuse)]
        tenant, group = self._random.choice(self._tenants), self._random.randrange(GROUPS)
        draw = self._random.random()
        for share, make in makers:
            draw -= share
            if draw < 0:
                return make(tenant, group)
        return self._make_fresh(tenant, group, self._random.choices(tuple(KINDS), WEIGHTS)[0])

    def _make_fresh(self, tenant: Tenant, group: int, kind: str) -> OrderItem:
        orders = self._orders[tenant.tenant_id, group]
        if not orders:
            kind = "create"
        order_id = self._new_id() if kind == "create" else self._random.choice(orders)
        return self._make_item(tenant, group, kind, order_id, self._make_data(kind))

    def _make_impossible(self, tenant: Tenant, group: int) -> OrderItem:
        orders = self._orders[tenant.tenant_id, group]
        if orders and self._random.random() < 0.5:
            return self._make_item(tenant, group, "create", self._random.choice(orders), self._make_data("create"))
        return self._make_item(
            tenant, group, self._random.choice(("patch", "delete")), self._new_id(), self._make_data("patch")
        )

    def _make_unstorable(self, tenant: Tenant, group: int) -> OrderItem:
        return self._make_item(tenant, group, "create", self._new_id(), self._random.choice(documents.UNSTORABLE))

    def _make_repeat(self, tenant: Tenant, group: int) -> OrderItem:
        """Send an earlier event again, as a producer that missed the answer; for the queue it is a new message."""
        named = [sent for sent in self._sent if sent.request.request_id != sent.event.deduplication_id]
        if not named:
            return self._make_fresh(tenant, group, "create")
        sent = self._random.choice(named)
        event = replace(sent.event, deduplication_id=self._new_random_id())
        return self._add_verdict(event, self._model.apply(sent.request), self._next_moment())

    def _make_reuse(self, _tenant: Tenant, _group: int) -> OrderItem:
        sent = self._random.choice(self._sent)
        data = '{"another": "event"}'
        group_id, order_id = sent.event.group_id, str(sent.request.resource_id)
        members = event_members(
            "CREATE",
            order_id,
            {"another": "event"},
            group_id=group_id,
            deduplication_id=sent.request.request_id,
            tenant=sent.tenant,
        )
        event = OrderEvent(group_id, self._new_random_id(), json.dumps(members))
        request = replace(sent.request, kind="create", data=data)
        return self._add_verdict(event, self._model.apply(request), self._next_moment())

    def _make_poison(self, tenant: Tenant, group: int) -> OrderItem:
        own_id, group_id, in_attributes = self._new_random_id(), _group_id(group), self._random.random() < 0.5
        members = event_members(
            "CREATE",
            "never",
            {"never": "kept"},
            group_id=group_id,
            deduplication_id=None,
            tenant=None if in_attributes else tenant,
        )
        event = OrderEvent(group_id, own_id, json.dumps(members), tenant if in_attributes else None)
        spoilt, reasons = spoil_event(self._random.getrandbits(16), members, event)
        return self._add_verdict(spoilt, Verdict(Effect.REJECTED, reasons), self._next_moment())

    def _make_item(self, tenant: Tenant, group: int, kind: str, order_id: str, data: str) -> OrderItem:
        random, own_id, moment = self._random, self._new_random_id(), self._next_moment()
        named = None if random.random() < 0.3 else f"{random.choice(('order', 'заказ', 'o 🛒'))}-{own_id}"
        in_attributes = random.random() < 0.6
        members = event_members(
            KINDS[kind],
            order_id,
            None,
            group_id=_group_id(group),
            deduplication_id=named,
            tenant=None if in_attributes else tenant,
        )
        data = _escape_unsendable(data)
        texts = {
            name: _escape_unsendable(json.dumps(text, ensure_ascii=random.random() < 0.5))
            for name, text in members.items()
        }
        texts["data"] = "{}" if kind == "delete" else data
        pairs = [f'"{name}": {text}' for name, text in texts.items()]
        random.shuffle(pairs)
        body = "".join(("{", ",\n".join(pairs), "}"))
        event = OrderEvent(_group_id(group), own_id, body, tenant if in_attributes else None)
        request = OperationRequest(
            kind,
            tenant.business_id,
            tenant.location_id,
            ORDER_TYPE,
            order_id,
            moment,
            named or own_id,
            None if kind == "delete" else data,
        )
        if kind == "create":
            self._orders[tenant.tenant_id, group].append(order_id)
        self._sent.append(_SentOrder(tenant, request, event))
        return self._add_verdict(event, self._model.apply(request), moment)

    def _add_verdict(self, event: OrderEvent, verdict: Verdict, moment: datetime) -> OrderItem:
        return OrderItem(event, verdict, moment, is_urgent=event.group_id in URGENT_GROUP_IDS)

    def _make_data(self, kind: str) -> str:
        return documents.document(self._random) if kind == "create" else documents.patch_document(self._random)

    def _new_id(self) -> str:
        self._number += 1
        return documents.resource_id(self._random, ORDER_TYPE, self._number)

    def _new_random_id(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    def _next_moment(self) -> datetime:
        self._number += 1
        return MOMENTS_FROM + timedelta(seconds=self._number)


def _group_id(group: int) -> str:
    return f"orders-{group}"


def _escape_unsendable(text: str) -> str:
    return NOT_SENDABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


URGENT_GROUP_IDS = frozenset(map(_group_id, range(URGENT_GROUPS)))
