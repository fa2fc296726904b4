"""Where a tenant that is to move has rows, and so the shard that it moves from. Pure, but for the question itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards
from simplu_worker.transfers.moving.situation import GONE, LEAVING, ON_THE_WAY
from simplu_worker.vocabulary import TenantState


class TenantPlaces:
    """The states of one tenant by shard, and the shards that did not answer."""

    def __init__(
        self,
        tenant_id: str,
        states: Mapping[str, TenantState],
        moved_to: Mapping[str, str | None],
        silent: Collection[str] = (),
    ) -> None:
        self.tenant_id = tenant_id
        self.states = states
        self.moved_to = moved_to
        self.silent = silent

    def __repr__(self) -> str:
        return f"TenantPlaces({self.tenant_id}, {dict(self.states)}, silent={list(self.silent)})"

    def home(self) -> str | None:
        """Return the shard with the tenant's home; None if it has left one and not arrived on another.

        Raises `PermanentError` if there is no home to be found, or more than one.
        """
        homes = sorted(shard_id for shard_id, state in self.states.items() if state in LEAVING)
        if len(homes) > 1:
            raise PermanentError(
                f"{self.tenant_id}: expected one home, got {' and '.join(homes)}; see docs/runbook/tenant-split.md"
            )
        if homes:
            return homes[0]
        if (gone := self.destroyed_on()) is not None:
            copies = "; run: simplu-worker tenants rollback --apply, to delete its copy" if self.arriving_on() else ""
            raise PermanentError(
                f"{self.tenant_id}: expected a tenant to move, got one that is destroyed on {gone}{copies}"
            )
        if self.silent:
            raise RetryableError(
                f"{self.tenant_id}: expected an answer of every shard, got none of {', '.join(sorted(self.silent))}; "
                "nothing was done; see whether they run, and run the same command again"
            )
        if not self._departures():
            raise PermanentError(f"{self.tenant_id}: expected a tenant of some shard, got none; run: tenants provision")
        return None

    def source_for(self, target_id: str) -> str:
        """Return the shard that the tenant moves from when *target_id* is to be its home.

        That is its home; or, if it has left one for the target, that one. Raises as `home` does.
        """
        home = self.home()
        if home is not None and (others := [one for one in self.arriving_on() if one != target_id]):
            raise PermanentError(
                f"{self.tenant_id}: expected no unfinished move to another shard, got a copy on "
                f"{' and '.join(others)}; the tenant stays on shard {home}; run: simplu-worker tenants rollback "
                f"--stay --apply, to delete the copy, or tenants move to {others[0]}, to end that move"
            )
        if home is not None and home != target_id:
            return home
        left = [shard_id for shard_id, to in self._departures().items() if to == target_id]
        if not left:
            where = f"its home is shard {target_id} already" if home else "it is on its way to another shard"
            raise PermanentError(f"{self.tenant_id}: expected another shard to move to, got {target_id}: {where}")
        return left[-1]

    def destroyed_on(self) -> str | None:
        """Return the shard on which the tenant was destroyed; None if it has a home, or has left one."""
        gone = sorted(shard_id for shard_id, state in self.states.items() if state in GONE)
        is_elsewhere = self._departures() or any(state in LEAVING for state in self.states.values())
        return gone[0] if gone and not is_elsewhere else None

    def arriving_on(self) -> list[str]:
        """Return the shards with a copy of the tenant that is not its home."""
        return sorted(shard_id for shard_id, state in self.states.items() if state in ON_THE_WAY)

    def _departures(self) -> dict[str, str | None]:
        return {one: self.moved_to[one] for one, state in self.states.items() if state is TenantState.MOVED}


async def find_places(locator: Locator, pools: Pools, tenant_id: str) -> TenantPlaces:
    """Ask every shard for the tenant. Raises the errors of `Locator.list_shards`."""
    survey = await fetch_from_all_shards(locator, pools, QUERIES["find_tenants"], [tenant_id])
    silent = survey.silent_shard_ids
    return places_of(survey.rows, silent).get(tenant_id, TenantPlaces(tenant_id, {}, {}, silent))


def places_of(rows: Iterable[tuple[str, Mapping[str, Any]]], silent: Collection[str] = ()) -> dict[str, TenantPlaces]:
    """Return the places of each tenant in *rows*, of any tenants with their shards."""
    states: defaultdict[str, dict[str, TenantState]] = defaultdict(dict)
    moved_to: defaultdict[str, dict[str, str | None]] = defaultdict(dict)
    for shard_id, row in rows:
        states[row["id"]][shard_id] = TenantState(row["state"])
        moved_to[row["id"]][shard_id] = row["moved_to"]
    return {one: TenantPlaces(one, of_one, moved_to[one], silent) for one, of_one in states.items()}
