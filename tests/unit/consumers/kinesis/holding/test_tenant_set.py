from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.holding.tenant_set import ENCODED_NAMES_MAX, SLOT_COUNT, TenantSet

POOL = [f"b{number}-l{number % 7}" for number in range(40)]


def bitmap_of(names: Iterable[str]) -> str:
    bits = sum(1 << slot for slot in {zlib.crc32(name.encode()) % SLOT_COUNT for name in names})
    return packed(bits.to_bytes(SLOT_COUNT // 8, "little"))


def packed(data: bytes) -> str:
    return "slots:" + b64encode(zlib.compress(data)).decode()


def in_slots(names: Iterable[str]) -> TenantSet:
    return TenantSet.decode([bitmap_of(names)])


def sharing_a_slot() -> tuple[str, str]:
    seen: dict[int, str] = {}
    for number in range(SLOT_COUNT * 8):
        name = f"tenant-{number}"
        other = seen.setdefault(zlib.crc32(name.encode()) % SLOT_COUNT, name)
        if other != name:
            return other, name
    raise AssertionError("no two tenants share a slot")


def members(tenants: TenantSet) -> set[str]:
    return {name for name in POOL if name in tenants}


names = st.frozensets(st.sampled_from(POOL), max_size=12)
KINDS: list[Callable[[Iterable[str]], TenantSet]] = [TenantSet, in_slots]
kinds = st.sampled_from(KINDS)


@st.composite
def tenant_sets(draw: st.DrawFn) -> tuple[TenantSet, frozenset[str]]:
    added, later = draw(names), draw(names)
    tenants = draw(kinds)(added)
    for name in later:
        tenants.add(name)
    return tenants, added | later


@given(tenant_sets())
def test_set_has_everybody_who_was_added_and_exactly_those_while_it_knows_names(
    given_set: tuple[TenantSet, frozenset[str]],
) -> None:
    tenants, added = given_set

    assert members(tenants) >= added
    assert bool(tenants) == bool(added)
    if tenants.has_names:
        assert members(tenants) == tenants.names == added
        assert len(tenants) == len(added)
    else:
        assert tenants.names == frozenset()
        assert 0 < len(tenants) <= len(added)


@given(tenant_sets(), tenant_sets())
def test_sets_of_names_and_slots_are_combined(
    one: tuple[TenantSet, frozenset[str]], other: tuple[TenantSet, frozenset[str]]
) -> None:
    tenants, others = one[0], other[0]
    before, added = members(tenants), members(others)
    left, narrowed = tenants.difference(others), tenants.intersection(others)

    assert before - added <= members(left) <= before
    if tenants.has_names or not others.has_names:
        assert members(left) == before - added
    assert members(narrowed) == before & added
    assert narrowed.has_names or not (tenants.has_names or others.has_names)
    assert (members(tenants), members(others)) == (before, added)
    are_names = tenants.has_names and others.has_names
    tenants.update(others)
    assert tenants.has_names or not are_names
    assert members(tenants) >= before | added
    assert members(others) == added


@given(tenant_sets(), st.sampled_from([0, 3, ENCODED_NAMES_MAX]))
def test_targets_name_everybody_when_they_are_read_back(
    given_set: tuple[TenantSet, frozenset[str]], limit: int
) -> None:
    tenants, _ = given_set
    targets = tenants.encode(limit)
    read = TenantSet.decode(targets)

    assert members(read) >= members(tenants)
    assert (targets == frozenset()) == (not tenants)
    assert len(targets) == (len(tenants) if read.has_names else 1)
    assert read.encode(limit) == targets
    if read.has_names:
        assert read.names == tenants.names


def test_discard_takes_out_a_name_and_leaves_a_slot() -> None:
    one, other = sharing_a_slot()
    named, slots = TenantSet([one, other]), in_slots([one, other])
    for tenants in (named, slots):
        tenants.discard(one)
        tenants.discard("nobody")

    assert named.names == {other}
    assert (one in slots, other in slots) == (True, True)


@pytest.mark.parametrize(
    ("names", "limit", "expected"),
    [
        ([], 200, set()),
        (["b-l"], 200, {"tenant:b-l"}),
        (["b-l", "tenant:x"], 2, {"tenant:b-l", "tenant:tenant:x"}),
        (["slots:x", "ü-✓"], 2, {"tenant:slots:x", "tenant:ü-✓"}),
    ],
)
def test_targets_are_names_up_to_the_limit(names: list[str], limit: int, expected: set[str]) -> None:
    assert TenantSet(names).encode(limit) == expected
    assert TenantSet.decode(expected).names == set(names)


def test_targets_are_one_bitmap_beyond_the_limit() -> None:
    assert TenantSet(POOL[:3]).encode(limit=2) == {bitmap_of(POOL[:3])} == in_slots(POOL[:3]).encode()
    many = [f"tenant-{number}" for number in range(30_000)]  # several of a byte
    one_by_one = in_slots(many[:1])
    for name in many:
        one_by_one.add(name)
    assert TenantSet(many).encode() == one_by_one.encode() == {bitmap_of(many)}


@pytest.mark.parametrize(
    "target",
    [
        "",
        "tenant:",
        "b-l",
        "shard:1",
        "Tenant:b-l",
        "slots:",
        "slots:%%%",
        pytest.param(packed(bytes(4096)).replace(":", ":!"), id="a character of no base64"),
        pytest.param(packed(bytes(4096)).removeprefix("slots:"), id="a bitmap without its prefix"),
        "slots:é",
        "slots:" + b64encode(b"no zlib").decode(),
        "slots:" + b64encode(zlib.compress(bytes(4096))[:-1]).decode(),
        "slots:" + b64encode(zlib.compress(bytes(4096)) + b"more").decode(),
        pytest.param(packed(b""), id="no bytes"),
        pytest.param(packed(bytes(SLOT_COUNT // 4)), id="twice the slots"),
        pytest.param(packed(bytes(SLOT_COUNT // 16)), id="half the slots"),
        pytest.param(packed(bytes(10_000_000)), id="a bomb"),
    ],
)
def test_target_is_refused_when_it_is_not_understood(target: str) -> None:
    with pytest.raises(ValueError, match=r"expected|[Bb]ase64|ASCII|padding"):
        TenantSet.decode(["tenant:b-l", target])
