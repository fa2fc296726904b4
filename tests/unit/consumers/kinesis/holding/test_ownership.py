from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from simplu_worker.consumers.kinesis.holding import ownership as ownership_module
from simplu_worker.consumers.kinesis.holding import tenant_set
from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, CheckpointTracker, Hold, Meeting, Ownership
from simplu_worker.consumers.kinesis.holding.tenant_set import ParentRecords, TenantSet, Unread
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, Position, RecordPosition
from simplu_worker.vocabulary import HeldTarget, HoldReason, HoldState

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TENANTS = ("a-x", "b-w", "c-y", "d-p", "e-u", "f-t")  # of 8 slots, the first three share one, and the next two
PARENTS = (ParentRecords("parent", AtSequenceNumber("2"), Position(2), None),)
LATER_PARENTS = (ParentRecords("parent", AtSequenceNumber("5"), Position(5), None),)


def mark(number: int) -> RecordPosition | None:
    return RecordPosition(str(number), 0, START + timedelta(seconds=number)) if number else None


def unread(after: int, *parents: ParentRecords) -> Unread:
    return Unread(mark(after), parents)


def new(main: int = 9) -> Ownership:
    return Ownership(CheckpointTracker(mark(main)))


def hold_tenant(ownership: Ownership, tenant: str, *in_memory: int) -> Hold:
    return ownership.hold_tenant(tenant, HoldReason.UNREGISTERED, map(unread, in_memory), START, now=0.0)


def hold_shard(ownership: Ownership, shard_id: str, tenants: Iterable[str], after: int) -> Hold:
    hold = ownership.open_shard_hold(shard_id, START, now=0.0)
    for tenant in tenants:
        ownership.split(tenant, hold, [unread(after)], START)
    return hold


def start(ownership: Ownership, *holds: Hold) -> CatchUp:
    for hold in holds:
        hold.enter(HoldState.READY)
    return ownership.start_catch_up(holds)


def open_backfill(ownership: Ownership, after: int, *parents: ParentRecords, shard_id: str = "shard-1") -> Hold:
    return ownership.open_shard_hold(shard_id, START, lacks=unread(after, *parents), now=0.0)


def backfill(ownership: Ownership, after: int, *parents: ParentRecords) -> Hold:
    hold = open_backfill(ownership, after, *parents)
    start(ownership, hold)
    return hold


def read_on(catch_up: CatchUp | None, *, to: int) -> None:
    position = mark(to)
    assert catch_up is not None
    assert position is not None
    catch_up.tracker.skip(position)


def in_slots(*tenants: str) -> TenantSet:
    return TenantSet.decode(TenantSet(tenants).encode(limit=0))


def owners(ownership: Ownership) -> Iterator[str]:
    for tenant in TENANTS:
        hold = ownership.owner_of(tenant)
        yield "-" if hold is None else hold.name


@pytest.mark.parametrize(
    ("owner_after", "in_memory", "expected"),
    [
        pytest.param(None, [], 9, id="the main reader's, nothing in memory"),
        pytest.param(None, [7, 5, 6], 5, id="the main reader's"),
        pytest.param(4, [], 4, id="another hold's"),
        pytest.param(4, [3], 3, id="another hold's, sent by its catch-up"),
        pytest.param(4, [6], 4, id="another hold's, in memory since the main reader sent it"),
        pytest.param(None, [0], 0, id="the first record"),
    ],
)
def test_split_reads_again_what_is_dropped_and_what_the_owner_has_not_read(
    owner_after: int | None, in_memory: list[int], expected: int
) -> None:
    ownership = new()
    if owner_after is not None:
        hold_shard(ownership, "shard-1", ["a-x", "b-w"], owner_after)
    hold = hold_tenant(ownership, "a-x", *in_memory)
    assert (hold.unread, ownership.owner_of("a-x")) == (unread(expected), hold)


def test_split_takes_along_the_parents_records_of_the_owner_and_of_what_is_dropped() -> None:
    ownership = new()
    ownership.split("a-x", backfill(ownership, 6, *LATER_PARENTS), [], START)
    hold = ownership.hold_tenant("a-x", HoldReason.FAILING, [unread(6, *PARENTS)], START, now=0.0)
    assert (hold.unread, hold.reason) == (unread(6, *PARENTS), "failing")


