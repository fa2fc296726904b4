"""Static routing: which shard of a fixed list a tenant's key falls on (contract §7). Pure.

Source: Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm" (arXiv 1406.2294).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from simplu_worker.errors import ConfigurationError, RefusedError
from simplu_worker.shards.address import ShardAddress

_MULTIPLIER = 2862933555777941757
_WORD = 2**64 - 1
RETIRED_HOPS_MAX = 1000  # the chance to meet only retired shards so often is nil unless all are retired


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
    def addresses(self) -> list[ShardAddress]:
        """Where the shard and its replica, if any, are."""
        strings = (self.connection_string, self.replica_connection_string)
        return [
            ShardAddress(shard_id=self.shard_id, connection_string=string) for string in strings if string is not None
        ]


class ShardMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shards in their order, which must only grow at its end, and tenants pinned to one of them."""

    shards: tuple[MappedShard, ...]
    tenants: dict[str, str] = {}

    def shard(self, shard_id: str) -> MappedShard | None:
        """Return the shard of that id."""
        return next((shard for shard in self.shards if shard.shard_id == shard_id), None)

    def place(self, key: str) -> MappedShard:
        """Return the shard that *key* is pinned to or falls on."""
        pinned = self.shard(self.tenants.get(key, ""))
        return pinned or self._fall(key, len(self.shards))

    def homes(self, key: str) -> list[MappedShard]:
        """Return where *key* may live: its place now, and those it had for every smaller number of shards."""
        places = [self.place(key), *(self._fall(key, count) for count in range(len(self.shards), 0, -1))]
        return list({shard.shard_id: shard for shard in places}.values())

    def _fall(self, key: str, count: int) -> MappedShard:
        if all(shard.retired for shard in self.shards[:count]):
            return self.shards[jump(key, count)]
        attempt = 0
        while True:
            shard = self.shards[jump(f"{key}#{attempt}" if attempt else key, count)]
            if not shard.retired or attempt >= RETIRED_HOPS_MAX:
                return shard
            attempt += 1


def jump(key: str, count: int) -> int:
    """Return the bucket, of *count*, that *key* falls on: over the first 8 bytes, big-endian, of its MD5."""
    return jump_hash(int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest()[:8]), count)


def jump_hash(key: int, count: int) -> int:
    """Return the jump consistent hash of a 64-bit *key*: when *count* grows by one, 1/count of the keys move."""
    bucket, candidate = -1, 0
    while candidate < count:
        bucket = candidate
        key = (key * _MULTIPLIER + 1) & _WORD
        candidate = int((bucket + 1) * (float(1 << 31) / ((key >> 33) + 1)))
    return bucket


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
    ids = [shard.shard_id for shard in shard_map.shards]
    if not ids:
        problems.append("expected at least one shard")
    elif all(shard.retired for shard in shard_map.shards):
        problems.append("expected at least one shard that is not retired")
    problems += [f"shard {name}: listed twice" for name in sorted({name for name in ids if ids.count(name) > 1})]
    problems += [
        f"tenant {tenant}: pinned to {name}, which is not listed"
        for tenant, name in shard_map.tenants.items()
        if name not in ids
    ]
    for address in [address for shard in shard_map.shards for address in shard.addresses]:
        try:
            address.checked(allowed_hosts)
        except RefusedError as exc:
            problems.append(str(exc))
    return problems
