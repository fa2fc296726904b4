"""The holds of a reader: no operation is lost or overtaken in any history, and the checkpoint passes no pending one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.holding import holds as holds_module
from simplu_worker.consumers.kinesis.holding import tenant_set
from simplu_worker.consumers.kinesis.holding.checkpoint_tracker import CheckpointTracker
from simplu_worker.consumers.kinesis.holding.holds import CatchUp, Hold, Holds, Reason, Target
from simplu_worker.consumers.kinesis.holding.parent_records import ParentRecords
from simplu_worker.consumers.kinesis.holding.tenant_set import TenantSet
from simplu_worker.consumers.kinesis.stream.client import AtSequenceNumber
from simplu_worker.consumers.kinesis.stream.positions import Position, RecordPosition, is_after, lowest_position

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TENANTS = ("a-x", "b-x", "c-x", "d-x", "e-x", "f-x")
SHARDS = ("shard-1", "shard-2")
ROUNDS_MAX = 200  # in which every lane and catch-up does all it can, until all operations are settled


def mark(number: int) -> RecordPosition:
    """Return the place of the record with this number, one a second."""
    return RecordPosition(str(number), 0, START + timedelta(seconds=number))


def at(found: RecordPosition | None) -> int:
    """Return the number of a record; 0 for the beginning."""
    return 0 if found is None else int(found.sequence_number)


@contextmanager
def small_sets(*, names_max: int = 2, tenant_holds_max: int = 2, slots: int = 8) -> Iterator[None]:
    """Make sets use slots early, share slots, and use the overflow hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenant_set, "NAMES_MAX", names_max)
        patch.setattr(tenant_set, "SLOT_COUNT", slots)
        patch.setattr(tenant_set, "ROW_SLOT_COUNT", slots)
        patch.setattr(holds_module, "TENANT_HOLDS_MAX", tenant_holds_max)
        yield


class Entry(msgspec.Struct, frozen=True):
    """An operation in memory, of the record with this number."""

    number: int
    tenant: str
    tracker: CheckpointTracker[RecordPosition]
    ticket: int

    @property
    def before(self) -> RecordPosition | None:
        """The last position before it."""
        return self.tracker.position_before(self.ticket)

    def drop(self) -> None:
        """Finish it with its tracker."""
        self.tracker.finish([self.ticket])


class Lane:
    """The operations queued for one Postgres shard: a batch in flight and the rest behind it."""

    def __init__(self) -> None:
        self.batch: list[Entry] = []
        self.queue: list[Entry] = []

    def entries(self) -> list[Entry]:
        """Return all of it, in order."""
        return [*self.batch, *self.queue]


class Reader:
    """A reader as its dispatcher uses the holds, without I/O: a lane for each shard, and no route lookup.

    It also records the truth: the operations that were sent and applied.
    """

    def __init__(self, holds: Holds) -> None:
        self.holds = holds
        self.main: CheckpointTracker[RecordPosition] = CheckpointTracker()
        self.stream: list[str] = []  # the tenant of each record, from number 1 on
        self.home = dict(zip(TENANTS, SHARDS * len(TENANTS), strict=False))
        self.lanes = {shard_id: Lane() for shard_id in SHARDS}
        self.catch_ups: list[CatchUp] = []
        self.sent: set[int] = set()
        self.settled: set[int] = set()
        self.pending_at_parents: set[str] = set()
        self.now = 0.0

    # What the dispatcher does

    def read(self, tenant: str) -> None:
        """Let the main reader come to the next record, which is of *tenant*."""
        self.stream.append(tenant)
        number = len(self.stream)
        if self.holds.hold_of(tenant) is not None:
            self.main.skip(mark(number))
        else:
            self.send(Entry(number, tenant, self.main, self.main.start(mark(number))))

    def lane_of(self, tenant: str) -> str:
        """Return the shard with operations of the tenant in its lane, or else the tenant's home."""
        for shard_id, lane in self.lanes.items():
            if any(entry.tenant == tenant for entry in lane.entries()):
                return shard_id
        return self.home[tenant]

    def send(self, entry: Entry) -> None:
        """Put an operation into its lane, or hold it with the shard."""
        shard_id = self.lane_of(entry.tenant)
        if self.holds.blocking_shard_hold(shard_id) is not None:
            self.hold_shard(shard_id, [entry])
            return
        before = [number for number in self.numbers_of(entry.tenant) if number < entry.number]
        assert set(before) <= self.sent, f"{entry.number} of {entry.tenant} is sent before one of {before}"
        assert entry.tenant not in self.pending_at_parents, f"{entry.tenant} is sent while pending at its parents"
        self.sent.add(entry.number)
        self.lanes[shard_id].queue.append(entry)

    def hold_shard(self, shard_id: str, entries: Sequence[Entry]) -> None:
        """Hold a shard from the first of *entries* on."""
        tenants = sorted({entry.tenant for entry in entries})
        before = lowest_position(entry.before for entry in entries)
        self.holds.hold_shard(shard_id, tenants, before, mark(entries[0].number).arrived_at, now=self.tick())
        for entry in entries:
            entry.drop()

    def hold_tenant(self, entries: Sequence[Entry]) -> None:
        """Hold the tenant of *entries*, from the first of them on."""
        before = lowest_position(entry.before for entry in entries)
        arrived_at = mark(entries[0].number).arrived_at
        self.holds.hold_tenant(entries[0].tenant, "unregistered", before, arrived_at, now=self.tick())
        for entry in entries:
            entry.drop()

    def tick(self) -> float:
        """Return a later time."""
        self.now += 1
        return self.now

    # What happens to lanes

    def begin_batch(self, shard_id: str, count: int) -> None:
        """Send a batch; one is in flight at a time."""
        lane = self.lanes[shard_id]
        if not lane.batch:
            lane.batch, lane.queue = lane.queue[:count], lane.queue[count:]

    def applied(self, shard_id: str) -> None:
        """Settle the batch in flight."""
        lane = self.lanes[shard_id]
        for entry in lane.batch:
            self.settle(entry)
        lane.batch = []

    def settle(self, entry: Entry) -> None:
        """Apply an operation; it may have been applied before."""
        before = {number for number in self.numbers_of(entry.tenant) if number < entry.number}
        assert before <= self.settled, f"{entry.number} of {entry.tenant} is applied before one of {before}"
        self.settled.add(entry.number)
        entry.drop()

    def failed(self, shard_id: str) -> None:
        """Let the shard fail: its lane is emptied into a hold."""
        lane = self.lanes[shard_id]
        if entries := lane.entries():
            lane.batch, lane.queue = [], []
            self.hold_shard(shard_id, entries)

    def relieved(self, shard_id: str) -> None:
        """Drop the operations behind a batch that is not answered."""
        lane = self.lanes[shard_id]
        if lane.batch and lane.queue:
            queue, lane.queue = lane.queue, []
            self.hold_shard(shard_id, queue)

    def refused(self, shard_id: str, tenant: str, count: int) -> None:
        """Apply the batch but for a tenant's operations after the first *count*, which does not live there now."""
        lane = self.lanes[shard_id]
        own = [entry for entry in lane.batch if entry.tenant == tenant][count:]
        for entry in lane.batch:
            if entry not in own:
                self.settle(entry)
        lane.batch = []
        if own:
            own += [entry for entry in lane.queue if entry.tenant == tenant]
            lane.queue = [entry for entry in lane.queue if entry.tenant != tenant]
            self.hold_tenant(own)

    # What happens to holds

    def begin(self, wanted: Sequence[Hold]) -> None:
        """Begin a catch-up of those of *wanted* that can be caught up now."""
        ready = [hold for hold in wanted if hold.catch_up is None and self.may_begin(hold)]
        if ready:
            self.catch_ups.append(self.holds.start_catch_up(ready))

    def may_begin(self, hold: Hold) -> bool:
        """Whether a hold's target is back, with no batch to it in flight."""
        if hold.target is Target.SHARD:
            return not self.lanes[hold.name].batch
        return hold.target is not Target.PARENTS or hold.is_ready

    def advance(self, catch_up: CatchUp, count: int) -> None:
        """Let a catch-up read its next records, or reach the main reader."""
        for _ in range(count):
            if not catch_up.holds:
                return
            main, last = self.main.last_read, catch_up.tracker.last_read
            if main is None or not is_after(main, last):
                self.holds.finish(catch_up)
                return
            number = at(last) + 1
            here, tenant = mark(number), self.stream[number - 1]
            if self.holds.is_sent_by(tenant, catch_up) and not self.holds.is_record_covered_elsewhere(
                tenant, here, catch_up
            ):
                self.send(Entry(number, tenant, catch_up.tracker, catch_up.tracker.start(here)))
            else:
                catch_up.tracker.skip(here)

    def free_parents(self, still_pending: Iterable[str], *, by_slot: bool = False) -> None:
        """Let the parents finish with all tenants but *still_pending*."""
        self.pending_at_parents.intersection_update(still_pending)
        self.holds.release_from_parents(listed(TenantSet(self.pending_at_parents), by_slot=by_slot), now=self.tick())

    # The truth

    def numbers_of(self, tenant: str) -> list[int]:
        """Return the records of a tenant that were dispatched."""
        return [number for number, one in enumerate(self.stream, start=1) if one == tenant]

    def in_memory(self) -> set[int]:
        """Return the records in lanes."""
        return {entry.number for lane in self.lanes.values() for entry in lane.entries()}

    def check(self) -> None:
        """Check that every operation is settled, in memory, or still to come through a hold."""
        in_memory = self.in_memory()
        for number, tenant in enumerate(self.stream, start=1):
            if number in self.settled or number in in_memory:
                continue
            covering = [hold for hold in self.holds.all() if tenant in hold.tenants]
            assert any(is_after(mark(number), hold.reached) for hold in covering), f"{number} of {tenant} is lost"
        unsettled = set(range(1, len(self.stream) + 1)) - self.settled
        checkpoint = at(self.holds.safe_checkpoint(self.main.checkpoint))
        assert checkpoint < min(unsettled, default=len(self.stream) + 1), "the checkpoint passes a pending record"
        listed = self.holds.held_tenants()
        for tenant in TENANTS:
            is_held = any(tenant in hold.tenants for hold in self.holds.all())
            found = self.holds.hold_of(tenant)
            assert is_held == (found is not None), f"{tenant} is held and not known to be"
            assert found is None or found in self.holds.all()
            assert not is_held or tenant in listed
        if self.holds.is_settled():
            assert not self.holds.all()
            assert checkpoint == at(self.main.checkpoint)

    def finish(self) -> None:
        """Make all targets available, and check that every operation gets settled and every hold ends."""
        self.free_parents(())
        for _ in range(ROUNDS_MAX):
            for shard_id in SHARDS:
                self.begin_batch(shard_id, 100)
                self.applied(shard_id)
            for catch_up in self.catch_ups:
                self.advance(catch_up, 1000)
            self.begin(self.holds.all())
            self.check()
            if self.holds.is_settled() and not self.in_memory():
                break
        assert self.settled == set(range(1, len(self.stream) + 1))
        assert (len(self.holds), self.holds.is_settled()) == (0, True)
        assert at(self.holds.safe_checkpoint(self.main.checkpoint)) == len(self.stream)


