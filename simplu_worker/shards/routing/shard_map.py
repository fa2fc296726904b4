"""Static routing: the shard of a fixed list to which a tenant's key is hashed (docs/shard-manager.md). Pure.

Source: Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm" (arXiv 1406.2294). A change of the map is
refused where it would hide a tenant's possible homes, which follow from the order of the shards: each keeps its place,
and leaves the map only after it was retired in every worker's.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

import msgspec

from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.shards.postgres.address import ShardAddress

_MULTIPLIER = 2862933555777941757
_WORD = 2**64 - 1
RETIRED_HOPS_MAX = 1000  # so many retired shards in a row come only if all shards are retired
PROBLEMS_MAX = 10  # of one kind; a map may have a hundred thousand pins


class MappedShard(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One shard of a map.

    A retired shard keeps its place and takes no keys; keys may live past one that *was_retired*.
    """

    shard_id: str
    connection_string: str
    replica_connection_string: str | None = None
    retired: bool = False
    was_retired: bool = False

    def __repr__(self) -> str:
        return f"MappedShard({self.shard_id!r}, retired={self.retired})"

    @property
    def has_been_retired(self) -> bool:
        """Whether its place took no keys at some time."""
        return self.retired or self.was_retired

    @property
    def address(self) -> ShardAddress:
        """The address of the shard."""
        standby = self.replica_connection_string
        return ShardAddress(self.shard_id, self.connection_string, standby_string=standby)

    @property
    def addresses(self) -> list[ShardAddress]:
        """The addresses of the shard and of its standby (`replicaConnectionString`), if any."""
        strings = (self.connection_string, self.replica_connection_string)
        return [ShardAddress(self.shard_id, string) for string in strings if string is not None]


