"""Static routing: which shard of a fixed list a tenant's key falls on (contract §7). Pure.

Source: Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm" (arXiv 1406.2294).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.shards.postgres.address import ShardAddress

_MULTIPLIER = 2862933555777941757
_WORD = 2**64 - 1
RETIRED_HOPS_MAX = 1000  # the chance to meet only retired shards so often is nil unless all are retired
PROBLEMS_MAX = 10  # of one kind; a map may have a hundred thousand pins


class MappedShard(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One shard of a map. A retired one keeps its place in the list and takes no keys."""

    shard_id: str
    connection_string: str
    replica_connection_string: str | None = None
    retired: bool = False

    def __repr__(self) -> str:
        return f"MappedShard({self.shard_id!r}, retired={self.retired})"

    @property
    def address(self) -> ShardAddress:
        """Where the shard is."""
        return ShardAddress(shard_id=self.shard_id, connection_string=self.connection_string)

    @property
    def standby_address(self) -> ShardAddress | None:
        """Where its replica is."""
        string = self.replica_connection_string
        return None if string is None else ShardAddress(shard_id=self.shard_id, connection_string=string)

    @property
    def addresses(self) -> list[ShardAddress]:
        """Where the shard and its replica, if any, are."""
        return [address for address in (self.address, self.standby_address) if address is not None]


class Placement(msgspec.Struct, frozen=True):
    """Where a key goes, and the way it came there."""

    shard: MappedShard
    is_pinned: bool = False
    retired: tuple[MappedShard, ...] = ()  # the shards it fell on before, in turn


class ShardMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shards in their order, which must only grow at its end, and tenants pinned to one of them."""

    shards: tuple[MappedShard, ...]
    tenants: dict[str, str] = {}

    def shard(self, shard_id: str) -> MappedShard | None:
        """Return the shard of that id."""
        return next((shard for shard in self.shards if shard.shard_id == shard_id), None)

    def shard_of(self, key: str) -> MappedShard:
        """Return the shard that *key* is pinned to or falls on."""
        return self.placement(key).shard

    def placement(self, key: str) -> Placement:
        """Return the shard that *key* is pinned to or falls on, and the way it came there."""
        pin = self.tenants.get(key)
        if pin is not None and (pinned := self.shard(pin)) is not None:
            return Placement(pinned, is_pinned=True)
        retired: list[MappedShard] = []
        for attempt in range(RETIRED_HOPS_MAX):
            shard = self.shards[jump_hash(hash_of(key, attempt), len(self.shards))]
            if not shard.retired:
                return Placement(shard, retired=tuple(retired))
            retired.append(shard)
        return Placement(retired[0])

    def possible_homes(self, key: str) -> list[MappedShard]:
        """Return where *key* may live: its place now, and those it had for every smaller number of shards.

        Each shard that is retired now was none once: the key's place before it, and the ones after it, count as well.
        """
        places = [self.shard_of(key)]
        active = next((place for place, shard in enumerate(self.shards) if not shard.retired), len(self.shards))
        ways: list[list[int]] = []  # by attempt: the buckets that it had while the number of shards grew
        for count in range(len(self.shards), active, -1):
            places += self._hops(key, count, ways)
        places += self.shards[:active]  # all of them retired: the keys went from one to the other in any order
        return list({shard.shard_id: shard for shard in places}.values())

    def _hops(self, key: str, count: int, ways: list[list[int]]) -> Iterator[MappedShard]:
        for attempt in range(RETIRED_HOPS_MAX):
            if attempt == len(ways):
                ways.append(buckets_of(hash_of(key, attempt), len(self.shards)))
            shard = self.shards[ways[attempt][bisect_left(ways[attempt], count) - 1]]
            yield shard
            if not shard.retired:
                return

    def with_shard_count(self, count: int) -> ShardMap:
        """Return this map with *count* shards: the first ones of it, or new ones at its end, that are nowhere."""
        taken = {shard.shard_id for shard in self.shards}
        names = (f"new-{number}" for number in range(1, count + len(taken) + 1))
        free = (name for name in names if name not in taken)
        new = (MappedShard(shard_id=next(free), connection_string="") for _ in range(count - len(self.shards)))
        return ShardMap(shards=(*self.shards[:count], *new), tenants=self.tenants)


def bucket_of(key: str, count: int) -> int:
    """Return the bucket, of *count*, that *key* falls on: over the first 8 bytes, big-endian, of its MD5."""
    return jump_hash(hash_of(key), count)


def hash_of(key: str, attempt: int = 0) -> int:
    """Return the 64 bits of *key* that are hashed on; after *attempt* retired shards, those of it with `#attempt`."""
    text = f"{key}#{attempt}" if attempt else key
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8])


def jump_hash(key: int, count: int) -> int:
    """Return the jump consistent hash of a 64-bit *key*: when *count* grows by one, 1/count of the keys move."""
    return buckets_of(key, count)[-1]


def buckets_of(key: int, count: int) -> list[int]:
    """Return the buckets, ascending, that a 64-bit *key* had in turn while their number grew from one to *count*."""
    bucket, candidate = -1, 0
    passed = []
    while candidate < count:
        bucket = candidate
        passed.append(bucket)
        key = (key * _MULTIPLIER + 1) & _WORD
        candidate = int((bucket + 1) * (float(1 << 31) / ((key >> 33) + 1)))
    return passed


def parse_shard_map(content: bytes, allowed_hosts: tuple[str, ...]) -> ShardMap:
    """Return the map of a `SHARD_MAP_FILE`; raise `ConfigurationError` with every problem, none with a secret."""
    try:
        shard_map = msgspec.json.decode(content, type=ShardMap)
    except msgspec.DecodeError as exc:
        raise ConfigurationError(f"SHARD_MAP_FILE: {exc}") from None
    problems = list(_problems(shard_map, allowed_hosts))
    if problems:
        raise ConfigurationError(*(f"SHARD_MAP_FILE: {problem}" for problem in problems))
    return shard_map


def read_shard_map(path: Path, allowed_hosts: tuple[str, ...]) -> ShardMap:
    """Read and check the map at *path*."""
    try:
        return parse_shard_map(path.read_bytes(), allowed_hosts)
    except OSError as exc:
        raise ConfigurationError(f"SHARD_MAP_FILE: {path}: {exc.strerror}") from None


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
            f"tenant {tenant}: pinned to {name}, which is not listed"
            for tenant, name in shard_map.tenants.items()
            if name not in counts
        ]
    )
    # Two shards in one database would be one shard with two places; of another's, the database itself says whose it is.
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


def first_problems(problems: list[str], count: int = PROBLEMS_MAX) -> list[str]:
    """Return the first *count* of *problems*, and how many more there are."""
    more = len(problems) - count
    return problems if more <= 0 else [*problems[:count], f"and {more} more like that"]
