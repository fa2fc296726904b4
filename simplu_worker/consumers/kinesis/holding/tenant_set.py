"""Sets of tenants in bounded memory, and their form in a lease row. Pure.

Up to NAMES_MAX tenants are kept by name; beyond that by slot: one bit of a bitmap, shared by all tenants with the same
checksum. A set never forgets a tenant, so the worst case is one that waits without need.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.stream import positions

NAMES_MAX: Final = 1000
SLOT_COUNT: Final = 2**20  # 128 KiB; 30,000 held tenants of a shard that is down keep 3 % of the others waiting
ROW_SLOT_COUNT: Final = 2**15  # at most 5.5 kB of a lease row; every renewal pays for the whole row
ENCODED_NAMES_MAX: Final = 200
NAME_PREFIX: Final = "tenant:"
BITMAP_PREFIX: Final = "slots:"


class TenantSet:
    """A set of tenant ids: all names, or all slots.

    Combinations treat a slot as all its tenants, and have the larger size.
    """

    __slots__ = ("_bitmap", "_mask", "_names")

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._bitmap: bytearray | None = None  # slot n is bit n % 8 of byte n // 8; never without a bit
        self._mask = SLOT_COUNT - 1
        for tenant_id in names:
            self.add(tenant_id)

    def __contains__(self, tenant_id: str) -> bool:
        # Runs for every record that is read: no avoidable call.
        bitmap = self._bitmap
        if bitmap is None:
            return tenant_id in self._names
        slot = zlib.crc32(tenant_id.encode()) & self._mask
        return bitmap[slot >> 3] >> (slot & 7) & 1 == 1

    def __len__(self) -> int:
        """Return the number of names, or of slots in use."""
        return len(self._names) if self._bitmap is None else self._to_bits().bit_count()

    def __bool__(self) -> bool:
        return self._bitmap is not None or bool(self._names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TenantSet):
            return NotImplemented
        return self._names == other._names and self._bitmap == other._bitmap

    __hash__ = None  # type: ignore[assignment]  # mutable

    @property
    def has_names(self) -> bool:
        """Whether the set contains names, not slots."""
        return self._bitmap is None

    @property
    def names(self) -> frozenset[str]:
        """The tenants at this moment; empty for slots."""
        return frozenset(self._names)

    def add(self, tenant_id: str) -> None:
        """Add a tenant. The first one beyond NAMES_MAX turns all names into slots."""
        if self._bitmap is None:
            self._names.add(tenant_id)
            if len(self._names) > NAMES_MAX:
                self._set_bitmap(*_bitmap_of_names(self._names))
        else:
            slot = zlib.crc32(tenant_id.encode()) & self._mask
            self._bitmap[slot >> 3] |= 1 << (slot & 7)

    def discard(self, tenant_id: str) -> None:
        """Remove a tenant by name. A slot stays, as other tenants may share it."""
        self._names.discard(tenant_id)

    def update(self, other: TenantSet) -> None:
        """Add all tenants of *other*."""
        if other._bitmap is None:
            for tenant_id in other._names:
                self.add(tenant_id)
        elif self:
            bits, size = _bitmap_of_names(self._names) if self._bitmap is None else (self._to_bits(), self._mask + 1)
            size, mine, others = _widen(bits, size, other._to_bits(), other._mask + 1)
            self._set_bitmap(mine | others, size)
        else:
            self._set_bitmap(other._to_bits(), other._mask + 1)

    def difference(self, other: TenantSet) -> TenantSet:
        """Return the tenants that are not in *other*; names remove nothing from slots."""
        if self._bitmap is None:
            return TenantSet(tenant_id for tenant_id in self._names if tenant_id not in other)
        if other._bitmap is None:
            return self._from_bits(self._to_bits(), self._mask + 1)
        size, mine, others = _widen(self._to_bits(), self._mask + 1, other._to_bits(), other._mask + 1)
        return self._from_bits(mine & ~others, size)

    def intersection(self, other: TenantSet) -> TenantSet:
        """Return the tenants also in *other*."""
        if self._bitmap is None:
            return TenantSet(tenant_id for tenant_id in self._names if tenant_id in other)
        if other._bitmap is None:
            return TenantSet(tenant_id for tenant_id in other._names if tenant_id in self)
        size, mine, others = _widen(self._to_bits(), self._mask + 1, other._to_bits(), other._mask + 1)
        return self._from_bits(mine & others, size)

    def encode(self, limit: int = ENCODED_NAMES_MAX) -> frozenset[str]:
        """Return the entries for a lease row: up to *limit* names, else one bitmap of ROW_SLOT_COUNT."""
        if self._bitmap is None:
            if len(self._names) <= limit:
                return frozenset(NAME_PREFIX + tenant_id for tenant_id in self._names)
            bits, size = _bitmap_of_names(self._names)
        else:
            bits, size = self._to_bits(), self._mask + 1
        bits, size = _fold(bits, size)
        bitmap = bits.to_bytes(size >> 3, "little")
        return frozenset({BITMAP_PREFIX + b64encode(zlib.compress(bitmap)).decode()})

    @classmethod
    def decode(cls, entries: Iterable[str]) -> TenantSet:
        """Return the set of the entries of one set or several. Raises ValueError for an unknown entry."""
        tenants = cls()
        for entry in sorted(entries, reverse=True):  # names first: into the most slots, not into the few of a row
            if entry.startswith(NAME_PREFIX) and entry != NAME_PREFIX:
                tenants.add(entry.removeprefix(NAME_PREFIX))
            elif entry.startswith(BITMAP_PREFIX):
                tenants.update(cls._from_bits(*_parse_bitmap(entry.removeprefix(BITMAP_PREFIX))))
            else:
                raise ValueError(f"expected {NAME_PREFIX}<tenant id> or {BITMAP_PREFIX}<bitmap>, came {entry[:8]!r}…")
        return tenants

    @classmethod
    def _from_bits(cls, bits: int, size: int) -> TenantSet:
        tenants = cls()
        tenants._set_bitmap(bits, size)
        return tenants

    def _to_bits(self) -> int:
        return int.from_bytes(self._bitmap or b"", "little")

    def _set_bitmap(self, bits: int, size: int) -> None:
        self._names = set()
        self._bitmap = bytearray(bits.to_bytes(size >> 3, "little")) if bits else None
        self._mask = size - 1


def _bitmap_of_names(names: Iterable[str]) -> tuple[int, int]:
    bitmap = bytearray(SLOT_COUNT >> 3)
    for tenant_id in names:
        slot = zlib.crc32(tenant_id.encode()) & (SLOT_COUNT - 1)
        bitmap[slot >> 3] |= 1 << (slot & 7)
    return int.from_bytes(bitmap, "little"), SLOT_COUNT


def _parse_bitmap(text: str) -> tuple[int, int]:
    unpack = zlib.decompressobj()
    try:
        bitmap = unpack.decompress(b64decode(text, validate=True), (SLOT_COUNT >> 3) + 1)
    except zlib.error as exc:
        raise ValueError(f"expected a bitmap packed with zlib: {exc}") from exc
    size = len(bitmap) << 3
    if not unpack.eof or unpack.unused_data or size.bit_count() != 1:
        raise ValueError(f"expected a bitmap of 8 to {SLOT_COUNT} slots, a power of two, came {len(bitmap)} bytes")
    return int.from_bytes(bitmap, "little"), size


def _widen(one: int, size: int, other: int, other_size: int) -> tuple[int, int, int]:
    largest = max(size, other_size)
    return largest, _repeat(one, size, largest), _repeat(other, other_size, largest)


def _repeat(bits: int, size: int, new_size: int) -> int:
    while size < new_size:
        bits |= bits << size
        size *= 2
    return bits


def _fold(bits: int, size: int) -> tuple[int, int]:
    while size > ROW_SLOT_COUNT:
        size >>= 1
        bits = bits >> size | bits & ((1 << size) - 1)
    return bits, size


HORIZON: Final = datetime(1970, 1, 1, tzinfo=UTC)  # before every record (Kinesis API reference, AT_TIMESTAMP)


class ParentRecords(msgspec.Struct, frozen=True):
    """The records of an ancestor to be read again: those after *after*, from *start* to its end."""

    stream_shard_id: str
    start: positions.Start
    after: positions.Position | None
    hash_range: positions.HashRange | None


class Unread(msgspec.Struct, frozen=True):
    """All records of *parents*, in order, then all own ones after *after*; None is the beginning."""

    after: positions.RecordPosition | None
    parents: tuple[ParentRecords, ...] = ()

    def includes(self, other: Unread) -> bool:
        """Return whether it includes all records of *other*."""
        if self.after is not None and positions.is_after(self.after, other.after):
            return False
        return self.includes_parents_of(other)

    def includes_parents_of(self, other: Unread) -> bool:
        """Return whether it includes all records of parents that *other* includes."""
        return set(merge(self.parents, other.parents)) == set(self.parents)


def union(parts: Iterable[Unread]) -> Unread:
    """Return the records of all *parts*, at least one."""
    found = list(parts)
    parents: tuple[ParentRecords, ...] = ()
    for part in found:
        if part.parents != parents:
            parents = merge(parents, part.parents)
    return Unread(positions.lowest_position([part.after for part in found]), parents)


def merge(one: tuple[ParentRecords, ...], other: tuple[ParentRecords, ...]) -> tuple[ParentRecords, ...]:
    """Return the records of both, in order."""
    found = {records.stream_shard_id: records for records in one}
    for records in other:
        known = found.get(records.stream_shard_id)
        if known is None or (known.after is not None and records.after is not None and records.after < known.after):
            found[records.stream_shard_id] = records
        elif known != records and (known.after is None or records.after is None):
            start = positions.AtTimestamp(HORIZON)  # the lower of the two is unknown
            found[records.stream_shard_id] = msgspec.structs.replace(known, start=start, after=None)
    return tuple(found[key] for key in sorted(found))
