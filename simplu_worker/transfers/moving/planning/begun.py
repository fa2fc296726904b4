"""The moves that have begun and not ended, before new ones are planned. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import msgspec

from simplu_worker.transfers.moving.planning.balance import PlannedTransfer, WeighedTenant
from simplu_worker.transfers.moving.situation import LEAVING
from simplu_worker.vocabulary import MoveStep, TenantState

FoundTenant: TypeAlias = tuple[WeighedTenant, TenantState]
"""A tenant with the shard that has a row of it, and the state of that row."""


class BegunMove(msgspec.Struct, frozen=True):
    """A row of the journal of the shard *source_id*, of a move that has not ended."""

    tenant_id: str
    source_id: str
    target_id: str
    step: str  # a `MoveStep`, or one that only a newer mover knows
    is_running: bool = False  # its command has not ended


class BegunMoves(msgspec.Struct, frozen=True):
    """What to do about moves that have begun, before all others.

    Those of *committed* have left their shard, and those of *opened* have not: both go on. Those of *taken_back* are
    undone: a rollback has begun, or the target takes no more tenants. Those of *running* are left to their commands; a
    rollback that runs is one to the shard on which its tenant stays.
    """

    committed: list[PlannedTransfer] = []
    opened: list[PlannedTransfer] = []
    taken_back: list[PlannedTransfer] = []
    running: list[PlannedTransfer] = []

    @property
    def going_on(self) -> list[PlannedTransfer]:
        """The moves that go on."""
        return [*self.committed, *self.opened]

    @property
    def expected(self) -> list[PlannedTransfer]:
        """The moves that will have ended before others are of use: those that go on here, and in other commands."""
        return [*self.going_on, *self.running]


def sort_begun_moves(
    found: Sequence[FoundTenant], moves: Iterable[BegunMove], target_ids: Collection[str]
) -> BegunMoves:
    """Return what to do about *moves*; *target_ids* are the shards that take tenants.

    Moves that nothing can end are left out: those of tenants that were destroyed, or have moved on since.
    """
    rows: defaultdict[str, dict[str, WeighedTenant]] = defaultdict(dict)
    homes: defaultdict[str, set[str]] = defaultdict(set)
    for one, state in found:
        rows[one.tenant_id][one.shard_id] = one
        if state in LEAVING:
            homes[one.tenant_id].add(one.shard_id)
    begun = BegunMoves([], [], [], [])
    for move in sorted(moves, key=lambda move: (move.tenant_id, move.source_id)):
        tenant = rows[move.tenant_id].get(move.source_id)
        if tenant is None:
            continue
        home_ids = homes[move.tenant_id]
        if move.is_running and home_ids <= {move.source_id, move.target_id}:
            stays = move.step == MoveStep.UNDOING
            begun.running.append(PlannedTransfer(tenant, move.source_id if stays else move.target_id))
        elif move.step == MoveStep.COMMITTED and home_ids <= {move.target_id}:
            arrived = rows[move.tenant_id].get(move.target_id, tenant)
            begun.committed.append(
                PlannedTransfer(msgspec.structs.replace(tenant, weight=arrived.weight), move.target_id)
            )
        elif move.step == MoveStep.OPEN and move.source_id in home_ids and move.target_id in target_ids:
            begun.opened.append(PlannedTransfer(tenant, move.target_id))
        elif move.step in {MoveStep.OPEN, MoveStep.UNDOING} and move.source_id in home_ids:
            begun.taken_back.append(PlannedTransfer(tenant, move.target_id))
    return begun


def homes_of(found: Iterable[FoundTenant]) -> list[WeighedTenant]:
    """Return the tenants on the shards that are their homes."""
    return [tenant for tenant, state in found if state in LEAVING]


def homes_after(homes: Iterable[WeighedTenant], expected: Iterable[PlannedTransfer]) -> list[WeighedTenant]:
    """Return the tenants on the shards that are their homes once the moves of *expected* have ended."""
    moved = {one.tenant.tenant_id: one for one in expected}  # an open move comes after a committed one
    return [
        *(tenant for tenant in homes if tenant.tenant_id not in moved),
        *(msgspec.structs.replace(one.tenant, shard_id=one.target_id) for one in moved.values()),
    ]