class ShardMap(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The shards in their order, and the tenants pinned to a shard.

    *all_in_place* is a person's word: each tenant has a row where this map places it, or was never made.
    """

    shards: tuple[MappedShard, ...]
    tenants: dict[str, str] = {}
    all_in_place: bool = False

    def shard(self, shard_id: str) -> MappedShard | None:
        """Return the shard with an id, or None."""
        return next((shard for shard in self.shards if shard.shard_id == shard_id), None)

    @property
    def retired_ids(self) -> frozenset[str]:
        """The shards that get no more tenants."""
        return frozenset(shard.shard_id for shard in self.shards if shard.retired)

    def shard_of(self, key: str) -> MappedShard:
        """Return the shard that *key* is pinned to or hashed to."""
        pin = self.tenants.get(key)
        if pin is not None and (pinned := self.shard(pin)) is not None:
            return pinned
        for attempt in range(RETIRED_HOPS_MAX):
            shard = self.shards[jump_hash(hash_of(key, attempt), len(self.shards))]
            if not shard.retired:
                return shard
        return self.shards[jump_hash(hash_of(key), len(self.shards))]

    def possible_homes(self, key: str) -> list[MappedShard]:
        """Return the shards on which *key* may live: its shard now, and that for every smaller number of shards.

        A shard that is or was retired counts, and the first one after it. With *all_in_place* its shard alone
        (`tests/model/home_model.py`).
        """
        places = [self.shard_of(key)]
        if self.all_in_place:
            return places
        active = next(
            (place for place, shard in enumerate(self.shards) if not shard.has_been_retired), len(self.shards)
        )
        buckets: list[list[int]] = []  # by attempt: the buckets of the key while the number of shards grew
        for count in range(len(self.shards), active, -1):
            places += self._hops(key, count, buckets)
        places += self.shards[:active]  # all were retired: the keys went from one to the other in any order
        return list({shard.shard_id: shard for shard in places}.values())

    def _hops(self, key: str, count: int, buckets: list[list[int]]) -> Iterator[MappedShard]:
        """Yield the shards that *key* was hashed to in a map of *count* shards: those ever retired, then one more."""
        for attempt in range(RETIRED_HOPS_MAX):
            if attempt == len(buckets):
                buckets.append(buckets_of(hash_of(key, attempt), len(self.shards)))
            shard = self.shards[buckets[attempt][bisect_left(buckets[attempt], count) - 1]]
            yield shard
            if not shard.has_been_retired:
                return

    def without_pins(self) -> ShardMap:
        """Return this map without pinned tenants."""
        return ShardMap(shards=self.shards)


def hash_of(key: str, attempt: int = 0) -> int:
    """Return 64 bits of the MD5 of *key*; after *attempt* retired shards, of *key* with `#attempt`."""
    text = f"{key}#{attempt}" if attempt else key
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8])


def jump_hash(key: int, count: int) -> int:
    """Return the jump consistent hash of a 64-bit *key*."""
    return buckets_of(key, count)[-1]


def buckets_of(key: int, count: int) -> list[int]:
    """Return, ascending, the buckets that *key* had while their number grew to *count*."""
    bucket, candidate = -1, 0
    passed = []
    while candidate < count:
        bucket = candidate
        passed.append(bucket)
        key = (key * _MULTIPLIER + 1) & _WORD
        candidate = int((bucket + 1) * (float(1 << 31) / ((key >> 33) + 1)))
    return passed


def parse_shard_map(content: bytes, allowed_hosts: tuple[str, ...]) -> ShardMap:
    """Return the map of a `SHARD_MAP_FILE`; raise `ConfigurationError` with every problem, without secrets."""
    try:
        shard_map = msgspec.json.decode(content, type=ShardMap)
    except msgspec.DecodeError as exc:
        raise ConfigurationError(f"SHARD_MAP_FILE: {_shown(str(exc), instead='an unknown member')}") from None
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"SHARD_MAP_FILE: expected UTF-8, got another byte at {exc.start}") from None
    problems = list(_problems(shard_map, allowed_hosts))
    if problems:
        raise ConfigurationError(*(f"SHARD_MAP_FILE: {problem}" for problem in problems))
    return shard_map


def _problems(shard_map: ShardMap, allowed_hosts: tuple[str, ...]) -> list[str]:
    problems = []
    counts = Counter(shard.shard_id for shard in shard_map.shards)
    if not counts:
        problems.append("expected at least one shard")
    elif all(shard.retired for shard in shard_map.shards):
        problems.append("expected at least one shard that is not retired")
    problems += [f"shard {name}: listed twice" for name in sorted(counts) if counts[name] > 1]
    problems += first_problems(
        [
            f"tenant {_shown(tenant)}: pinned to {_shown(name)}, which is not listed"
            for tenant, name in shard_map.tenants.items()
            if name not in counts
        ]
    )
    # Two shards in one database would be one shard under two ids. A database of another shard refuses by its own id.
    first: dict[str, str] = {}
    for shard in shard_map.shards:
        if (name := first.setdefault(shard.address.place, shard.shard_id)) != shard.shard_id:
            problems.append(f"shard {shard.shard_id}: expected a database of its own, got that of shard {name}")
    for address in [address for shard in shard_map.shards for address in shard.addresses]:
        try:
            address.validate(allowed_hosts)
        except PermanentError as exc:
            problems.append(str(exc))
    return problems


def _shown(text: str, *, instead: str = "a name") -> str:
    return f"{instead} with @, which is not shown because it may contain a password" if "@" in text else text


def first_problems(problems: list[str], count: int = PROBLEMS_MAX) -> list[str]:
    """Return the first *count* of *problems*, and the number of the others."""
    more = len(problems) - count
    return problems if more <= 0 else [*problems[:count], f"and {more} more like that"]


class MapChange(msgspec.Struct, frozen=True):
    """The shards that a new map adds, readdresses and removes."""

    added: tuple[MappedShard, ...] = ()
    readdressed: tuple[MappedShard, ...] = ()
    removed: tuple[MappedShard, ...] = ()


def change_of(old: ShardMap, new: ShardMap) -> MapChange:
    """Return the changes from *old* to *new*."""
    before = {shard.shard_id: shard for shard in old.shards}
    after = {shard.shard_id for shard in new.shards}
    return MapChange(
        added=tuple(shard for shard in new.shards if shard.shard_id not in before),
        readdressed=tuple(
            shard
            for shard in new.shards
            if shard.shard_id in before and shard.addresses != before[shard.shard_id].addresses
        ),
        removed=tuple(shard for shard in old.shards if shard.shard_id not in after),
    )


def refusals_of(old: ShardMap, new: ShardMap) -> list[str]:
    """Return why *new* may not replace *old* in a running worker; empty if it may."""
    places = {shard.shard_id: place for place, shard in enumerate(old.shards, start=1)}
    moved = [
        f"shard {shard.shard_id}: expected at place {places[shard.shard_id]} of the list, as before, got {place}; "
        'add shards at the end only, and mark one that is to take no more tenants "retired"'
        for place, shard in enumerate(new.shards, start=1)
        if places.get(shard.shard_id, place) != place
    ]
    left = [
        f'shard {shard.shard_id}: expected, as it was not marked "retired" before; '
        "mark it, reload every worker, move its tenants, and leave it out then"
        for shard in change_of(old, new).removed
        if not shard.retired
    ]
    forgotten = [
        f'shard {after.shard_id}: expected "wasRetired": true, as shard {before.shard_id} was retired in its place; '
        "mark it, as tenants that were created meanwhile may be on other shards"
        for place, (before, after) in enumerate(zip(old.shards, new.shards, strict=False), start=1)
        if places.get(after.shard_id, place) == place and before.has_been_retired and not after.has_been_retired
    ]
    return first_problems(moved) + first_problems(left) + first_problems(forgotten)
