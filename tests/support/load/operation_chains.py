"""Operations with outcomes that follow from their number alone: for loads too long to be remembered.

The operations of one resource, its chain, repeat create, patch, read, delete. An operation that is lost, done twice or
out of order leaves another status, another result or another row, so the log and the rows show it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import msgspec

from simplu_local.workload.reference_model import Effect, Verdict
from simplu_local.workload.workload import Item, Tenant

CYCLE = ("create", "patch", "read", "delete")
FIRST_MOMENT = datetime(2025, 1, 1, tzinfo=UTC)
LOGGED = Verdict(Effect.LOGGED)

Numbers = tuple[int, int]
"""The content of a resource: `n` and `made`."""


@dataclass(frozen=True, slots=True)
class ExpectedOperation:
    """An expected row of `operations`. *result* is the expected result of a `read`; a `list` has no resource."""

    tenant_id: str
    kind: str
    resource_id: str | None
    result: Numbers | None


class ChainPlan(msgspec.Struct, frozen=True, tag=True):
    """An endless sequence of operations, over all chains in turn; *name* makes its ids unique among plans.

    Each tenant has *types* resource types, so as many partition keys, and *resources* of each. *padding_bytes* makes
    each record with data longer.
    """

    producer: ClassVar[str] = "support.load.chain_producer"  # the module that puts it

    name: str
    tenants: tuple[Tenant, ...]
    types: int = 8
    resources: int = 16
    padding_bytes: int = 0

    @property
    def chain_count(self) -> int:
        return len(self.tenants) * self.types * self.resources

    def items(self, count: int) -> Iterator[Item]:
        return (self.item(number) for number in range(count))

    def item(self, number: int) -> Item:
        step, chain = divmod(number, self.chain_count)
        tenant, resource_type = self._tenant(chain), self._type(chain)
        message: dict[str, Any] = {
            "operation": CYCLE[step % len(CYCLE)],
            "businessId": tenant.business_id,
            "locationId": tenant.location_id,
            "resourceType": resource_type,
            "resourceId": self.resource_id(chain),
            "requestId": f"{self.name}-{number}",
            "timestamp": (FIRST_MOMENT + timedelta(seconds=step)).isoformat(),
        }
        padding = {"text": "x" * self.padding_bytes} if self.padding_bytes else {}
        if message["operation"] == "create":
            message["data"] = {"n": step, "made": step} | padding
        elif message["operation"] == "patch":
            message["data"] = {"n": step} | padding
        return Item(f"{tenant.tenant_id}-{resource_type}", json.dumps(message).encode(), LOGGED)

    def number_of(self, request_id: str) -> int | None:
        """Return the number of the operation with *request_id*; none when it belongs to another plan."""
        name, _, number = request_id.rpartition("-")
        return int(number) if name == self.name and number.isdecimal() else None

    def row(self, number: int) -> ExpectedOperation:
        """Return the expected row of the operation with that *number*; every operation succeeds."""
        step, chain = divmod(number, self.chain_count)
        kind = CYCLE[step % len(CYCLE)]
        result = _after(step - 1) if kind == "read" else None
        return ExpectedOperation(self._tenant(chain).tenant_id, kind, self.resource_id(chain), result)

    def resource_id(self, chain: int) -> str:
        return f"{self.name}-{chain}"

    def remaining_rows(self, count: int) -> dict[tuple[str, str, str], Numbers]:
        rows: dict[tuple[str, str, str], Numbers] = {}
        for chain in range(min(count, self.chain_count)):
            last_step = (count - chain - 1) // self.chain_count
            if (numbers := _after(last_step)) is not None:
                rows[self._tenant(chain).tenant_id, self._type(chain), self.resource_id(chain)] = numbers
        return rows

    def count_of(self, tenant_ids: frozenset[str], count: int) -> int:
        rounds, rest = divmod(count, len(self.tenants))
        chosen = [tenant.tenant_id in tenant_ids for tenant in self.tenants]
        return rounds * sum(chosen) + sum(chosen[:rest])

    def _tenant(self, chain: int) -> Tenant:
        return self.tenants[chain % len(self.tenants)]

    def _type(self, chain: int) -> str:
        return f"type-{chain // len(self.tenants) % self.types}"


def _after(step: int) -> Numbers | None:
    """Return the content of a chain's resource after *step*; none when it does not exist."""
    match CYCLE[step % len(CYCLE)]:
        case "create":
            return step, step
        case "patch":
            return step, step - 1
        case "read":
            return step - 1, step - 2
        case _:
            return None