def by_name(pending: TenantSet) -> TenantSet:
    """List tenants as they are."""
    return pending


def by_slot(pending: TenantSet) -> TenantSet:
    """List tenants as a lease row does when there are many of them."""
    return TenantSet.decode(pending.encode(limit=0))


def listed(pending: TenantSet, *, by_slot: bool) -> TenantSet:
    """Return what the children read of it in a lease row."""
    return TenantSet.decode(pending.encode(limit=0 if by_slot else 200))


class Scene(msgspec.Struct, frozen=True):
    """Where a history begins."""

    names_max: int
    tenant_holds_max: int
    pending: frozenset[str]  # at the parents
    is_pending_by_slot: bool


class Step(msgspec.Struct, frozen=True):
    """Something that happens to a reader; numbers choose to which of its parts."""

    what: str
    one: int
    other: int
    count: int


# Each as often as it is here: most of what happens should change something.
STEPS = (
    *("read",) * 4,
    *("begin_batch", "catch_up") * 2,
    *("advance",) * 6,
    *("applied", "failed", "failed", "relieved", "refused", "refused", "move", "free_parents"),
)
small_numbers = st.integers(0, 63)
steps = st.lists(
    st.builds(Step, st.sampled_from(STEPS), small_numbers, small_numbers, st.integers(1, 5)), min_size=20, max_size=100
)
scenes = st.builds(
    Scene,
    names_max=st.integers(0, 3),
    tenant_holds_max=st.integers(0, 2),
    pending=st.one_of(st.just(frozenset[str]()), st.frozensets(st.sampled_from(TENANTS))),
    is_pending_by_slot=st.booleans(),
)


def live(scene: Scene, history: Sequence[Step], make_holds: Callable[[], Holds] = Holds) -> None:
    """Let everything of *history* happen to a reader, and see after each step and in the end that all is well."""
    with small_sets(names_max=scene.names_max, tenant_holds_max=scene.tenant_holds_max):
        reader = Reader(make_holds())
        if scene.pending:
            reader.pending_at_parents = set(scene.pending)
            pending = listed(TenantSet(scene.pending), by_slot=scene.is_pending_by_slot)
            reader.holds.hold_parents(pending, None, START, now=0.0)
        for step in history:
            happen(reader, step)
            reader.check()
        reader.finish()


def happen(reader: Reader, step: Step) -> None:
    """Let one step happen, if it can."""
    if step.what in {"read", "move", "catch_up", "advance", "free_parents"}:
        happen_to_reading(reader, step)
    else:
        happen_to_lane(reader, step, SHARDS[step.other % len(SHARDS)])


def happen_to_reading(reader: Reader, step: Step) -> None:
    """Read on, or let something be over, or move a tenant."""
    held = reader.holds.all()
    running = [catch_up for catch_up in reader.catch_ups if catch_up.holds]
    match step.what:
        case "read":
            for count in range(step.count):
                reader.read(TENANTS[(step.one + count * step.other) % len(TENANTS)])
        case "move":
            reader.home[TENANTS[step.one % len(TENANTS)]] = SHARDS[step.other % len(SHARDS)]
        case "catch_up" if held:
            reader.begin([hold for place, hold in enumerate(held) if step.one >> place % 6 & 1])
        case "advance" if running:
            reader.advance(running[step.one % len(running)], step.count)
        case "free_parents":
            still_pending = [tenant for place, tenant in enumerate(TENANTS) if step.one >> place & 1]
            reader.free_parents(still_pending, by_slot=bool(step.other % 2))


def happen_to_lane(reader: Reader, step: Step, shard_id: str) -> None:
    """Send a batch, answer it, or do not."""
    match step.what:
        case "begin_batch":
            reader.begin_batch(shard_id, step.count)
        case "applied":
            reader.applied(shard_id)
        case "failed":
            reader.failed(shard_id)
        case "relieved":
            reader.relieved(shard_id)
        case "refused" if own := [entry.tenant for entry in reader.lanes[shard_id].batch]:
            reader.refused(shard_id, own[step.one % len(own)], step.count - 1)


@settings(max_examples=150)
@given(scenes, steps)
def test_holds_keep_their_promise_whatever_happens(scene: Scene, history: list[Step]) -> None:
    """No operation is lost, first sends are in order, the checkpoint passes no pending record, and every hold ends."""
    live(scene, history)


class _Deferential(Holds):
    """Leaves an operation to any other hold, also to one that has passed it."""

    def is_record_covered_elsewhere(
        self, tenant_id: str, position: RecordPosition, catch_up: CatchUp, shard_id: str | None = None
    ) -> bool:
        others = [hold for hold in self.all() if tenant_id in hold.tenants]
        return any(hold.catch_up is not catch_up for hold in others)


