from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from simplu_worker.consumers.kinesis.holding.ownership import CatchUp, Hold
from simplu_worker.consumers.kinesis.holding.tenant_set import ParentRecords, Unread
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber, Position, RecordPosition
from simplu_worker.vocabulary import HeldTarget, HoldReason, HoldState

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PARENTS = tuple(ParentRecords(one, AtSequenceNumber("2"), Position(2), None) for one in ("parent-1", "parent-2"))


def mark(number: int) -> RecordPosition:
    return RecordPosition(str(number), 0, START + timedelta(seconds=number))


AT_4 = Unread(mark(4))


def make_hold(after: int, *parents: ParentRecords, target: HeldTarget = HeldTarget.SHARD, arrived_s: int = 0) -> Hold:
    arrived_at = START + timedelta(seconds=arrived_s)
    return Hold(target, "", HoldReason.FAILING, unread=Unread(mark(after), parents), arrived_at=arrived_at, now=7.0)


def catch_up_of(*holds: Hold) -> CatchUp:
    for hold in holds:
        hold.enter(HoldState.READY)
    return CatchUp(holds)


@pytest.mark.parametrize("target", HeldTarget)
def test_hold_waits_is_ready_and_is_caught_up(target: HeldTarget) -> None:
    hold = make_hold(5, target=target)
    assert (hold.sample_tenant, hold.is_backfill, hold.attempt_count, hold.passed_count) == ("", False, 0, 0)
    states = []
    for change in (lambda: hold.enter(HoldState.READY), lambda: catch_up_of(hold), lambda: hold.lower(AT_4, START)):
        change()
        states.append((hold.is_waiting, hold.is_waiting_for_parents, hold.state))

    waiting = (True, target is HeldTarget.PARENTS, HoldState.HELD)
    assert states == [(False, False, HoldState.READY), (False, False, HoldState.CATCHING_UP), waiting]
    assert (hold.since, hold.next_attempt_at) == (7.0, 7.0)


@pytest.mark.parametrize(
    ("state", "following"),
    [
        (HoldState.HELD, {HoldState.HELD, HoldState.READY}),
        (HoldState.READY, set(HoldState)),
        (HoldState.CATCHING_UP, {HoldState.HELD}),
    ],
)
def test_hold_enters_only_a_state_that_may_follow(state: HoldState, following: set[HoldState]) -> None:
    for entered in HoldState:
        hold, other = make_hold(5), catch_up_of(make_hold(5))
        catch_up = None
        if state is HoldState.CATCHING_UP:
            catch_up = catch_up_of(hold)
        else:
            hold.enter(state)
        wanted = other if entered is HoldState.CATCHING_UP else None
        if entered in following:
            hold.enter(entered, wanted)
            assert (hold.state, hold.catch_up) == (entered, wanted)
        else:
            with pytest.raises(ValueError, match="expected a state that may follow"):
                hold.enter(entered, wanted)
            assert (hold.state, hold.catch_up) == (state, catch_up)
        for one in (catch_up, other):
            assert one is None or (hold in one.holds) is (hold.catch_up is one)


def test_hold_that_is_caught_up_and_no_other_has_a_catch_up() -> None:
    hold, catch_up = make_hold(5), catch_up_of(make_hold(5))
    hold.enter(HoldState.READY)
    for state, wrong in ((HoldState.CATCHING_UP, None), (HoldState.HELD, catch_up)):
        with pytest.raises(ValueError, match="expected a state that may follow"):
            hold.enter(state, wrong)


@pytest.mark.parametrize(("lowered_to", "expected"), [(8, 6), (6, 6), (3, 3)])
def test_hold_that_is_lowered_reads_on_from_the_lower_of_its_catch_up_and_the_new_start(
    lowered_to: int, expected: int
) -> None:
    hold, other = make_hold(5), make_hold(2)
    catch_up = catch_up_of(hold, other)
    catch_up.tracker.skip(mark(6))
    hold.lower(Unread(mark(lowered_to), PARENTS[1:]), START)
    assert (hold.unread, hold.reached) == (Unread(mark(expected), PARENTS[1:]), mark(expected))
    assert (hold.catch_up, catch_up.holds, other.reached) == (None, [other], mark(6))


