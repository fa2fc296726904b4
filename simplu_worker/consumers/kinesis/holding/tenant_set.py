"""Sets of tenants, and their form in a lease row. Pure.

A row has up to ENCODED_NAMES_MAX tenants by name, else all by slot: one bit of a bitmap, shared by all tenants with the
same checksum. A set never forgets a tenant, so the worst case is one that waits without need.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from simplu_worker.consumers.kinesis.stream import positions

SLOT_COUNT: Final = 2**15  # at most 5.5 kB of a lease row; every renewal pays for the whole row
ENCODED_NAMES_MAX: Final = 200
NAME_PREFIX: Final = "tenant:"
BITMAP_PREFIX: Final = "slots:"


class TenantSet:
    """A set of tenant ids: all names, or all slots. A combination of both has slots."""

    __slots__ = ("_bitmap", "_names")

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = set(names)
        self._bitmap: bytearray | None = None  # slot n is bit n % 8 of byte n // 8; never without a bit

    def __contains__(self, tenant_id: str) -> bool:
        # Runs for every record that is read: no avoidable call.
        bitmap = self._bitmap
        if bitmap is None:
            return tenant_id in self._names
        slot = zlib.crc32(tenant_id.encode()) % SLOT_COUNT
        return bitmap[slot >> 3] >> (slot & 7) & 1 == 1

    def __len__(self) -> int:
        """Return the number of names, or of slots in use."""
        return len(self._names) if self._bitmap is None else self._to_bits().bit_count()

    def __bool__(self) -> bool:
        return self._bitmap is not None or bool(self._names)

    @property
    def has_names(self) -> bool:
        """Whether the set contains names, not slots."""
        return self._bitmap is None

    @property
    def names(self) -> frozenset[str]:
        """The tenants at this moment; empty for slots."""
        return frozenset(self._names)

    def add(self, tenant_id: str) -> None:
        """Add a tenant."""
        if self._bitmap is None:
            self._names.add(tenant_id)
        else:
            slot = zlib.crc32(tenant_id.encode()) % SLOT_COUNT
            self._bitmap[slot >> 3] |= 1 << (slot & 7)

    def discard(self, tenant_id: str) -> None:
        """Remove a tenant by name. A slot stays, as other tenants may share it."""
        self._names.discard(tenant_id)

    def update(self, other: TenantSet) -> None:
        """Add all tenants of *other*."""
        if self._bitmap is None and other._bitmap is None:
            self._names |= other._names
        else:
            self._set_bits(self._to_bits() | other._to_bits())

    def difference(self, other: TenantSet) -> TenantSet:
        """Return the tenants that are not in *other*; names remove nothing from slots."""
        if self._bitmap is None:
            return TenantSet(tenant_id for tenant_id in self._names if tenant_id not in other)
        return self._of_bits(self._to_bits() & ~(0 if other._bitmap is None else other._to_bits()))

    def intersection(self, other: TenantSet) -> TenantSet:
        """Return the tenants also in *other*."""
        if self._bitmap is None:
            return TenantSet(tenant_id for tenant_id in self._names if tenant_id in other)
        if other._bitmap is None:
            return other.intersection(self)
        return self._of_bits(self._to_bits() & other._to_bits())

    def encode(self, limit: int | None = None) -> frozenset[str]:
        """Return the entries for a lease row: up to *limit* names, else one bitmap."""
        if self._bitmap is None and len(self._names) <= (ENCODED_NAMES_MAX if limit is None else limit):
            return frozenset(NAME_PREFIX + tenant_id for tenant_id in self._names)
        bitmap = self._to_bits().to_bytes(SLOT_COUNT >> 3, "little")
        return frozenset({BITMAP_PREFIX + b64encode(zlib.compress(bitmap)).decode()})

    @classmethod
    def decode(cls, entries: Iterable[str]) -> TenantSet:
        """Return the set of the entries of one set or several. Raises ValueError for an unknown entry."""
        tenants = cls()
        for entry in entries:
            if entry.startswith(NAME_PREFIX) and entry != NAME_PREFIX:
                tenants.add(entry.removeprefix(NAME_PREFIX))
            elif entry.startswith(BITMAP_PREFIX):
                tenants.update(cls._of_bits(_parse_bitmap(entry.removeprefix(BITMAP_PREFIX))))
            else:
                raise ValueError(f"expected {NAME_PREFIX}<tenant id> or {BITMAP_PREFIX}<bitmap>, came {entry[:8]!r}…")
        return tenants

    @classmethod
    def _of_bits(cls, bits: int) -> TenantSet:
        tenants = cls()
        tenants._set_bits(bits)
        return tenants

    def _to_bits(self) -> int:
        bitmap = self._bitmap
        if bitmap is None:
            bitmap = bytearray(SLOT_COUNT >> 3)
            for tenant_id in self._names:
                slot = zlib.crc32(tenant_id.encode()) % SLOT_COUNT
                bitmap[slot >> 3] |= 1 << (slot & 7)
        return int.from_bytes(bitmap, "little")

    def _set_bits(self, bits: int) -> None:
        self._names = set()
        self._bitmap = bytearray(bits.to_bytes(SLOT_COUNT >> 3, "little")) if bits else None


def _parse_bitmap(text: str) -> int:
    unpack = zlib.decompressobj()
    try:
        bitmap = unpack.decompress(b64decode(text, validate=True), (SLOT_COUNT >> 3) + 1)
    except zlib.error as exc:
        raise ValueError(f"expected a bitmap packed with zlib: {exc}") from exc
    if not unpack.eof or unpack.unused_data or len(bitmap) != SLOT_COUNT >> 3:
        raise ValueError(f"expected a bitmap of {SLOT_COUNT} slots, came {len(bitmap)} bytes")
    return int.from_bytes(bitmap, "little")


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
