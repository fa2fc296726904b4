"""Items that are put together as one record: what it contains, and in which order."""

from __future__ import annotations

import json
from functools import cache
from random import Random

import pytest

from simplu_local.workload.packing import PACK_MAX_COUNT, PackedItems, as_records, pack_some
from simplu_local.workload.reference_model import Effect, Verdict
from simplu_local.workload.workload import Item, Workload, make_tenants


@cache
def made_items() -> list[Item]:
    """Return items of a workload."""
    return list(Workload(5, make_tenants(4, run="r")).items(2000))


def parts_of(pack: PackedItems) -> list[bytes]:
    """Return what a record contains, by other means than the worker's."""
    if not pack.is_packed:
        return [pack.record]
    if pack.record.startswith(b"["):
        found = json.loads(pack.record)
        assert [json.loads(item.record) for item in pack.items] == found
        return [item.record for item in pack.items]
    return [line for line in map(bytes.strip, pack.record.split(b"\n")) if line]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_items_are_packed_in_the_order_of_their_keys(share: float) -> None:
    items = made_items()
    packs = pack_some(items, Random(1), share)
    for key in {item.partition_key for item in items}:
        records = [part.strip() for pack in packs if pack.partition_key == key for part in parts_of(pack)]
        assert records == [item.record.strip() for item in items if item.partition_key == key]
    forms = {pack.record[:1] == b"[" for pack in packs if pack.is_packed}
    assert forms == (set() if share == 0 else {False, True})
    assert max(len(pack.items) for pack in packs) == (1 if share == 0 else PACK_MAX_COUNT)


def test_items_that_no_form_can_hold_are_records_of_their_own() -> None:
    good = Item("k", b'{\n"a": 1}', Verdict(Effect.LOGGED))
    broken = Item("k", b"{", Verdict(Effect.REJECTED, frozenset({"invalid_json"})))
    for seed in range(20):
        packs = pack_some([good, broken], Random(seed), 1.0)
        assert packs[-1:] == as_records([broken])
