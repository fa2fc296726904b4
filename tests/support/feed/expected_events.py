"""What a receiver has to hold for true in the end, by the shards' logs alone; no code of the worker's feed is used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import asyncpg
from support.feed.follower import Event, Follower

SHOWN: Final = 5  # differences of a kind
LOG_SQL: Final = """
SELECT
    log_batches.batch_id, log_batches.kind::text AS batch_kind, log_batches.origins[1] AS batch_origin,
    log_batches.epoch,
    coalesce(log_rows.position, 0) AS position, log_rows.kind::text AS kind,
    log_batches.types[log_rows.type_at] AS type, log_batches.origins[log_rows.origin_at] AS origin,
    simplu_id(log_rows.resource) AS resource_id, CASE WHEN log_rows.kind <> 'm' THEN simplu_id(log_rows.request) END
        AS request,
    log_outcomes.error IS NOT NULL AS is_failed, tenants.id AS tenant_id
FROM log_batches
LEFT JOIN log_rows USING (batch_id)
LEFT JOIN log_outcomes USING (batch_id, position)
LEFT JOIN tenants ON tenants.number = coalesce(log_rows.tenant_no, log_batches.tenants[1])
WHERE log_batches.batch_id > 0 AND ($1::text IS NULL OR tenants.id = $1)
"""
REPLACED: Final = "tenant.replaced"
TYPES: Final = {"c": "created", "u": "updated", "p": "patched", "d": "deleted"}


class Change(NamedTuple):
    shard: str
    batch: int
    place: int
    type: str
    tenant: str
    key: str
    request: str | None

    @property
    def identity(self) -> tuple[str, str, str, str, str | None]:
        return self.shard, f"{self.batch}-{self.place}", self.type, self.key, self.request


class ShardLogs:
    """The changes in all logs; those of a tenant that comes back to a shard are kept before its move drops them."""

    def __init__(self) -> None:
        self._kept: set[Change] = set()
        self._arrivals: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)  # batch and epoch

    async def keep(self, shard: str, url: str, tenant_id: str) -> None:
        self._kept |= await self._read(shard, url, tenant_id)

    async def changes(self, urls: Mapping[str, str]) -> list[Change]:
        found = set(self._kept)
        for shard, url in urls.items():
            found |= await self._read(shard, url, None)
        return sorted(found, key=lambda one: (self._epoch(one), one.batch, one.place))

    def _epoch(self, change: Change) -> int:
        arrivals = self._arrivals[change.shard, change.tenant]
        return max((epoch for batch, epoch in arrivals if batch <= change.batch), default=0)

    async def _read(self, shard: str, url: str, tenant_id: str | None) -> set[Change]:
        connection = await asyncpg.connect(url, timeout=10, command_timeout=120)
        try:
            rows = await connection.fetch(LOG_SQL, tenant_id)
        finally:
            await connection.close()
        for row in rows:
            if row["batch_kind"] == "a":
                self._arrivals[shard, row["tenant_id"]].add((row["batch_id"], row["epoch"]))
        return {one for row in rows for one in changes_of(shard, row)}


def changes_of(shard: str, row: Any) -> Iterator[Change]:
    kind, tenant = row["kind"], row["tenant_id"]

    def change(name: str, key: str = f"{tenant}/{row['type']}/{row['resource_id']}") -> Change:
        return Change(shard, row["batch_id"], row["position"], f"simplu.{name}", tenant, key, row["request"])

    if row["batch_kind"] == "r" and row["batch_origin"] in {"unread", "restore"}:
        yield change(REPLACED, tenant)
    elif row["batch_kind"] == "a":
        yield change("tenant.moved", tenant)
    elif kind == "m" and row["origin"] == "creation":
        yield change("tenant.created", tenant)
        yield change("resource.created")
    elif kind == "m":
        yield change("resource.changed")
    elif kind is not None and kind.lower() in TYPES and not row["is_failed"]:
        yield change(f"resource.{TYPES[kind.lower()]}")


def find_differences(
    name: str,
    follower: Follower,
    changes: Sequence[Change],
    number_of: Callable[[str], int | None],
    gone_back: AbstractSet[str] = frozenset(),
) -> list[str]:
    """Return what the receiver *name* holds beside *changes*, or lacks of them, and what came in another order.

    A change before `tenant.replaced` may be missing: it was deleted before it was read. *number_of* is the number of an
    operation in the order in which its producer put those of a resource. On the shards *gone_back* a standby was
    promoted that nothing waited for: events that it took back may come again behind those of a shard to which the
    tenant has moved meanwhile, in an order of their own. A receiver that had read of the promotion first, in another
    stream shard, dropped such an event as late when it came the first time.
    """
    wanted = {one.identity: rank for rank, one in enumerate(changes)}
    ranks: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    numbers: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    held: set[tuple[str, str, str, str, str | None]] = set()
    undone_once = follower.taken_back.keys() | follower.late.keys()
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for event in follower.holding.values():
        identity = (event.shard, event.position, event.type, event.key, event.request)
        if identity in held:
            found["under two ids"].append(event)
        held.add(identity)
        if identity not in wanted:
            found["in no log"].append(event)
            continue
        line = event.key, event.shard if event.shard in gone_back and event.id in undone_once else ""
        if event.type != f"simplu.{REPLACED}":  # whoever is told reads again, as late as a clean-up comes
            _note_order(ranks[line], wanted[identity], event, found["out of order"])
        if event.request is not None and (number := number_of(event.request)) is not None:
            _note_order(numbers[line], number, event, found["in another order than put"])
    replaced = {(one.shard, one.tenant): one.batch for one in changes if one.type == f"simplu.{REPLACED}"}
    found["missing"] = [
        one.identity
        for one in changes
        if one.identity not in held and one.batch >= replaced.get((one.shard, one.tenant), 0)
    ]
    found["gaps"] = list(follower.gaps)
    return [f"{name}: {len(several)} {what}, such as {several[:SHOWN]}" for what, several in found.items() if several]


def _note_order(so_far: list[int], rank: int, event: Event, wrong: list[Any]) -> None:
    if so_far and so_far[-1] >= rank:
        wrong.append(event)
    so_far.append(rank)
