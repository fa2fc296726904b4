"""Operations of tenants that each have one kind of work, with outcomes that follow from their number alone.

    python -m benchmarks.flood_plan ORDER.json

puts them, as `support.load.chain_producer` does.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import random
from datetime import timedelta
from typing import Any, ClassVar, Literal

from support.aws.kpl_aggregates import aggregate
from support.load.chain_producer import ProducerOrder, main
from support.load.operation_chains import FIRST_MOMENT, LOGGED, ChainPlan, ExpectedOperation, Numbers

from simplu_local.workload.workload import Item, Tenant

HASH_KEY_BITS = 128  # of a partition key, by its MD5: API_PutRecords
PARTS_COUNT = 10  # operations in a record of several


class FloodPlan(ChainPlan, frozen=True, tag=True):
    """A plan in which a chain is a partition key: it creates *documents* resources, and then repeats *cycle*.

    A `create` makes another resource, a `patch` or `read` is of the chain's first resource, and a `list` returns the
    *documents* first ones. So the result of a `read`, and the number of documents in that of a `list`, show the order.
    The first resources are longer by *document_bytes*, those of the cycle by *padding_bytes*. With *stream_shards*, the
    number of stream shards, a tenant's chains are on one after the other of them; else where their names fall. Of
    *spoiled* records nothing is checked: they are no JSON, name no resource type, or have several operations each.
    """

    producer: ClassVar[str] = "benchmarks.flood_plan"

    cycle: tuple[str, ...] = ("create",)
    documents: int = 1
    document_bytes: int = 0
    stream_shards: int = 0
    resources: int = 1  # a chain has resources of its own
    spoiled: Literal["", "json", "type", "parts"] = ""

    def item(self, number: int) -> Item:
        """Return the record of the operation with that *number*."""
        step, chain = divmod(number, self.chain_count)
        tenant, resource_type, kind = self._tenant(chain), self._type(chain), self._kind(step)
        message: dict[str, Any] = {
            "operation": kind,
            "businessId": tenant.business_id,
            "locationId": tenant.location_id,
            "resourceType": resource_type,
            "requestId": f"{self.name}-{number}",
            "timestamp": (FIRST_MOMENT + timedelta(seconds=step)).isoformat(),
        }
        if (resource_id := self._resource(chain, step)) is not None:
            message["resourceId"] = resource_id
        match kind:
            case "create":
                size_bytes = self.document_bytes if step < self.documents else self.padding_bytes
                message["data"] = {"n": step, "made": step, "text": text_of(number, size_bytes)}
            case "patch":
                message["data"] = {"n": step}
            case "list":
                message["pagination"] = {"limit": self.documents}
        key = f"{tenant.tenant_id}-{resource_type}"
        return Item(key, self._record(key, message), LOGGED)

    def _record(self, key: str, message: dict[str, Any]) -> bytes:
        match self.spoiled:
            case "json":
                return json.dumps(message).encode()[:-1]
            case "type":
                return json.dumps(message | {"resourceType": 0}).encode()
            case "parts":
                ids = {name: message[name] for name in ("requestId", "resourceId") if name in message}
                own = (message | {name: f"{id_}-{part}" for name, id_ in ids.items()} for part in range(PARTS_COUNT))
                return aggregate([(key, None, json.dumps(one).encode()) for one in own])
            case _:
                return json.dumps(message).encode()

    def row(self, number: int) -> ExpectedOperation:
        """Return the expected row of the operation with that *number*; every operation succeeds."""
        step, chain = divmod(number, self.chain_count)
        kind = self._kind(step)
        result = (self._last_patch(step), 0) if kind == "read" else None
        return ExpectedOperation(self._tenant(chain).tenant_id, kind, self._resource(chain, step), result)

    def remaining_rows(self, count: int) -> dict[tuple[str, str, str], Numbers]:
        """Return what resources are there after *count* operations."""
        rows: dict[tuple[str, str, str], Numbers] = {}
        for chain in range(min(count, self.chain_count)):
            steps = (count - chain - 1) // self.chain_count + 1
            tenant_id, resource_type = self._tenant(chain).tenant_id, self._type(chain)
            for step in range(steps):
                if self._kind(step) == "create":
                    rows[tenant_id, resource_type, self._created(chain, step)] = (step, step)
            rows[tenant_id, resource_type, self._created(chain, 0)] = (self._last_patch(steps), 0)
        return rows

    def _kind(self, step: int) -> str:
        return "create" if step < self.documents else self.cycle[(step - self.documents) % len(self.cycle)]

    def _last_patch(self, before: int) -> int:
        """Return the last step with a `patch` before another step; 0 without any."""
        steps = range(before - 1, max(self.documents, before - len(self.cycle)) - 1, -1)
        return next((step for step in steps if self._kind(step) == "patch"), 0)

    def _resource(self, chain: int, step: int) -> str | None:
        match self._kind(step):
            case "create":
                return self._created(chain, step)
            case "list":
                return None
            case _:
                return self._created(chain, 0)

    def _created(self, chain: int, step: int) -> str:
        return f"{self.name}-{chain}-{step:08d}"

    def _type(self, chain: int) -> str:
        if not self.stream_shards:
            return super()._type(chain)
        number, tenant_number = divmod(chain, len(self.tenants))
        return type_on(self._tenant(chain), (number + tenant_number) % self.stream_shards, self.stream_shards)


def text_of(seed: int, size_bytes: int) -> str:
    """Return a text that compresses as little as documents of users: to half of its size."""
    return random.Random(seed).randbytes(size_bytes // 2).hex()


@functools.cache
def type_on(tenant: Tenant, stream_shard: int, stream_shards: int) -> str:
    """Return a resource type whose partition key falls on the stream shard of that number, from 0, of a new stream."""
    for number in itertools.count():
        digest = hashlib.md5(f"{tenant.tenant_id}-type-{number}".encode()).digest()
        if int.from_bytes(digest) * stream_shards >> HASH_KEY_BITS == stream_shard:
            return f"type-{number}"
    raise AssertionError


class FloodOrder(ProducerOrder, frozen=True):
    """An order to put a flood."""

    plan: FloodPlan


if __name__ == "__main__":
    main(FloodOrder)
