"""Which of the homes that a tenant was given stays, where it was given more than one. Pure.

Several may come to this at once, each with what it saw a moment ago, and each undoes homes by itself; yet they never
undo all of them. A home is undone only when, its row held, it is still as it was seen: untouched, and as far confirmed.
Both only ever grow, until somebody undoes it. So of two that were undone, each for the sake of the other, the one whose
undoing came first would have had to be the better one then; and it was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.operations.admission import TenantState

# In these a tenant lives on the shard. One that comes by a move (`incoming`, `ready`) still lives where it came from.
HOME_STATES: Final = frozenset({TenantState.ACTIVE, TenantState.FENCED, TenantState.DESTROYING})


class HomeCandidate(msgspec.Struct, frozen=True):
    """A tenant's row on one shard. *is_touched*: something but provisioning wrote to the tenant there."""

    shard_id: str
    state: TenantState
    created_at: datetime
    epoch: int = 1
    moved_to: str | None = None
    is_confirmed: bool = False
    is_touched: bool = False

    @classmethod
    def from_row(cls, shard_id: str, row: Mapping[str, Any]) -> HomeCandidate:
        """Return what a row of `find_claimants` says."""
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
        """Whether the tenant lives there, as far as the shard knows."""
        return self.state in HOME_STATES

    @property
    def is_unconfirmed(self) -> bool:
        """Whether provisioning was not through with it."""
        return self.state == TenantState.ACTIVE and not self.is_confirmed

    @property
    def may_be_undone(self) -> bool:
        """Whether nothing would be lost with it."""
        return self.state == TenantState.ACTIVE and not self.is_touched


class HomeResolution(msgspec.Struct, frozen=True):
    """The home that stays, and those to undo; none stays where more than one has something to lose."""

    kept: HomeCandidate | None
    undone: tuple[HomeCandidate, ...] = ()


def resolve_homes(candidates: Sequence[HomeCandidate]) -> HomeResolution:
    """Return which home stays: the one that was touched, else one that was confirmed, else the first by time and shard.

    Nothing is undone where two have something to lose: a person has to look.
    """
    homes = [claimant for claimant in candidates if claimant.is_home]
    if sum(not home.may_be_undone for home in homes) > 1:
        return HomeResolution(None)
    ranked = sorted(homes, key=_rank)
    return HomeResolution(ranked[0] if ranked else None, tuple(ranked[1:]))


def _rank(home: HomeCandidate) -> tuple[bool, bool, datetime, str]:
    return home.may_be_undone, not home.is_confirmed, home.created_at, home.shard_id