class _Pushy(Holds):
    """Sends operations that another hold has yet to reach."""

    def is_record_covered_elsewhere(
        self, tenant_id: str, position: RecordPosition, catch_up: CatchUp, shard_id: str | None = None
    ) -> bool:
        return False


class _Literal(Holds):
    """Ignores tenants that are held by slot."""

    def hold_of(self, tenant_id: str) -> Hold | None:
        return self._by_name.get(tenant_id)


class _Forgetful(Holds):
    """Ignores the pending operations of catch-ups."""

    def safe_checkpoint(self, main: RecordPosition | None) -> RecordPosition | None:
        return lowest_position([main, *(hold.before for hold in self.all() if hold.catch_up is None)])


class _Impatient(Holds):
    """Releases all tenants as soon as the parents have finished with any."""

    def release_from_parents(self, pending: TenantSet, *, now: float) -> bool:
        return super().release_from_parents(TenantSet(), now=now)


class _Lowering(Holds):
    """Lowers a hold to the last failure, and forgets the position of its catch-up."""

    def hold_shard(
        self, shard_id: str, tenants: Iterable[str], before: RecordPosition | None, arrived_at: datetime, *, now: float
    ) -> Hold:
        hold = super().hold_shard(shard_id, tenants, before, arrived_at, now=now)
        hold.before = before
        return hold


@pytest.mark.parametrize("make_holds", [_Deferential, _Pushy, _Literal, _Forgetful, _Impatient, _Lowering])
def test_histories_tell_a_wrong_design(make_holds: Callable[[], Holds]) -> None:
    """Otherwise they would prove nothing: each wrong design breaks the promise in one history."""

    @settings(max_examples=2000, phases=[Phase.generate], database=None, derandomize=True, print_blob=False)
    @given(scenes, steps)
    def search(scene: Scene, history: list[Step]) -> None:
        live(scene, history, make_holds)

    with pytest.raises(AssertionError):
        search()


def held(holds: Holds) -> dict[str, tuple[list[str], int]]:
    """Return the tenants of every hold, by name, and the place it starts behind."""
    return {f"{hold.target} {hold.name}".strip(): (sorted(hold.tenants.names), at(hold.before)) for hold in holds.all()}


def hold_shard(holds: Holds, shard_id: str, tenants: Iterable[str], before: int) -> Hold:
    """Hold a shard from behind this record on."""
    return holds.hold_shard(shard_id, tenants, mark(before) if before else None, START, now=0.0)


def hold_tenant(holds: Holds, tenant: str, before: int, reason: str = "unregistered") -> Hold:
    """Hold a tenant from behind this record on."""
    return holds.hold_tenant(tenant, reason, mark(before) if before else None, START, now=0.0)


def pass_over(catch_up: CatchUp, *, to: int) -> None:
    """Let a catch-up pass over records that are nothing to it."""
    for number in range(at(catch_up.tracker.last_read) + 1, to + 1):
        catch_up.tracker.skip(mark(number))


def test_tenant_is_in_one_hold_by_name_the_one_that_it_came_to_last() -> None:
    """It leaves its earlier hold, which ends with its last tenant."""
    holds = Holds()
    hold_tenant(holds, "a-x", 5)
    assert held(holds) == {"tenant a-x": (["a-x"], 5)}

    hold_shard(holds, "shard-1", ["a-x", "b-x"], 3)
    assert held(holds) == {"shard shard-1": (["a-x", "b-x"], 3)}

    hold_tenant(holds, "b-x", 2)
    assert held(holds) == {"shard shard-1": (["a-x"], 3), "tenant b-x": (["b-x"], 2)}
    found = holds.hold_of("b-x")
    assert found is not None
    assert (found.name, holds.hold_of("c-x"), len(holds)) == ("b-x", None, 2)


@pytest.mark.parametrize(("second", "expected"), [(3, 3), (7, 5), (0, 0)])
def test_hold_starts_where_the_lowest_of_its_failures_was(second: int, expected: int) -> None:
    """In any order of failures. A new failure makes the hold wait for its target again."""
    holds = Holds()
    hold = hold_shard(holds, "shard-1", ["a-x"], 5)
    hold.is_ready = True

    assert hold_shard(holds, "shard-1", ["b-x"], second) is hold
    assert (at(hold.before), hold.is_ready, sorted(hold.tenants.names)) == (expected, False, ["a-x", "b-x"])


@pytest.mark.parametrize(
    ("reached", "failed", "expected"),
    [
        pytest.param(9, 7, 7, id="what failed was sent before"),
        pytest.param(6, 8, 6, id="what failed was the main reader's, which is further"),
        pytest.param(2, 8, 2, id="the catch-up began with another hold, below its own start"),
    ],
)
def test_hold_that_fails_in_catch_up_starts_where_the_catch_up_was(reached: int, failed: int, expected: int) -> None:
    """Or lower, at the failed operation. The catch-up goes on with its other holds, or without any."""
    holds = Holds()
    hold, other = hold_shard(holds, "shard-1", ["a-x"], 5), hold_tenant(holds, "b-x", 0)
    catch_up = holds.start_catch_up([hold, other])
    pass_over(catch_up, to=reached)
    assert holds.blocking_shard_hold("shard-1") is None

    hold_shard(holds, "shard-1", ["a-x"], failed)

    assert (at(hold.before), hold.catch_up, catch_up.holds) == (expected, None, [other])
    assert holds.blocking_shard_hold("shard-1") is hold
    assert (holds.is_sent_by("a-x", catch_up), holds.is_sent_by("b-x", catch_up)) == (False, True)


def test_catch_up_starts_at_the_lowest_of_its_holds() -> None:
    """At the beginning, where one of them does."""
    holds = Holds()
    first, second, third = hold_tenant(holds, "a-x", 5), hold_tenant(holds, "b-x", 3), hold_tenant(holds, "c-x", 0)

    assert at(holds.start_catch_up([first, second]).start) == 3
    assert holds.start_catch_up([third]).start is None


def test_floor_is_the_lowest_of_everything_owed() -> None:
    """Of the main reader, waiting holds, running catch-ups, and pending operations of ended catch-ups."""
    holds = Holds()
    assert (holds.safe_checkpoint(mark(9)), holds.safe_checkpoint(None)) == (mark(9), None)

    hold = hold_tenant(holds, "a-x", 4)
    hold_tenant(holds, "b-x", 6)
    assert (at(holds.safe_checkpoint(mark(9))), at(holds.safe_checkpoint(mark(2)))) == (4, 2)

    catch_up = holds.start_catch_up([hold])
    ticket = catch_up.tracker.start(mark(5))
    pass_over(catch_up, to=9)
    assert at(holds.safe_checkpoint(mark(9))) == 4

    holds.finish(catch_up)
    assert (at(holds.safe_checkpoint(mark(9))), holds.hold_of("a-x"), holds.is_settled()) == (4, None, False)

    catch_up.tracker.finish([ticket])
    assert at(holds.safe_checkpoint(mark(9))) == 6
    hold_b = holds.hold_of("b-x")
    assert hold_b is not None
    holds.remove(hold_b)
    assert (holds.safe_checkpoint(mark(9)), holds.is_settled()) == (mark(9), True)


def test_checkpoint_goes_on_with_a_catch_up() -> None:
    """While a hold is caught up, the position of the catch-up counts, not the start of the hold."""
    holds = Holds()
    catch_up = holds.start_catch_up([hold_tenant(holds, "a-x", 4)])
    pass_over(catch_up, to=7)
    assert at(holds.safe_checkpoint(mark(9))) == 7


