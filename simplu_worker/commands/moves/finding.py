"""What a request to move a tenant comes to: by the same rules for a plan and for the move itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from simplu_worker.assembly.shards import Shards
from simplu_worker.shards.settling.rows import Departure, read_departure
from simplu_worker.transfers.moving.planning.places import TenantPlaces, find_places
from simplu_worker.transfers.moving.planning.readiness import check_shards
from simplu_worker.transfers.moving.types import Move
from simplu_worker.vocabulary import MoveStep


class FoundMove(msgspec.Struct, frozen=True):
    """A move to be done. *goes_on*: a command has begun it; *has_left*: its tenant has no way back but to arrive."""

    move: Move
    goes_on: bool
    has_left: bool


class FinishedMove(msgspec.Struct, frozen=True, rename="camel"):
    """A move that an earlier command has finished, with its certificate as the journal has it.

    *rows_kept*: no cleanup has deleted the former rows. *is_equal*: both shards had the same ones.
    """

    tenant: str
    source_shard: str
    target_shard: str
    finished_at: datetime
    rows_kept: bool
    is_equal: bool
    certificate: dict[str, Any]

    def describe(self) -> str:
        """Return the move for people."""
        kept = "its former rows are still there" if self.rows_kept else "its former rows are cleaned up"
        if not self.is_equal:
            kept += "; those on its new shard were other ones when it arrived: compare them with a backup"
        return (
            f"{self.tenant}: {self.source_shard} → {self.target_shard}: finished at "
            f"{self.finished_at.isoformat(timespec='seconds')} by an earlier command; {kept}"
        )


async def find_move(
    shards: Shards, tenant_id: str, target_id: str, places: TenantPlaces | None = None
) -> FoundMove | FinishedMove:
    """Return the move of a tenant to the shard *target_id*. Whether that shard has room is not asked.

    Without *places* every shard is asked for the tenant.

    Raises `PermanentError` if it cannot be moved there, and `RetryableError` if a shard does not answer.
    """
    if places is None:
        places = await find_places(shards.locator, shards.pools, tenant_id)
    source_id, home = places.source_for(target_id), places.home()
    move = Move(tenant_id, source_id, target_id)
    if home == source_id:  # a tenant that has left its shard has to arrive, whatever the other one is like
        await check_shards(shards.locator, shards.pools, tenant_id, source_id, target_id)
        return FoundMove(move, goes_on=target_id in places.arriving_on(), has_left=False)
    if home == target_id:
        async with shards.pools.pool_of(source_id).connection() as connection:
            departure = await read_departure(connection, tenant_id)
        if departure is not None and departure.target_shard_id == target_id and _is_finished(departure):
            certificate = departure.detail["certificate"]
            at = datetime.fromisoformat(certificate["at"])
            is_kept = departure.step == MoveStep.DONE
            return FinishedMove(tenant_id, source_id, target_id, at, is_kept, departure.is_equal, certificate)
    return FoundMove(move, goes_on=True, has_left=True)


def _is_finished(departure: Departure) -> bool:
    """Return whether a move has its certificate, and equal rows or no former ones any more to compare."""
    if not departure.detail.get("certificate"):
        return False
    is_equal = departure.step == MoveStep.DONE and departure.is_equal
    return is_equal or departure.step in {MoveStep.CLEANING, MoveStep.CLEANED}