@pytest.mark.parametrize(
    ("reached", "arrived_s", "expected_s"),
    [
        pytest.param(9, 20, 9, id="the catch-up has passed the operation of which the hold knew"),
        pytest.param(9, 4, 4, id="the new operation arrived before"),
        pytest.param(None, 20, 3, id="without a catch-up the earlier one stays"),
    ],
)
def test_hold_knows_about_when_its_first_operation_arrived(
    reached: int | None, arrived_s: int, expected_s: int
) -> None:
    hold = make_hold(5, arrived_s=3)
    assert hold.first_arrival == START + timedelta(seconds=3)
    if reached is not None:
        catch_up_of(hold).tracker.skip(mark(reached))
        assert hold.first_arrival == mark(reached).arrived_at
    hold.lower(Unread(mark(4)), START + timedelta(seconds=arrived_s))
    assert hold.arrived_at == START + timedelta(seconds=expected_s)


def test_catch_up_reads_all_that_its_holds_have_not_read() -> None:
    holds = [make_hold(5, PARENTS[1]), make_hold(3, PARENTS[0])]
    catch_up = catch_up_of(*holds)
    assert (catch_up.unread, [hold.unread for hold in holds]) == (Unread(mark(3), PARENTS), [catch_up.unread] * 2)
    assert not catch_up.is_backfill
    holds[1].is_backfill = True
    assert catch_up.is_backfill


def test_catch_up_goes_on_after_each_record_of_a_parent() -> None:
    catch_up = catch_up_of(make_hold(5, *PARENTS))
    catch_up.pass_parent_record(Position(4, 1))
    rest = ParentRecords("parent-1", AtSequenceNumber("4"), Position(4, 1), None)
    assert catch_up.unread == Unread(mark(5), (rest, PARENTS[1]))
    catch_up.pass_parent()
    assert catch_up.unread == Unread(mark(5), PARENTS[1:])


def test_parents_of_a_catch_up_are_pending_until_all_are_read_and_settled() -> None:
    catch_up = catch_up_of(make_hold(5, *PARENTS))
    tickets = []
    for _ in PARENTS:
        tickets.append(catch_up.tracker.start_at_last())
        catch_up.pass_parent()
    own = catch_up.tracker.start(mark(6))
    pending = [catch_up.has_pending_parents]
    for ticket in (*tickets, own):
        catch_up.tracker.finish([ticket])
        pending.append(catch_up.has_pending_parents)
    assert pending == [True, True, False, False]
    assert catch_up_of(make_hold(5, *PARENTS)).has_pending_parents
    without_parents = catch_up_of(make_hold(5))
    without_parents.tracker.start(mark(6))
    assert not without_parents.has_pending_parents


@pytest.mark.parametrize(
    ("unread", "comes_to", "own_after"),
    [
        pytest.param(Unread(mark(7)), True, 5, id="later own records"),
        pytest.param(Unread(mark(3)), True, 3, id="earlier own records, while it reads those of parents"),
        pytest.param(Unread(None), True, None, id="all own records"),
        pytest.param(Unread(mark(3), PARENTS[:1]), True, 3, id="those of a parent that it reads, too"),
        pytest.param(
            Unread(mark(3), (ParentRecords("parent-0", AtSequenceNumber("2"), Position(2), None),)),
            False,
            5,
            id="those of another parent: it does not start lower in vain",
        ),
    ],
)
def test_catch_up_comes_to_records(unread: Unread, comes_to: bool, own_after: int | None) -> None:  # noqa: FBT001
    catch_up = catch_up_of(make_hold(5, *PARENTS))
    assert catch_up.comes_to(unread) is comes_to
    assert catch_up.unread == Unread(None if own_after is None else mark(own_after), PARENTS)
