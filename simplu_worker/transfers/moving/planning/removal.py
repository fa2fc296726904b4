"""Whether a shard may be removed: no tenant is there, and no tenant is looked for there. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from simplu_worker.vocabulary import TenantState

LEFT = frozenset({TenantState.MOVED, TenantState.DESTROYED})


class TenantRows:
    """The rows of all tenants, as the shards have them."""

    def __init__(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        self._states: defaultdict[str, dict[str, str]] = defaultdict(dict)  # by tenant and shard
        self._left_for: defaultdict[str, dict[str, str]] = defaultdict(dict)  # the next shard, by tenant and shard
        for shard_id, row in rows:
            self._states[row["id"]][shard_id] = row["state"]
            if row["state"] == TenantState.MOVED:
                self._left_for[row["id"]][shard_id] = row["moved_to"]

    def __repr__(self) -> str:
        return f"TenantRows({len(self._states)} tenants)"

    def on(self, shard_id: str) -> list[str]:
        """Return the tenants that have not left a shard."""
        return sorted(one for one in self._states if not self._has_left(one, shard_id))

    def elsewhere(self, shard_id: str) -> list[str]:
        """Return the tenants that live, or may live, on other shards: also those without any row on *shard_id*."""
        return sorted(
            one
            for one, states in self._states.items()
            if self._has_left(one, shard_id) and any(state != TenantState.DESTROYED for state in states.values())
        )

    def led_through(self, shard_id: str, named: Mapping[str, str | None]) -> list[str]:
        """Return the tenants that are looked for on a shard; *named* are the shards that the locator names for them."""
        return sorted(one for one, name in named.items() if leads_through(name, shard_id, self._left_for.get(one, {})))

    def _has_left(self, tenant_id: str, shard_id: str) -> bool:
        return self._states[tenant_id].get(shard_id, TenantState.MOVED) in LEFT


class Removal(msgspec.Struct, frozen=True):
    """Whether a shard may be removed; *kept_by* has the reasons why not."""

    shard_id: str
    kept_by: tuple[str, ...]

    @property
    def members(self) -> dict[str, Any]:
        """The members of JSON."""
        return {"removable": not self.kept_by, "keptBy": self.kept_by}


def leads_through(named: str | None, shard_id: str, left_for: Mapping[str, str]) -> bool:
    """Return whether the way to a tenant's home from the shard that is *named* for it leads through *shard_id*.

    *left_for* has the next shard by each one that the tenant has left.
    """
    place, passed = named, set[str]()
    while place is not None and place != shard_id and place not in passed:
        passed.add(place)
        place = left_for.get(place)
    return place == shard_id


def describe_removal(
    shard_id: str, staying: list[str], routed: list[str], unknown: list[str], error: str | None = None
) -> Removal:
    """Return the verdict: tenants that are *staying*, that are *routed* there, or of which that is *unknown*."""
    reasons = []
    if staying:
        reasons.append(f"{len(staying)} tenants are still there, such as {staying[0]}: keep it")
    if routed:
        reasons.append(
            f"{len(routed)} tenants have left it, and are still looked for there, such as {routed[0]}: "
            "keep it until Citrus or the map names their new shards"
        )
    if unknown:
        reasons.append(
            f"where {len(unknown)} tenants are looked for is unknown, such as {unknown[0]}: {error}; "
            "keep it, and run the command again"
        )
    return Removal(shard_id, tuple(reasons))
