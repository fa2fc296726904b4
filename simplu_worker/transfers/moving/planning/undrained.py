"""Which tenants to move back to a shard that was drained. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from simplu_worker.transfers.moving.planning.balance import PlannedTransfer, WeighedTenant
from simplu_worker.transfers.moving.planning.begun import BegunMoves


class Undrained(msgspec.Struct, frozen=True):
    """The moves back of *plan*, after those of *begun*; the tenants of *moved_on* have left their new shards since."""

    begun: BegunMoves
    plan: list[PlannedTransfer]
    moved_on: list[WeighedTenant]


def plan_undrain(
    homes: Iterable[WeighedTenant],
    begun: BegunMoves,
    shard_id: str,
    drained: Mapping[str, str],
    stopped: Collection[str],
) -> Undrained:
    """Return the moves of tenants back to *shard_id*.

    *drained* has the shards to which tenants have moved, *stopped* the tenants of moves of the drain that have not
    ended. Of these the ones that have committed end first, and the others are taken back; moves of other commands
    stay as they are.
    """

    def is_own(one: PlannedTransfer) -> bool:
        return one.tenant.shard_id == shard_id and one.tenant.tenant_id in stopped

    committed = [one for one in begun.committed if is_own(one)]
    own = BegunMoves(
        committed=committed,
        taken_back=[one for one in (*begun.opened, *begun.taken_back) if is_own(one)],
        running=begun.running,
    )
    settled = {one.tenant.tenant_id for one in begun.expected}
    left = [one for one in homes if one.tenant_id in drained and one.tenant_id not in settled]
    back = [one for one in left if one.shard_id == drained[one.tenant_id]]
    arriving = [msgspec.structs.replace(one.tenant, shard_id=one.target_id) for one in committed]
    return Undrained(
        own,
        [PlannedTransfer(one, shard_id) for one in sorted([*back, *arriving])],
        [one for one in left if one.shard_id not in {shard_id, drained[one.tenant_id]}],
    )