def test_tenants_beyond_those_held_by_themselves_share_a_bucket() -> None:
    """An overflow hold that is being caught up takes no more tenants: these go to the next one."""
    with small_sets(names_max=10, tenant_holds_max=1, slots=1024):
        holds = Holds()
        for number, tenant in enumerate(("a-x", "b-x", "c-x"), start=5):
            hold_tenant(holds, tenant, number)
        assert held(holds) == {"tenant a-x": (["a-x"], 5), "bucket 0": (["b-x", "c-x"], 6)}

        first = holds.start_catch_up([hold for hold in holds.all() if hold.target is Target.OVERFLOW])
        hold_tenant(holds, "d-x", 8)
        hold_tenant(holds, "c-x", 7)
        assert held(holds)["bucket 1"] == (["c-x", "d-x"], 6)  # where the catch-up of the first one is
        assert (holds.is_sent_by("b-x", first), holds.is_sent_by("c-x", first)) == (True, False)

        second = holds.start_catch_up([hold for hold in holds.all() if hold.name == "1"])
        hold_tenant(holds, "e-x", 9)
        assert held(holds)["bucket 2"] == (["e-x"], 9)

        for catch_up in (first, second):
            holds.finish(catch_up)
        hold_tenant(holds, "a-x", 3)
        hold_tenant(holds, "f-x", 9)
        assert held(holds) == {"tenant a-x": (["a-x"], 3), "bucket 2": (["e-x", "f-x"], 9)}


@pytest.mark.parametrize(
    ("named", "slotted", "is_left"),
    [
        pytest.param(5, 9, True, id="its own hold has yet to come to it"),
        pytest.param(8, 9, False, id="both are past it"),
        pytest.param(0, 9, True, id="its own hold starts at the beginning"),
    ],
)
def test_operation_of_a_tenant_in_two_holds_is_left_to_the_one_that_is_behind(
    named: int,
    slotted: int,
    is_left: bool,  # noqa: FBT001 - a table
) -> None:
    """Of all holds with a tenant, by name or by slot, the last one to reach a record sends it."""
    with small_sets(names_max=1, slots=8):
        holds = Holds()
        shard = hold_shard(holds, "shard-1", TENANTS, 2)
        hold_tenant(holds, "a-x", named)
        catch_up = holds.start_catch_up([shard])
        pass_over(catch_up, to=slotted - 1)

        assert (shard.tenants.has_names, "a-x" in shard.tenants) == (False, True)
        assert holds.is_record_covered_elsewhere("a-x", mark(8), catch_up) is is_left
        assert not holds.is_record_covered_elsewhere("b-x", mark(8), catch_up)


def test_tenant_is_held_by_slot_when_its_hold_has_too_many_names() -> None:
    """No tenant is forgotten on the way, and tenants that share a slot wait too."""
    with small_sets(names_max=2, slots=8):
        holds = Holds()
        hold = hold_shard(holds, "shard-1", TENANTS[:2], 3)
        assert [holds.hold_of(tenant) for tenant in TENANTS[:2]] == [hold] * 2

        hold_shard(holds, "shard-1", TENANTS[2:4], 4)
        assert (hold.tenants.has_names, at(hold.before)) == (False, 3)
        assert [holds.hold_of(tenant) for tenant in TENANTS[:4]] == [hold] * 4
        assert all(tenant in holds.held_tenants() for tenant in TENANTS[:4])
        sharing = [f"{number}-y" for number in range(100) if f"{number}-y" in hold.tenants]
        assert sharing
        assert all(holds.hold_of(tenant) is hold for tenant in sharing)

        holds.remove(hold)
        assert [holds.hold_of(tenant) for tenant in (*TENANTS, *sharing)] == [None] * (len(TENANTS) + len(sharing))


@pytest.mark.parametrize("is_held_by_slot", [False, True])
@pytest.mark.parametrize("is_listed_by_slot", [False, True])
def test_parents_free_exactly_those_that_they_owe_no_more(*, is_held_by_slot: bool, is_listed_by_slot: bool) -> None:
    """Each part starts at the first record. Tenants still pending at the parents are not ready, in either form."""
    holds = Holds()
    holds.hold_parents(listed(TenantSet(["a-x", "b-x", "c-x"]), by_slot=is_held_by_slot), None, START, now=0.0)
    holds.release_from_parents(listed(TenantSet(["c-x"]), by_slot=is_listed_by_slot), now=1.0)
    holds.release_from_parents(listed(TenantSet(["b-x", "c-x"]), by_slot=is_listed_by_slot), now=2.0)  # an older answer

    (released,) = [hold for hold in holds.all() if hold.is_ready]
    (kept,) = [hold for hold in holds.all() if not hold.is_ready]
    assert (released.before, kept.before, kept.name) == (None, None, "")
    assert ["a-x" in released.tenants, "b-x" in released.tenants, "c-x" in kept.tenants] == [True] * 3
    assert ["a-x" in kept.tenants, "b-x" in kept.tenants] == [False] * 2
    catch_up = holds.start_catch_up([released])
    pass_over(catch_up, to=9)
    assert not (holds.is_sent_by("c-x", catch_up) and not holds.is_record_covered_elsewhere("c-x", mark(10), catch_up))
    holds.finish(catch_up)
    assert (holds.hold_of("a-x"), holds.hold_of("c-x"), holds.safe_checkpoint(mark(9))) == (None, kept, None)

    holds.release_from_parents(TenantSet(), now=3.0)
    assert [hold.is_ready for hold in holds.all()] == [True]


def test_parents_free_nobody_twice() -> None:
    """Without a hold for the parents, or with the same answer again, nothing changes."""
    holds = Holds()
    holds.release_from_parents(TenantSet(), now=1.0)
    hold = holds.hold_parents(TenantSet(["a-x"]), None, START, now=0.0)
    holds.release_from_parents(TenantSet(["a-x", "b-x"]), now=2.0)

    assert (holds.all(), hold.is_ready, hold.reason) == ([hold], False, Reason.RESHARD)
    assert repr(holds) == "Holds([Hold(parents , reshard, held, before=None)])"


# A Postgres shard that is held as a whole

PARENTS = (ParentRecords("parent", AtSequenceNumber("2"), Position(2), None),)


def hold_whole(holds: Holds, before: int, *, parent_records: tuple[ParentRecords, ...] = ()) -> Hold:
    """Hold all of shard-1 from behind this record on."""
    return holds.hold_whole_shard(
        "shard-1", mark(before) if before else None, START, parent_records=parent_records, now=0.0
    )


def test_whole_shard_is_held_ready_and_no_place_for_anything_new() -> None:
    """The shard answers, so its hold is ready at once. Only the catch-up of the hold sends operations there."""
    holds = Holds()
    hold = hold_whole(holds, 5, parent_records=PARENTS)

    assert (hold.covers_whole_shard, hold.is_ready, hold.reason, at(hold.before)) == (True, True, Reason.BACKFILL, 5)
    assert (
        holds.blocking_shard_hold("shard-1"),
        holds.whole_shard_hold("shard-1"),
        holds.whole_shard_hold("shard-2"),
    ) == (hold, hold, None)
    assert (holds.has_whole_shard_hold, holds.has_parent_records, hold.parent_records) == (True, True, PARENTS)

    catch_up = holds.start_catch_up([hold])
    assert (holds.blocking_shard_hold("shard-1"), holds.whole_shard_hold("shard-1")) == (None, hold)
    pass_over(catch_up, to=9)
    holds.finish(catch_up)
    assert (holds.whole_shard_hold("shard-1"), holds.has_whole_shard_hold, holds.has_parent_records) == (
        None,
        False,
        False,
    )


def test_whole_shard_takes_over_what_was_held_of_it_already() -> None:
    """From the lower of both positions; a running catch-up of the old hold starts again."""
    holds = Holds()
    hold = hold_shard(holds, "shard-1", ["a-x"], 5)
    catch_up = holds.start_catch_up([hold])
    pass_over(catch_up, to=8)

    assert hold_whole(holds, 3) is hold
    assert (at(hold.before), hold.catch_up, catch_up.holds) == (3, None, [])
    assert (hold.covers_whole_shard, hold.is_ready, hold.reason) == (True, True, Reason.BACKFILL)
    assert sorted(hold.tenants.names) == ["a-x"]

    hold_shard(holds, "shard-1", ["b-x"], 7)  # it does not answer, after all
    assert (hold.covers_whole_shard, hold.is_ready, at(hold.before), sorted(hold.tenants.names)) == (
        True,
        False,
        3,
        ["a-x", "b-x"],
    )


