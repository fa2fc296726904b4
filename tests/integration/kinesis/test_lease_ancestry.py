from __future__ import annotations

from uuid import uuid4

import pytest

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.fleet.lease_holder import LeaseAncestry
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.leases.lease import Lease, StreamView
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, TRIM_HORIZON

pytestmark = pytest.mark.slow


GRANDPARENT = Lease("shardId-1", SHARD_END)
PARENT = Lease("shardId-2", SHARD_END, parents=frozenset({"shardId-1"}))
CHILD = Lease("shardId-3", TRIM_HORIZON, parents=frozenset({"shardId-2"}))


@pytest.mark.parametrize(
    "hidden",
    [{GRANDPARENT.lease_key}, {PARENT.lease_key}, {GRANDPARENT.lease_key, PARENT.lease_key}],
    ids=["the grandparent", "the parent", "both"],
)
async def test_ancestors_that_a_scan_does_not_show_are_found_in_the_table(dynamodb: Client, hidden: set[str]) -> None:
    table, view = LeaseTable(dynamodb, f"leases-{uuid4()}"), StreamView()
    await table.ensure()
    family = [GRANDPARENT, PARENT, CHILD]
    for lease in family:
        await table.create(lease)
    view.update([lease for lease in family if lease.lease_key not in hidden], now=0.0)
    ancestry = LeaseAncestry(table, view)
    assert not ancestry.lineage(CHILD).ancestors.keys() & hidden

    assert await ancestry.find_pending_at_parents(CHILD) == TenantSet()

    assert set(ancestry.lineage(CHILD).ancestors) == {"shardId-1", "shardId-2"}
    assert ancestry.lineage(CHILD).is_ended
