"""What a shard has of a tenant whose resource is erased, and whether that can be done now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.vocabulary import TenantState

AT_REST: Final = frozenset({TenantState.ACTIVE, TenantState.MOVED, TenantState.DESTROYING, TenantState.DESTROYED})


class Erasure(msgspec.Struct, frozen=True):
    """The resource to erase."""

    business_id: str
    location_id: str
    resource_type: str
    resource_id: str

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return tenant_id_of(self.business_id, self.location_id)


class Standing(msgspec.Struct, frozen=True):
    """The tenant's row on one shard, and what the shard has of the resource.

    *is_leaving*: a mover from here has begun, and runs. *export* is the file with the rows that the last restore has
    overwritten. *other_ids* are those that the resource had before or after a rename, *names* all of its type.
    """

    business_id: str
    location_id: str
    state: TenantState
    epoch: int
    move_token: int
    is_leaving: bool
    export: str | None
    has_resource: bool
    other_ids: list[str]
    names: list[str]


def obstacle_to(erasure: Erasure, standings: Mapping[str, Standing]) -> str | None:
    """Return why nothing may be erased now; None if it may. *standings* are by shard id.

    A mover or a restorer may have read what is erased after it, and write it elsewhere.
    """
    for shard_id, standing in sorted(standings.items()):
        if (standing.business_id, standing.location_id) != (erasure.business_id, erasure.location_id):
            return (
                f"{erasure.tenant_id}: expected business {erasure.business_id} at location {erasure.location_id}, got "
                f"a row of another one on shard {shard_id}; see docs/runbook/tenant-split.md"
            )
        if standing.is_leaving or standing.state not in AT_REST:
            got = "a mover" if standing.is_leaving else f"a row that is {standing.state}"
            return (
                f"{erasure.tenant_id}: expected no move, import or restore that has begun, got {got} on shard "
                f"{shard_id}; nothing was erased; let it end, or take it back (simplu-worker tenants rollback --stay "
                "--apply), and run this command again"
            )
    return None