def test_shard_that_is_held_for_another_reason_is_not_whole() -> None:
    """Its hold contains the tenants of the operations that it did not take."""
    holds = Holds()
    hold = hold_shard(holds, "shard-1", ["a-x"], 5)

    assert (holds.whole_shard_hold("shard-1"), holds.has_whole_shard_hold, hold.covers_whole_shard) == (
        None,
        False,
        False,
    )
    assert not holds.is_sent_by("b-x", holds.start_catch_up([hold]), "shard-1")


@pytest.mark.parametrize(
    ("tenant", "shard_id", "expected"),
    [
        pytest.param("a-x", "shard-1", True, id="known by name, on this shard"),
        pytest.param("a-x", "shard-2", True, id="known by name: its route is no news"),
        pytest.param("b-x", "shard-1", True, id="not met yet, on this shard"),
        pytest.param("b-x", "shard-2", False, id="lives elsewhere"),
        pytest.param("b-x", None, True, id="without a known shard"),
        pytest.param("c-x", "shard-1", True, id="in a hold of its own, on this shard"),
        pytest.param("c-x", "shard-2", False, id="in a hold of its own"),
    ],
)
def test_catch_up_of_a_whole_shard_is_for_who_lives_there(tenant: str, shard_id: str | None, *, expected: bool) -> None:
    """By the route that the catch-up looks up, or by name, as in every other hold."""
    holds = Holds()
    hold = hold_whole(holds, 5)
    holds.add_tenant(hold, "a-x")
    own = hold_tenant(holds, "c-x", 6)
    catch_up, other = holds.start_catch_up([hold]), holds.start_catch_up([own])

    assert holds.is_sent_by(tenant, catch_up, shard_id) is expected
    assert holds.is_sent_by(tenant, other, shard_id) is (tenant == "c-x")


def test_what_was_sent_for_a_whole_shard_is_a_stray_when_its_tenant_lives_elsewhere() -> None:
    """Only operations that were sent while the tenant's shard was unknown, of tenants not added to the hold since."""
    holds = Holds()
    hold = hold_whole(holds, 5)
    catch_up, other = holds.start_catch_up([hold]), holds.start_catch_up([hold_tenant(holds, "c-x", 6)])
    catch_up.unrouted.update({"a-x": {0}, "b-x": {1}})
    holds.add_tenant(hold, "b-x")

    asked = [(ticket, tenant, shard_id) for ticket in range(3) for tenant in TENANTS for shard_id in SHARDS]
    misrouted = [one for one in asked if holds.is_misrouted(catch_up.tracker, *one)]

    assert misrouted == [(0, "a-x", "shard-2")]
    assert not holds.is_misrouted(other.tracker, 0, "a-x", "shard-2")


def test_operation_of_a_tenant_that_is_held_by_itself_is_left_to_that_hold_which_is_behind() -> None:
    """Both will reach it; the later one sends it, as with other holds."""
    holds = Holds()
    hold, own = hold_whole(holds, 2), hold_tenant(holds, "c-x", 6)
    catch_up = holds.start_catch_up([hold])
    pass_over(catch_up, to=6)

    assert not holds.is_record_covered_elsewhere("c-x", mark(6), catch_up)
    assert holds.is_record_covered_elsewhere("c-x", mark(7), catch_up)
    own_catch_up = holds.start_catch_up([own])
    assert not holds.is_record_covered_elsewhere("c-x", mark(6), own_catch_up)


def test_whole_hold_is_found_by_the_catch_up_at_work_for_it() -> None:
    """Only while the catch-up has the hold: once the hold is lowered, its earlier operations are no backfill."""
    holds = Holds()
    hold, own = hold_whole(holds, 5), hold_tenant(holds, "c-x", 6)
    assert holds.whole_shard_hold_of(CheckpointTracker()) is None
    catch_up, other = holds.start_catch_up([hold]), holds.start_catch_up([own])

    assert (
        holds.whole_shard_hold_of(catch_up.tracker),
        holds.whole_shard_hold_of(other.tracker),
        holds.whole_shard_hold_of(CheckpointTracker()),
    ) == (
        hold,
        None,
        None,
    )

    hold.lower(mark(4), START)
    assert holds.whole_shard_hold_of(catch_up.tracker) is None


def test_whole_hold_stays_when_its_last_known_tenant_leaves_it() -> None:
    """The shard has other tenants, not known by name."""
    holds = Holds()
    hold = hold_whole(holds, 5)
    holds.add_tenant(hold, "a-x")
    own = hold_tenant(holds, "a-x", 7)

    assert holds.all() == [hold, own]
    assert (holds.whole_shard_hold("shard-1"), len(hold.tenants), holds.named_hold_of("a-x")) == (hold, 0, own)
    assert (holds.hold_of("a-x"), at(holds.safe_checkpoint(mark(9)))) == (own, 5)

    other = hold_shard(holds, "shard-2", ["a-x"], 8)
    assert holds.all() == [hold, other]


def test_whole_shard_is_owed_from_its_place_on() -> None:
    """The checkpoint passes neither its start, though it has no tenant by name, nor the operations sent for it."""
    holds = Holds()
    hold = hold_whole(holds, 4)
    assert (at(holds.safe_checkpoint(mark(9))), holds.is_settled(), len(holds.held_tenants())) == (4, False, 0)

    catch_up = holds.start_catch_up([hold])
    ticket = catch_up.tracker.start(mark(5))
    pass_over(catch_up, to=9)
    holds.finish(catch_up)
    assert (at(holds.safe_checkpoint(mark(9))), holds.is_settled(), len(holds)) == (4, False, 0)

    catch_up.tracker.finish([ticket])
    assert (at(holds.safe_checkpoint(mark(9))), holds.is_settled()) == (9, True)


@pytest.mark.parametrize(
    ("reached", "before", "is_taken"),
    [
        pytest.param(4, 6, True, id="it has not come to it"),
        pytest.param(6, 6, True, id="it is just there"),
        pytest.param(7, 6, False, id="it has passed it"),
        pytest.param(4, 0, False, id="it starts at the beginning"),
    ],
)
def test_catch_up_takes_along_what_begins_where_it_has_not_been(reached: int, before: int, *, is_taken: bool) -> None:
    """One reading is enough for both."""
    holds = Holds()
    catch_up = holds.start_catch_up([hold_tenant(holds, "a-x", 2)])
    pass_over(catch_up, to=reached)
    hold = hold_tenant(holds, "b-x", before)

    assert holds.attach(catch_up, hold) is is_taken
    assert (hold.catch_up is catch_up, hold in catch_up.holds) == (is_taken, is_taken)


def test_catch_up_that_has_lost_all_its_holds_takes_none_along() -> None:
    """It is about to end, and would read nothing more for the hold."""
    holds = Holds()
    first, later = hold_tenant(holds, "a-x", 2), hold_tenant(holds, "b-x", 6)
    catch_up = holds.start_catch_up([first])
    first.lower(mark(1), START)

    assert (holds.attach(catch_up, later), later.catch_up) == (False, None)


@pytest.mark.parametrize("is_reading_parents", [True, False])
def test_hold_with_parents_is_caught_up_from_them_on(*, is_reading_parents: bool) -> None:
    """It starts before all records, so no running catch-up takes it; a catch-up at the parents takes no hold either."""
    holds = Holds()
    first = hold_whole(holds, 2, parent_records=PARENTS if is_reading_parents else ())
    later = holds.hold_whole_shard(
        "shard-2", mark(6), START, parent_records=() if is_reading_parents else PARENTS, now=0.0
    )
    catch_up = holds.start_catch_up([first])

    assert catch_up.is_reading_parents is is_reading_parents
    assert catch_up.parent_records == first.parent_records
    assert (holds.attach(catch_up, later), later.catch_up) == (False, None)


def test_what_is_before_a_catch_ups_records_is_known_while_it_reads_that() -> None:
    """Operations that it sends then and that get held need these records again; operations sent later do not."""
    holds = Holds()
    catch_up = holds.start_catch_up([hold_whole(holds, 5, parent_records=PARENTS)])
    assert (holds.parent_records_of(catch_up.tracker), holds.parent_records_of(CheckpointTracker())) == (PARENTS, ())

    catch_up.is_reading_parents = False
    assert holds.parent_records_of(catch_up.tracker) == ()


