"""The home that stays, where a tenant was made on more than one shard. Pure.

Several replicas may resolve one conflict at once, each from rows read a moment ago; yet they never undo all homes. A
home is undone only if, under the lock of its row, the row is still as it was read: untouched, and as far confirmed.
Both only grow until the home is undone. So if two homes had each been undone in favour of the other, the first one
undone would have ranked above the other at that time, and it did not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.vocabulary import TenantState

# States in which the shard is the tenant's home. During a move (`incoming`, `ready`) the source shard still is.
HOME_STATES: Final = frozenset({TenantState.ACTIVE, TenantState.FENCED, TenantState.DESTROYING})


class HomeCandidate(msgspec.Struct, frozen=True):
    """A tenant's row on one shard. *is_touched*: the tenant has other writes there than those of provisioning."""

    shard_id: str
    state: TenantState
    created_at: datetime
    epoch: int = 1
    moved_to: str | None = None
    is_confirmed: bool = False
    is_touched: bool = False

    @classmethod
    def from_row(cls, shard_id: str, row: Mapping[str, Any]) -> HomeCandidate:
        """Return the candidate of a row of `find_home_candidates`."""
        return cls(
            shard_id=shard_id,
            state=TenantState(row["state"]),
            created_at=row["created_at"],
            epoch=row["epoch"],
            moved_to=row["moved_to"],
            is_confirmed=row["is_confirmed"],
            is_touched=row["is_touched"],
        )

    @property
    def is_home(self) -> bool:
        """Whether the shard is the tenant's home by its own row."""
        return self.state in HOME_STATES

    @property
    def is_unconfirmed(self) -> bool:
        """Whether the last step of provisioning is missing."""
        return self.state == TenantState.ACTIVE and not self.is_confirmed

    @property
    def may_be_undone(self) -> bool:
        """Whether undoing this home loses no data."""
        return self.state == TenantState.ACTIVE and not self.is_touched


class HomeResolution(msgspec.Struct, frozen=True):
    """The home that stays, and those to undo; none stays and none is undone if two homes have data to lose."""

    kept: HomeCandidate | None
    undone: tuple[HomeCandidate, ...] = ()


def resolve_homes(candidates: Sequence[HomeCandidate]) -> HomeResolution:
    """Return the home that stays: the touched one, else a confirmed one, else the first by time and shard id.

    If two homes have data to lose, none is undone: a person has to decide.
    """
    homes = [claimant for claimant in candidates if claimant.is_home]
    if sum(not home.may_be_undone for home in homes) > 1:
        return HomeResolution(None)
    ranked = sorted(homes, key=_rank)
    return HomeResolution(ranked[0] if ranked else None, tuple(ranked[1:]))


def _rank(home: HomeCandidate) -> tuple[bool, bool, datetime, str]:
    return home.may_be_undone, not home.is_confirmed, home.created_at, home.shard_id