def test_hold_that_is_split_to_again_leaves_its_catch_up_where_that_was() -> None:
    ownership = new()
    hold, other = hold_shard(ownership, "shard-1", ["a-x"], 2), hold_tenant(ownership, "b-w", 2)
    catch_up = start(ownership, hold, other)
    read_on(catch_up, to=6)
    assert not hold.is_waiting
    hold_shard(ownership, "shard-1", ["a-x"], 7)
    assert (hold.reached, hold.catch_up, catch_up.holds) == (mark(6), None, [other])
    assert hold.is_waiting


def test_backfill_leaves_tenants_that_wait_for_the_parents() -> None:
    ownership = new()
    ownership.inherit(None, TenantSet(["a-x"]), unread(3), START, now=0.0)
    before, hold = ownership.owner_of("a-x"), backfill(ownership, 2)
    assert (ownership.meet_resident("a-x", hold, []), ownership.owner_of("a-x")) == (Meeting.LEFT, before)


@pytest.mark.parametrize(("in_memory", "expected"), [(None, Meeting.TAKEN), (3, Meeting.TAKEN), (1, Meeting.LEFT)])
def test_backfill_meets_its_own_tenant_as_one_of_the_main_reader(in_memory: int | None, expected: Meeting) -> None:
    ownership = new()
    hold = backfill(ownership, 2)
    ownership.split("a-x", hold, [], START)
    start(ownership, hold)
    assert ownership.meet_resident("a-x", hold, [] if in_memory is None else [unread(in_memory)]) is expected


@pytest.mark.parametrize(
    ("owner", "in_memory", "reached", "expected"),
    [
        pytest.param(None, [], unread(5), Meeting.TAKEN, id="the main reader's, nothing in memory"),
        pytest.param(None, [5], unread(5), Meeting.TAKEN, id="all in memory is still to come"),
        pytest.param(None, [4], unread(5), Meeting.LEFT, id="in memory, and passed"),
        pytest.param(unread(5), [], unread(5), Meeting.TAKEN, id="both at one position"),
        pytest.param(unread(4), [], unread(5), Meeting.LEFT, id="the owner is behind"),
        pytest.param(unread(7), [6], unread(5), Meeting.TAKEN, id="the owner is further"),
        pytest.param(
            unread(7), [], unread(8, *PARENTS), Meeting.TAKEN, id="the backfill is at the parents and starts lower"
        ),
        pytest.param(unread(0), [], unread(8, *PARENTS), Meeting.TAKEN, id="it starts at the beginning"),
        pytest.param(unread(7, *PARENTS), [], unread(8), Meeting.LEFT, id="the owner has parents"),
        pytest.param(unread(8, *LATER_PARENTS), [], unread(7), Meeting.APART, id="each has what the other lacks"),
        pytest.param(
            unread(8, *PARENTS), [], unread(7, *LATER_PARENTS), Meeting.APART, id="the owner has more parents"
        ),
    ],
)
def test_backfill_takes_a_tenant_when_it_comes_to_all_that_its_owner_has_not_read(
    owner: Unread | None, in_memory: list[int], reached: Unread, expected: Meeting
) -> None:
    ownership = new()
    before = None
    if owner is not None:
        before = ownership.hold_tenant("a-x", HoldReason.FAILING, [owner], START, now=0.0)
    assert reached.after is not None
    hold = backfill(ownership, int(reached.after.sequence_number), *reached.parents)
    assert ownership.meet_resident("a-x", hold, map(unread, in_memory)) is expected
    assert ownership.owner_of("a-x") is (hold if expected is Meeting.TAKEN else before)
    if expected is Meeting.TAKEN and owner is not None:
        assert hold.unread.includes(owner)


@pytest.mark.parametrize(
    ("owner_after", "in_memory", "is_joined", "expected"),
    [(None, [7], True, 5), (None, [5], True, 5), (None, [4], False, 4), (3, [], False, 3), (6, [], True, 5)],
)
def test_hold_for_a_share_goes_on_where_it_comes_to_all_of_a_tenant(
    owner_after: int | None,
    in_memory: list[int],
    is_joined: bool,  # noqa: FBT001
    expected: int,
) -> None:
    ownership = new()
    more = [] if owner_after is None else [hold_tenant(ownership, "b-w", owner_after)]
    found = []
    for tenant, after in (("a-x", [5]), ("b-w", in_memory)):
        of = {tenant: [*map(unread, after)]}
        hold = ownership.hold_for_share(HeldTarget.BUSINESS, "a on s", of, START, now=0.0)
        found.append((hold.is_paced, hold.is_waiting, hold.unread))
        if hold.is_waiting:
            start(ownership, hold)
    assert found == [(True, True, unread(5)), (True, not is_joined, unread(expected))]
    assert (list(owners(ownership))[:2], len(ownership)) == (["a on s"] * 2, 1)
    assert [ownership.is_apart(one) for one in ("a-x", "c-y")] == [True, False]
    assert all(not one.is_paced for one in more)