def test_what_is_before_a_catch_ups_records_is_known_when_its_hold_was_begun_again() -> None:
    """Its operations are still in memory, and may get held after the catch-up has lost its holds."""
    holds = Holds()
    catch_up = holds.start_catch_up([hold_whole(holds, 5, parent_records=PARENTS)])
    catch_up.tracker.start_at_last()
    hold_whole(holds, 5)

    assert (catch_up.holds, holds.parent_records_of(catch_up.tracker)) == ([], PARENTS)


def test_operation_of_a_parent_is_left_to_who_comes_to_it_later() -> None:
    """To a tenant's hold with the same parents' records before its own, not to one with fewer of them."""
    holds = Holds()
    catch_up = holds.start_catch_up([hold_whole(holds, 5, parent_records=PARENTS)])
    own, _, less = (hold_tenant(holds, tenant_id, 6) for tenant_id in TENANTS[:3])
    own.parent_records, less.parent_records = (
        PARENTS,
        (ParentRecords("parent", AtSequenceNumber("3"), Position(3), None),),
    )

    def is_left(tenant_id: str, number: int = 4, *, by: CatchUp = catch_up) -> bool:
        return holds.is_parent_record_covered_elsewhere(tenant_id, "parent", Position(number), by)

    assert [is_left(tenant_id) for tenant_id in TENANTS[:4]] == [True, False, False, False]
    own_catch_up = holds.start_catch_up([own])
    catch_up.parents_reached["parent"] = own_catch_up.parents_reached["parent"] = Position(4)
    assert not is_left("a-x", by=own_catch_up)
    assert [is_left("a-x", number) for number in (4, 5)] == [False, True]


def test_two_who_have_a_tenant_in_slots_do_not_leave_what_its_parents_owed_it_to_each_other() -> None:
    """An operation sent by one is dropped for the whole-shard hold, which cannot leave it to the first one again."""
    with small_sets(names_max=1, tenant_holds_max=0, slots=64):
        holds = Holds()
        whole = hold_whole(holds, 5, parent_records=PARENTS)
        overflow = hold_tenant(holds, "a-x", 6)
        hold_tenant(holds, "b-x", 6)
        overflow.parent_records = PARENTS
        both = [holds.start_catch_up([one]) for one in (overflow, whole)]
        for tenant_id in TENANTS[:2]:
            holds.add_tenant(whole, tenant_id)

        def is_left(by: CatchUp) -> bool:
            left = holds.is_parent_record_covered_elsewhere("a-x", "parent", Position(4), by)
            by.parents_reached["parent"] = Position(4)
            return left

        assert [is_left(catch_up) for catch_up in both] == [True, False]


@pytest.mark.parametrize(
    ("shard_id", "is_left_out", "other_before", "is_left"),
    [
        pytest.param("shard-1", False, 5, False, id="sends all that the other will"),
        pytest.param("shard-1", False, 4, True, id="starts after the other"),
        pytest.param("shard-1", True, 5, True, id="has skipped an operation"),
        pytest.param("shard-3", False, 5, True, id="the tenant is on another shard"),
        pytest.param(None, False, 5, True, id="the tenant has no known shard"),
    ],
)
def test_two_whole_shards_do_not_leave_their_own_tenants_to_each_other(
    shard_id: str | None, other_before: int, *, is_left_out: bool, is_left: bool
) -> None:
    """Each would find skipped operations of the other in its lane, and restart forever."""
    with small_sets(names_max=1, slots=64):
        holds = Holds()
        first = hold_whole(holds, 5, parent_records=PARENTS)
        second = holds.hold_whole_shard("shard-2", mark(other_before), START, parent_records=PARENTS, now=0.0)
        for hold in (first, second):
            for tenant_id in TENANTS[:2]:
                holds.add_tenant(hold, tenant_id)
        catch_up, _ = holds.start_catch_up([first]), holds.start_catch_up([second])
        if is_left_out:
            holds.mark_incomplete(catch_up.tracker, "a-x")

        assert [
            holds.is_parent_record_covered_elsewhere("a-x", "parent", Position(4), catch_up, shard_id),
            holds.is_record_covered_elsewhere("a-x", mark(9), catch_up, shard_id),
        ] == [is_left] * 2


@pytest.mark.parametrize("is_listed_by_slot", [False, True])
def test_parents_free_nobody_who_is_held_by_name_elsewhere(*, is_listed_by_slot: bool) -> None:
    """A tenant waiting for its shard with re-read records of its parents is caught up by that hold, and no earlier."""
    holds = Holds()
    hold = holds.hold_parents(listed(TenantSet(["a-x", "b-x", "c-x", "d-x"]), by_slot=False), None, START, now=0.0)
    own = hold_tenant(holds, "a-x", 3)
    whole = hold_whole(holds, 4)
    holds.add_tenant(whole, "c-x")
    assert sorted(hold.tenants.names) == ["b-x", "d-x"]

    assert holds.release_from_parents(listed(TenantSet(["c-x", "d-x"]), by_slot=is_listed_by_slot), now=1.0)

    (released,) = [one for one in holds.all() if one.target is Target.PARENTS and one.is_ready]
    (kept,) = [one for one in holds.all() if one.target is Target.PARENTS and not one.is_ready]
    assert ([name in released.tenants for name in TENANTS[:4]], released.parent_records) == (
        [False, True, False, False],
        (),
    )
    assert [name in kept.tenants for name in TENANTS[:4]] == [False, False, False, True]
    assert [holds.named_hold_of(name) for name in ("a-x", "c-x")] == [own, whole]
    assert not holds.release_from_parents(listed(TenantSet(["c-x", "d-x"]), by_slot=is_listed_by_slot), now=2.0)


def test_parents_in_slots_leave_who_is_held_by_name_to_the_later_hold() -> None:
    """A tenant cannot be removed from slots: it is in both holds, and its own one is behind."""
    with small_sets(names_max=4, slots=64):
        holds = Holds()
        holds.hold_parents(TenantSet.decode(TenantSet(TENANTS).encode(limit=0)), None, START, now=0.0)
        own = hold_tenant(holds, "a-x", 3)
        assert holds.release_from_parents(TenantSet(), now=1.0)
        (released,) = [one for one in holds.all() if one.target is Target.PARENTS]
        catch_up = holds.start_catch_up([released])
        pass_over(catch_up, to=3)

        assert holds.hold_of("a-x") is own
        assert holds.is_record_covered_elsewhere("a-x", mark(4), catch_up)


def hold_by_a_parents_record(holds: Holds, target: Target, catch_up: CatchUp) -> Hold:
    """Hold a tenant by a record of a parent, which counts as the start of the catch-up's own records."""
    if target is Target.TENANT:
        return holds.hold_tenant("a-x", "inactive", catch_up.tracker.last_read, START, now=0.0)
    return holds.hold_shard("shard-2", ["a-x"], catch_up.tracker.last_read, START, now=0.0)


def test_tenant_in_slots_gets_its_parents_records_before_its_own() -> None:
    """It cannot be removed from slots: these leave the later records to the hold that reads the parents' records."""
    with small_sets(names_max=4, slots=64):
        holds = Holds()
        holds.hold_parents(TenantSet.decode(TenantSet(TENANTS).encode(limit=0)), None, START, now=0.0)
        own = hold_tenant(holds, "a-x", 10)
        others = hold_tenant(holds, "b-x", 10)

        holds.require_parent_records(own, PARENTS, ["a-x"])
        holds.require_parent_records(others, (), ["b-x"])

        assert (own.parent_records, own.before, at(others.before)) == (PARENTS, None, 10)
        assert holds.release_from_parents(TenantSet(["a-x"]), now=1.0)
        (released,) = [one for one in holds.all() if one.target is Target.PARENTS]
        catch_up = holds.start_catch_up([released])
        assert (holds.is_record_covered_elsewhere("a-x", mark(3), catch_up), "a-x" in released.tenants) == (True, True)
        assert not holds.is_record_covered_elsewhere("b-x", mark(3), catch_up)


