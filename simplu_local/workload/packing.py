"""Pack some records of a partition key into one, as an array or as lines."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from random import Random

from simplu_local.workload.workload import Item

PART_MAX_BYTES = 50_000
PACK_MAX_COUNT = 10  # so many bad parts have a dead letter each: docs/dead-letters.md
LINES_SHARE = 0.5
LINES_MIN = 2  # one line is a record as any other


@dataclass(frozen=True, slots=True)
class PackedItems:
    """One record, and what it contains; *is_packed*: each of them has an index there."""

    record: bytes
    items: tuple[Item, ...]
    is_packed: bool = False

    @property
    def partition_key(self) -> str:
        """The key of all of them."""
        return self.items[0].partition_key


def as_records(items: Sequence[Item]) -> list[PackedItems]:
    """Return each item as a record of its own."""
    return [PackedItems(item.record, (item,)) for item in items]


def pack_some(items: Sequence[Item], random: Random, share: float) -> list[PackedItems]:
    """Return *items*, those of a *share* of the keys packed, in the order of each key."""
    by_key: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_key[item.partition_key].append(item)
    return [
        pack
        for own in by_key.values()
        for pack in (_packs(own, random) if random.random() < share else as_records(own))
    ]


def _packs(items: Sequence[Item], random: Random) -> list[PackedItems]:
    packs: list[PackedItems] = []
    left = [replace(item, record=item.record.strip(b" \t\r\n")) for item in items]
    while left:
        chosen = left[: random.randint(1, PACK_MAX_COUNT)]
        make = _lines if random.random() < LINES_SHARE else _array
        pack = make(chosen, random) or PackedItems(chosen[0].record, (chosen[0],))
        packs.append(pack)
        del left[: len(pack.items)]
    return packs


def _array(items: Sequence[Item], random: Random) -> PackedItems | None:
    """Return *items* up to the first that is no JSON: it would spoil the others."""
    chosen = tuple(takewhile(lambda item: _fits(item) and _is_json(item.record), items))
    if not chosen:
        return None
    comma = random.choice((b",", b" , ", b",\n"))
    return PackedItems(b"[%b]" % comma.join(item.record for item in chosen), chosen, is_packed=True)


def _lines(items: Sequence[Item], random: Random) -> PackedItems | None:
    chosen = tuple(takewhile(lambda item: _fits(item) and b"\n" not in item.record, items))
    if len(chosen) < LINES_MIN or not chosen[0].record.startswith(b"{") or not _is_json(chosen[0].record):
        return None
    end = random.choice((b"\n", b"\r\n", b"\n\n"))
    return PackedItems(end.join(item.record for item in chosen), chosen, is_packed=True)


def _fits(item: Item) -> bool:
    return 0 < len(item.record) <= PART_MAX_BYTES


def _is_json(text: bytes) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True