def test_catch_up_takes_along_a_hold_that_it_has_not_passed() -> None:
    ownership = new()
    first, parents = hold_tenant(ownership, "a-x", 2), backfill(ownership, 2, *PARENTS).catch_up
    catch_up = start(ownership, first)
    read_on(catch_up, to=5)
    passed, same, later = (hold_tenant(ownership, one, after) for one, after in zip("bcd", (4, 5, 6), strict=True))
    for one in (passed, same, later):
        one.enter(HoldState.READY)
    assert [catch_up.take_along(one) for one in (passed, same, later)] == [False, True, True]
    assert (catch_up.holds, same.catch_up, passed.catch_up) == ([first, same, later], catch_up, None)
    assert parents is not None
    assert not parents.take_along(hold_tenant(ownership, "e-u", 6))
    assert not catch_up.take_along(open_backfill(ownership, 7, *PARENTS, shard_id="shard-2"))
    empty = start(ownership, passed)
    passed.lower(unread(1), START)
    assert not empty.take_along(hold_tenant(ownership, "f-t", 6))


def test_floor_is_the_lowest_of_main_reader_holds_and_catch_ups() -> None:
    ownership = new()
    assert (ownership.floor(mark(9)), ownership.floor(None)) == (mark(9), None)
    hold = hold_tenant(ownership, "a-x", 4)
    hold_tenant(ownership, "b-w", 6)
    assert (ownership.floor(mark(9)), ownership.floor(mark(2))) == (mark(4), mark(2))
    read_on(start(ownership, hold), to=8)
    assert ownership.floor(mark(9)) == mark(6)


def test_catch_up_counts_until_it_has_ended_and_its_operations_are_settled() -> None:
    for is_settled_first in (False, True):
        ownership = new()
        assert ownership.is_settled()
        holds = [hold_tenant(ownership, "a-x", 5), hold_shard(ownership, "shard-1", ["b-w"], 5)]
        assert not ownership.is_settled()
        catch_up = start(ownership, *holds)
        assert (ownership.is_settled(), ownership.floor(mark(9))) == (False, mark(5))
        ticket = catch_up.tracker.start(RecordPosition("6", 0, START))
        read_on(catch_up, to=9)
        assert ownership.floor(mark(9)) == mark(5)
        ownership.meet(catch_up)
        assert (set(owners(ownership)), len(ownership), catch_up.holds, holds[0].catch_up) == ({"-"}, 0, [], None)
        assert (ownership.is_settled(), ownership.floor(mark(9))) == (False, mark(5))
        catch_up.tracker.finish([ticket])
        if is_settled_first:
            assert ownership.is_settled()
        assert ownership.floor(mark(12)) == mark(12)


def test_parents_are_pending_until_the_last_operation_of_them_is_settled() -> None:
    ownership = new()
    found = [ownership.has_pending_parents]
    hold = backfill(ownership, 5, *PARENTS)
    catch_up = hold.catch_up
    assert catch_up is not None
    found.append(ownership.has_pending_parents)
    ticket = catch_up.tracker.start_at_last()
    catch_up.pass_parent()
    read_on(catch_up, to=9)
    ownership.meet(catch_up)
    found.append(ownership.has_pending_parents)
    catch_up.tracker.finish([ticket])
    found.append(ownership.has_pending_parents)
    ownership.hold_tenant("a-x", HoldReason.FAILING, [unread(5, *PARENTS)], START, now=0.0)
    assert [*found, ownership.has_pending_parents] == [False, True, True, False, True]