@pytest.mark.parametrize("reached", [0, 4])
@pytest.mark.parametrize("target", [Target.TENANT, Target.SHARD])
def test_tenant_takes_along_what_another_hold_still_owed_it(target: Target, reached: int) -> None:
    """The parents' records are read before the tenant's own, from wherever other holds need these."""
    holds = Holds()
    holds.hold_predecessors(TenantSet(["a-x", "b-x"]), None, START, now=0.0)
    (predecessors,) = holds.all()
    if reached:
        pass_over(holds.start_catch_up([predecessors]), to=reached)
    catch_up = holds.start_catch_up([hold_whole(holds, 10, parent_records=PARENTS)])

    own = hold_by_a_parents_record(holds, target, catch_up)

    assert (holds.named_hold_of("a-x"), at(own.before)) == (own, reached)
    assert sorted(predecessors.tenants.names) == ["b-x"]
    assert at(predecessors.reached) == reached


# What other parts ask the holds


def test_catch_up_covers_what_it_reads_from_its_start_on() -> None:
    """From the beginning all of it; records of parents only where it reads them too."""
    holds = Holds()
    from_beginning = holds.start_catch_up([hold_tenant(holds, "a-x", 0)])
    from_five = holds.start_catch_up([hold_tenant(holds, "b-x", 5)])
    found = [
        (one.covers("a-x", None, ()), one.covers("a-x", mark(4), ()), one.covers("a-x", mark(5), ()))
        for one in (from_beginning, from_five)
    ]
    assert found == [(True, True, True), (False, False, True)]
    assert not from_beginning.covers("a-x", mark(5), PARENTS)
    from_beginning.incomplete_tenants.add("a-x")
    assert not from_beginning.covers("a-x", mark(5), ())


def test_live_tenants_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten one is held with the others of its slot: safe, and only slower."""
    monkeypatch.setattr(holds_module, "LIVE_TENANTS_MAX", 2)
    holds, remembered = Holds(), []
    for tenant_id in TENANTS[:4]:
        holds.mark_live({tenant_id})
        remembered.append(sorted(holds._live_tenants))
    assert remembered == [["a-x"], ["a-x", "b-x"], ["c-x"], ["c-x", "d-x"]]


def test_operation_of_the_main_reader_is_not_misrouted() -> None:
    """It is sent to the shard of its tenant."""
    assert not Holds().is_misrouted(CheckpointTracker(), 0, "a-x", "shard-1")


def test_hold_of_a_whole_shard_begins_now() -> None:
    """The status shows for how long."""
    hold = Holds().hold_whole_shard("shard-1", None, START, parent_records=(), now=7.0)
    assert (hold.since, hold.next_attempt_at) == (7.0, 7.0)


def test_parents_are_read_again_for_the_shards_that_may_need_them() -> None:
    """For its own one, where a shard is held as a whole; else for any."""
    holds = Holds()
    assert not holds.is_rereading_parents_for("shard-1")
    hold_shard(holds, "shard-2", ["b-x"], 5)
    hold_whole(holds, 5)
    assert not holds.is_rereading_parents_for("shard-1")
    hold_whole(holds, 5, parent_records=PARENTS)
    assert [holds.is_rereading_parents_for(one) for one in ("shard-1", "shard-2")] == [True, False]
    hold_tenant(holds, "a-x", 5).parent_records = PARENTS
    assert holds.is_rereading_parents_for("shard-2")


def test_tenants_wait_for_parents_while_all_are_pending_there() -> None:
    """Those that were released wait no longer."""
    holds = Holds()
    assert not holds.are_waiting_for_parents(set())
    hold_tenant(holds, "d-x", 5)
    parents = holds.hold_parents(TenantSet(["a-x", "b-x"]), None, START, now=0.0)
    sets = ({"a-x"}, {"a-x", "b-x"}, {"a-x", "c-x"}, {"d-x"})
    assert [holds.are_waiting_for_parents(one) for one in sets] == [True, True, False, False]
    parents.is_ready = True
    assert not holds.are_waiting_for_parents({"a-x"})


def test_predecessors_are_ready_at_once_from_the_checkpoint_on() -> None:
    """Nobody else sends their operations."""
    holds = Holds()
    holds.hold_predecessors(TenantSet(["a-x"]), mark(3), START, now=7.0)
    (hold,) = holds.all()
    assert (hold.target, hold.name, hold.reason) == (Target.PREDECESSOR, "", Reason.TAKEN_OVER)
    assert (hold.before, hold.arrived_at, hold.since, hold.is_ready) == (mark(3), START, 7.0, True)


def test_catch_up_takes_along_whole_shards_beside_its_own() -> None:
    """And no hold from the beginning of reading."""
    holds = Holds()
    catch_up = holds.start_catch_up([hold_whole(holds, 2)])
    other = holds.hold_whole_shard("shard-2", mark(6), START, parent_records=(), now=0.0)
    assert holds.attach(catch_up, hold_tenant(holds, "a-x", 6))
    assert catch_up.whole_shard_ids == {"shard-1"}
    assert holds.attach(catch_up, other)
    assert catch_up.whole_shard_ids == {"shard-1", "shard-2"}
    assert not holds.attach(catch_up, hold_tenant(holds, "b-x", 0))
    from_beginning = holds.start_catch_up([hold_tenant(holds, "c-x", 0)])
    assert not holds.attach(from_beginning, hold_tenant(holds, "d-x", 0))


@pytest.mark.parametrize("is_caught_up", [True, False])
@pytest.mark.parametrize("is_ready", [True, False])
@pytest.mark.parametrize(("other_before", "is_lowered"), [(3, True), (5, False), (8, False), (0, True)])
def test_hold_is_lowered_only_to_one_that_has_not_come_as_far(
    other_before: int, *, is_lowered: bool, is_ready: bool, is_caught_up: bool
) -> None:
    """It then leaves its catch-up, and goes on to be ready for one if it was."""
    holds = Holds()
    hold, other = hold_tenant(holds, "a-x", 5), hold_shard(holds, "shard-1", ["b-x", "c-x"], other_before)
    hold.is_ready = is_ready
    catch_up = holds.start_catch_up([hold]) if is_caught_up else None

    holds.add_tenant(hold, "b-x")

    assert at(hold.before) == (other_before if is_lowered else 5)
    assert hold.catch_up is (None if is_lowered else catch_up)
    assert hold.is_ready is (is_ready or (is_lowered and is_caught_up))
    assert (at(other.before), sorted(other.tenants.names)) == (other_before, ["c-x"])


def test_hold_from_the_beginning_is_not_lowered() -> None:
    """There is nothing before it."""
    holds = Holds()
    hold = hold_tenant(holds, "a-x", 0)
    hold_shard(holds, "shard-1", ["b-x"], 3)
    catch_up = holds.start_catch_up([hold])
    holds.add_tenant(hold, "b-x")
    assert (hold.before, hold.catch_up) == (None, catch_up)


def test_parents_records_lower_a_hold_only_to_slots_that_have_a_tenant_of_it() -> None:
    """One of several tenants is enough."""
    with small_sets(names_max=4, slots=64):
        holds = Holds()
        slots = TenantSet.decode(TenantSet(["a-x", "b-x"]).encode(limit=0))
        holds.hold_predecessors(slots, mark(3), START, now=0.0)
        without, one_of_two = (hold_shard(holds, f"shard-{number}", [], 10) for number in (1, 2))
        outside = [one for one in TENANTS if one not in slots]
        holds.require_parent_records(without, PARENTS, outside[:1])
        holds.require_parent_records(one_of_two, PARENTS, ["a-x", *outside[:1]])
        assert (at(without.before), at(one_of_two.before), without.parent_records) == (10, 3, PARENTS)


def test_tenants_that_parents_still_have_pending_are_held_since_the_beginning() -> None:
    """Those that are released are held anew; both from where the parents were held."""
    holds = Holds()
    holds.hold_parents(TenantSet(["a-x", "b-x"]), mark(3), START, now=1.0)
    assert holds.release_from_parents(TenantSet(["b-x"]), now=7.0)
    found = {
        tuple(hold.tenants.names): (at(hold.before), hold.arrived_at, hold.since, hold.is_ready) for hold in holds.all()
    }
    assert found == {("a-x",): (3, START, 7.0, True), ("b-x",): (3, START, 1.0, False)}


@pytest.mark.parametrize(
    ("reached", "arrived_s", "expected_s"),
    [
        pytest.param(9, 20, 9, id="the catch-up has passed the operation of which the hold knew"),
        pytest.param(9, 4, 4, id="the operation that failed now arrived before"),
        pytest.param(None, 20, 3, id="without a catch-up the earlier one stays"),
    ],
)
def test_hold_that_is_lowered_knows_when_its_first_operation_arrived(
    reached: int | None, arrived_s: int, expected_s: int
) -> None:
    """About: no operation before the record that its catch-up has reached is missing."""
    holds = Holds()
    hold = holds.hold_tenant("a-x", "unregistered", mark(5), START + timedelta(seconds=3), now=0.0)
    if reached is not None:
        pass_over(holds.start_catch_up([hold]), to=reached)
    hold.lower(mark(4), START + timedelta(seconds=arrived_s))
    assert hold.arrived_at == START + timedelta(seconds=expected_s)


def test_live_tenant_is_not_held_when_it_only_shares_a_slot() -> None:
    """The main reader goes on to send its operations; a tenant with a name in a hold is held all the same."""
    with small_sets(names_max=2, slots=8):
        holds = Holds()
        hold = hold_shard(holds, "shard-1", TENANTS[:3], 3)
        sharing = next(f"{number}-y" for number in range(100) if f"{number}-y" in hold.tenants)
        before = holds.hold_of(sharing)
        holds.mark_live({sharing})
        assert (before, holds.hold_of(sharing)) == (hold, None)


def test_catch_up_of_several_holds_sends_what_one_of_them_contains() -> None:
    """One whole shard among its holds is enough for a tenant of that shard."""
    holds = Holds()
    whole, own = hold_whole(holds, 5), hold_tenant(holds, "a-x", 5)
    catch_up = holds.start_catch_up([own, whole])
    assert [holds.is_sent_by("b-x", catch_up, shard_id) for shard_id in ("shard-1", "shard-2")] == [True, False]


def test_tenant_in_slots_is_sent_by_the_catch_up_of_those_slots_alone() -> None:
    """Another hold with slots, or another tenant of these slots, does not count."""
    with small_sets(names_max=1, slots=64):
        holds = Holds()
        first, second = hold_shard(holds, "shard-1", TENANTS[:2], 3), hold_shard(holds, "shard-2", TENANTS[2:4], 3)
        assert ["a-x" in second.tenants, "c-x" in first.tenants] == [False, False]
        catch_up = holds.start_catch_up([first])
        assert [holds.is_sent_by(tenant, catch_up) for tenant in TENANTS[:4]] == [True, True, False, False]


def test_whole_shard_leaves_a_tenant_to_a_hold_of_its_own_whatever_it_covers() -> None:
    """Only another whole shard would drop the tenant's operations in this shard's lane."""
    holds = Holds()
    whole, _ = hold_whole(holds, 5), hold_tenant(holds, "a-x", 5)
    catch_up = holds.start_catch_up([whole])
    assert holds.is_record_covered_elsewhere("a-x", mark(9), catch_up, "shard-1")


@pytest.mark.parametrize("is_whole", [True, False])
def test_only_catch_up_of_a_whole_shard_keeps_its_tenants_from_another_whole_shard(*, is_whole: bool) -> None:
    """Also beside other holds; the catch-up of a shard that is not held as a whole leaves them to the other."""
    holds = Holds()
    first = hold_whole(holds, 5) if is_whole else hold_shard(holds, "shard-1", [], 5)
    beside = hold_tenant(holds, "b-x", 5)
    second = holds.hold_whole_shard("shard-2", mark(5), START, parent_records=(), now=0.0)
    holds.add_tenant(second, "a-x")
    catch_up = holds.start_catch_up([beside, first])
    assert holds.is_record_covered_elsewhere("a-x", mark(9), catch_up, "shard-1") is not is_whole


def test_hold_of_a_shard_has_a_reason_a_time_and_a_tenant_to_probe_with() -> None:
    """The tenant is one of those whose operations the shard did not take."""
    holds = Holds()
    hold = holds.hold_shard("shard-1", ["a-x", "b-x"], mark(5), START, now=7.0)
    assert (hold.reason, hold.since, hold.next_attempt_at, hold.sample_tenant) == (
        Reason.SHARD_UNAVAILABLE,
        7.0,
        7.0,
        "b-x",
    )


def test_tenants_released_by_parents_one_after_the_other_have_holds_with_names_of_their_own() -> None:
    """The names are counted; a release of nothing is none."""
    holds = Holds()
    holds.hold_parents(TenantSet(["a-x", "b-x"]), mark(3), START, now=1.0)
    releases = [
        holds.release_from_parents(TenantSet(pending), now=7.0) for pending in (["a-x", "b-x"], ["b-x"], ["b-x"], [])
    ]
    assert releases == [False, True, False, True]
    assert [(hold.name, hold.reason) for hold in holds.all()] == [("1", Reason.RESHARD), ("2", Reason.RESHARD)]
    assert not holds.release_from_parents(TenantSet(), now=8.0)


def test_parents_release_nothing_when_their_hold_is_ready() -> None:
    """All its tenants are caught up already."""
    holds = Holds()
    hold = holds.hold_parents(TenantSet(["a-x"]), None, START, now=0.0)
    hold.is_ready = True
    assert (holds.release_from_parents(TenantSet(), now=1.0), holds.all()) == (False, [hold])


def test_hold_that_ends_leaves_its_catch_up() -> None:
    """The catch-up goes on for its other holds."""
    holds = Holds()
    hold, other = hold_tenant(holds, "a-x", 5), hold_tenant(holds, "b-x", 5)
    catch_up = holds.start_catch_up([hold, other])
    holds.remove(hold)
    assert (hold.catch_up, catch_up.holds) == (None, [other])


@pytest.mark.parametrize("has_hold", [True, False])
def test_finished_catch_up_counts_no_longer(*, has_hold: bool) -> None:
    """Neither for the checkpoint nor for the end of all work."""
    holds = Holds()
    catch_up = holds.start_catch_up([hold_tenant(holds, "a-x", 4)])
    pass_over(catch_up, to=6)
    if not has_hold:
        holds.finish(catch_up)
    assert holds.is_settled() is not has_hold

    holds = Holds()
    catch_up = holds.start_catch_up([hold_tenant(holds, "a-x", 4)])
    pass_over(catch_up, to=6)
    if not has_hold:
        holds.finish(catch_up)
    assert at(holds.safe_checkpoint(mark(9))) == (6 if has_hold else 9)


def test_tenant_has_a_hold_of_its_own_again_when_another_one_ended() -> None:
    """Only the holds that there are count towards the bound."""
    with small_sets(tenant_holds_max=1):
        holds = Holds()
        for tenant_id in TENANTS:
            hold = hold_tenant(holds, tenant_id, 5)
            assert hold.target is Target.TENANT
            holds.remove(hold)


def test_tenant_of_two_lists_stays_with_the_hold_that_got_it_last() -> None:
    """The predecessor's list ends, or turns into slots; the parents' hold keeps the tenant's name."""
    for ends_by in ("removal", "slots"):
        with small_sets(names_max=2, slots=64):
            holds = Holds()
            holds.hold_predecessors(TenantSet(["a-x", "b-x"]), mark(3), START, now=0.0)
            (predecessors,) = holds.all()
            parents = holds.hold_parents(TenantSet(["a-x"]), None, START, now=0.0)
            if ends_by == "removal":
                holds.remove(predecessors)
            else:
                holds.add_tenant(predecessors, "c-x")
            assert (holds.named_hold_of("a-x"), holds.named_hold_of("b-x")) == (parents, None)