@pytest.mark.parametrize("is_by_slot", [False, True])
def test_parents_release_those_that_they_have_not_pending_any_more(*, is_by_slot: bool) -> None:
    ownership, limit = new(), 0 if is_by_slot else 200
    held, pending = (TenantSet.decode(TenantSet(one).encode(limit=limit)) for one in (["a-x", "d-p"], ["d-p"]))
    ownership.inherit(None, held, unread(3), START, now=1.0)
    assert ownership.are_waiting_for_parents({"a-x", "d-p"})
    assert not ownership.are_waiting_for_parents({"a-x", "f-t"})
    assert [ownership.release_from_parents(pending, now=7.0) for _ in range(2)] == [True, False]
    assert {(hold.reason, hold.arrived_at) for hold in ownership.holds()} == {(HoldReason.RESHARD, START)}
    found = [(hold.name, hold.unread, hold.since, hold.state) for hold in ownership.holds()]
    assert found == [("1", unread(3), 7.0, HoldState.READY), ("", unread(3), 1.0, HoldState.HELD)]
    assert (ownership.are_waiting_for_parents({"d-p"}), ownership.are_waiting_for_parents({"a-x"})) == (True, False)
    assert ownership.release_from_parents(TenantSet(), now=8.0)
    assert (ownership.parents_hold, [hold.name for hold in ownership.holds()]) == (None, ["1", "2"])


def test_backfill_that_waits_leaves_a_tenant_with_earlier_operations_in_memory_apart() -> None:
    ownership = new()
    hold = open_backfill(ownership, 6, *PARENTS)
    ownership.split("a-x", hold, [], START)
    assert ownership.meet_resident("a-x", hold, [unread(4)]) is Meeting.APART
    assert ownership.meet_resident("a-x", hold, [unread(7)]) is Meeting.TAKEN


def test_parents_release_nobody_who_has_another_hold() -> None:
    ownership = new()
    ownership.inherit(None, TenantSet(["a-x", "b-w", "c-y"]), unread(0), START, now=0.0)
    own = hold_tenant(ownership, "a-x", 3)
    assert (own.unread, ownership.release_from_parents(TenantSet(["c-y"]), now=1.0)) == (unread(0), True)
    assert list(owners(ownership))[:3] == ["a-x", "1", ""]
    ownership = new()
    ownership.inherit(None, in_slots("a-x", "b-w"), unread(0), START, now=0.0)
    assert {hold.reason for hold in ownership.holds()} == {HoldReason.RESHARD}
    own = hold_tenant(ownership, "a-x", 3)
    assert ownership.release_from_parents(TenantSet(["a-x"]), now=1.0)
    assert (ownership.owner_of("a-x"), ownership.parents_hold) == (own, None)
    assert not ownership.are_waiting_for_parents({"a-x"})
    assert not ownership.release_from_parents(TenantSet(), now=1.0)


def test_hold_of_the_tenants_that_the_last_owner_held_is_ready() -> None:
    ownership = new()
    ownership.inherit(TenantSet(["a-x"]), TenantSet(), unread(5), START, now=3.0)
    (hold,) = ownership.holds()
    assert (hold.title, hold.reason, hold.state) == ("predecessor", HoldReason.TAKEN_OVER, HoldState.READY)
    assert (hold.arrived_at, hold.since, hold.unread) == (START, 3.0, unread(5))
    own = hold_tenant(ownership, "a-x", 5)
    assert ownership.holds() == [own]
    ownership.remove(own)
    assert ownership.owner_of("a-x") is None


def test_tenant_that_the_last_owner_held_and_the_parents_have_is_the_parents() -> None:
    for limits in product((200, 0), repeat=2):
        ownership = new()
        lists = (
            TenantSet.decode(TenantSet(one).encode(limit=limit))
            for one, limit in zip((["a-x", "d-p"], ["a-x"]), limits, strict=True)
        )
        ownership.inherit(next(lists), next(lists), unread(3), START, now=7.0)
        found = [ownership.owner_of(tenant) for tenant in ("a-x", "d-p")]
        assert [hold and hold.target for hold in found] == [HeldTarget.PARENTS, HeldTarget.PREDECESSOR]
        assert found[1] is not None
        assert (found[1].state, found[1].reason) == (HoldState.READY, HoldReason.TAKEN_OVER)
        assert found[1].unread == unread(3)
        assert found[1].tenants.names <= {"d-p"}


def test_tenant_goes_back_to_the_inherited_hold_with_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_set, "SLOT_COUNT", 8)
    ownership = new()
    ownership.inherit(in_slots("a-x"), TenantSet(), unread(3), START, now=0.0)
    assert list(owners(ownership)) == [*[""] * 3, *"---"]  # with those that share its slot
    own = hold_tenant(ownership, "a-x", 5)
    assert (own.unread, list(owners(ownership))[:2]) == (unread(3), ["a-x", ""])
    ownership.remove(own)
    assert list(owners(ownership))[:2] == ["", ""]
    assert all(tenant in ownership.owners.tenants() for tenant in TENANTS[:3])
    ownership.remove(ownership.holds()[0])
    assert set(owners(ownership)) == {"-"}


def test_nothing_is_read_when_too_many_tenants_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership_module, "HELD_NAMES_MAX", 2)
    ownership, found = new(), []
    for tenant in ("a-x", "b-w"):
        hold_shard(ownership, "shard-1", [tenant], 3)
        found.append(ownership.owners.is_full)
    assert found == [False, True]


def test_tenants_beyond_those_with_a_hold_of_their_own_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership_module, "TENANT_HOLDS_MAX", 1)
    ownership = new()
    holds = [hold_tenant(ownership, tenant, 5) for tenant in TENANTS[:2]]
    holds.append(ownership.hold_tenant(TENANTS[2], HoldReason.UNREGISTERED, [unread(5)], START, now=5.0))
    assert [hold.next_attempt_at for hold in holds] == [0.0, *[ownership_module.OVERFLOW_INTERVAL_S] * 2]
    start(ownership, holds[1])
    hold_tenant(ownership, "d-p", 5)
    assert list(owners(ownership))[:4] == ["a-x", "0", "0", "1"]
    assert [ownership.needs_lookup(tenant) for tenant in TENANTS] == [True, *[False] * 5]
    overflow = ownership.owner_of("d-p")
    assert overflow is not None
    start(ownership, holds[0], overflow)
    assert not ownership.needs_lookup("a-x")
    assert hold_tenant(ownership, "f-t", 5).name == "2"
    ownership.remove(holds[0])
    assert hold_tenant(ownership, "e-u", 5).target is HeldTarget.TENANT


def test_hold_knows_why_and_since_when_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership_module, "TENANT_HOLDS_MAX", 1)
    ownership, later = new(), START + timedelta(seconds=9)
    shard = ownership.open_shard_hold("shard-1", START, now=1.0)
    ownership.open_shard_hold("shard-2", START, lacks=unread(5), now=2.0)
    own = ownership.hold_tenant("a-x", HoldReason.OVER_SHARE, [], START, now=3.0)
    ownership.hold_tenant("b-w", HoldReason.FAILING, [unread(5)], later, now=4.0)
    assert [(hold.title, hold.reason, hold.since) for hold in ownership.holds()] == [
        ("shard shard-1", HoldReason.SHARD_UNAVAILABLE, 1.0),
        ("shard shard-2", HoldReason.BACKFILL, 2.0),
        ("tenant a-x", HoldReason.OVER_SHARE, 3.0),
        ("overflow 0", HoldReason.FAILING, 4.0),
    ]
    assert [ownership.has_own_hold(tenant) for tenant in ("a-x", "b-w")] == [True, False]
    assert ownership.hold_tenant("a-x", HoldReason.FAILING, [], later, now=5.0) is own
    assert (own.reason, own.since) == (HoldReason.FAILING, 3.0)
    late = ownership.open_shard_hold("shard-3", later, now=6.0)
    ownership.split("a-x", late, [], later)
    assert late.arrived_at == START
    shard.enter(HoldState.READY)
    assert ownership.open_shard_hold("shard-1", later, now=7.0) is shard
    assert (shard.is_waiting, shard.since) == (True, 1.0)


def test_backfill_stays_when_its_last_known_tenant_leaves_it_and_when_its_shard_fails() -> None:
    ownership = new()
    hold = backfill(ownership, 5)
    assert (hold.reason, ownership.meet_resident("a-x", hold, [])) == (HoldReason.BACKFILL, Meeting.TAKEN)
    hold_tenant(ownership, "a-x")
    assert (ownership.shard_hold("shard-1"), hold.tenants.names) == (hold, frozenset())
    assert hold_shard(ownership, "shard-1", ["b-w"], 7) is hold
    assert (hold.is_backfill, hold.is_waiting, hold.unread) == (True, True, unread(5))
