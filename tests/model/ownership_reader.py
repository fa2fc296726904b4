"""One reader under exclusive ownership: everything that it may do next, by its memory and by where tenants are now.

Contact with the row of a shard, commits included, is the model's (`ownership_model.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from model.failover_rows import NEW
from model.ownership import (
    MAIN,
    NEVER,
    NO_SHARD,
    NOT_ASKED,
    NOTHING,
    TENANT,
    Ownership,
    Pipeline,
    Reader,
    Rules,
    backfill_of,
    change,
    ensure_hold,
    hand_over,
    hold_of,
    tidied,
)
from model.search import Memory, StatePart, put_at
from msgspec.structs import replace

TENANT_NAMES = "abc"
SHARD_NAMES = "AB"


class Placement(StatePart, frozen=True):
    homes: tuple[int, ...]  # by tenant; NO_SHARD: not registered yet
    is_down: tuple[bool, ...]  # by shard

    def answers(self, target: int) -> bool:
        if target in (NOTHING, NEVER):
            return target == NOTHING
        return self.homes[target - TENANT] != NO_SHARD if target >= TENANT else not self.is_down[target]


class Lease(StatePart, frozen=True):
    """The lease row: the checkpoint, and for a successor that continues ahead of it the position that is read to."""

    checkpoint: int = 0
    read_to: int = 0
    held: tuple[int, ...] = ()  # tenants for which only the checkpoint counts


class Bounds(NamedTuple):
    """The bounds of a reader: where one is reached, nothing is read until there is room."""

    pipelines_reading: int = 99
    operations_in_memory: int = 99


UNBOUNDED = Bounds()


class Prospect(NamedTuple):
    """What a reader may do without a row, and the positions that it may write."""

    moves: tuple[tuple[str, Reader], ...]
    safe_checkpoint: int
    lease: Lease


class OwnershipReaders:
    def __init__(
        self, tenants: Sequence[int], tenant_count: int, shard_count: int, rules: Rules, bounds: Bounds = UNBOUNDED
    ) -> None:
        self.ownership = Ownership(tenants, tenant_count, rules)
        self._tenants = tenants
        self._end = len(tenants)
        self._shards = range(shard_count)
        self._all = range(tenant_count)
        self._bounds = bounds
        self._prospects: Memory[tuple[Reader, Placement], Prospect] = (
            Memory()
        )  # a reader is in many states of the model

    def start(self, lease: Lease) -> Reader:
        """Return a reader that starts by a lease row: tenants held there are a pipeline that is ready."""
        held = Pipeline(NO_SHARD, lease.checkpoint, is_reading=False, waits_for=NOTHING)
        return Reader(
            main=lease.read_to,
            began=lease.read_to,
            owners=tuple(0 if tenant in lease.held else MAIN for tenant in self._all),
            pipelines=(held,) if lease.held else (),
            lanes=((),) * len(self._shards),
            lookup=((),) * len(self._all),
            routes=(NO_SHARD,) * len(self._all),
            tokens=(NEW,) * len(self._shards),
        )

    def prospect(self, reader: Reader, placement: Placement) -> Prospect:
        key = (reader, placement)
        if key not in self._prospects:
            moves = tuple((label, tidied(following)) for label, following in self._moves(reader, placement))
            checkpoint = self.ownership.safe_checkpoint(reader)
            self._prospects[key] = Prospect(moves, checkpoint, Lease(checkpoint, *self.ownership.read_to(reader)))
        return self._prospects[key]

    def heads(self, reader: Reader, shard: int) -> tuple[int, ...]:
        """Return the operations that may be committed on a shard next: the first of each tenant in its lane."""
        own_lanes, first = self.ownership.rules.own_lanes, dict[int, int]()
        for operation in reader.lanes[shard]:
            tenant = self._tenants[operation]
            first.setdefault(reader.owners[tenant] if own_lanes else tenant, operation)
        return (*first.values(),)

    def sheddings(self, reader: Reader) -> Iterator[tuple[str, Reader]]:
        for shard in self._shards:
            for tenant in self.ownership.tenants_of(reader.lanes[shard]):
                count = sum(self._tenants[one] == tenant for one in reader.lanes[shard])
                for kept in range(count):
                    label = f"{TENANT_NAMES[tenant]} is held for its share, {kept} of {count} stay"
                    yield label, tidied(self.ownership.shed(reader, tenant, shard, kept))

    def take_back(self, reader: Reader, shard: int, tenant: int) -> Reader:
        """Return the reader after a shard's answer that a tenant is not stored there: its operations are looked up."""
        lane = reader.lanes[shard]
        queued = tuple(one for one in lane if self._tenants[one] == tenant)
        return replace(
            reader,
            lanes=put_at(reader.lanes, shard, tuple(one for one in lane if self._tenants[one] != tenant)),
            lookup=put_at(reader.lookup, tenant, (*queued, *reader.lookup[tenant])),
            routes=put_at(reader.routes, tenant, NO_SHARD),
        )

    def backfill(self, reader: Reader, shard: int, start: int) -> Reader:
        """Return the reader with a backfill of a shard that has lost commits behind *start*.

        A backfill that the shard has already begins again: it may have met tenants whose operations were lost again.
        """
        rules = self.ownership.rules
        number = backfill_of(reader, shard)
        if number is None:
            number = len(reader.pipelines)
            pipeline = Pipeline(shard, start, is_reading=self._may_begin(reader), waits_for=NOTHING)
            reader = replace(reader, pipelines=(*reader.pipelines, pipeline))
        elif not rules.continues_after_loss:
            reader = self.ownership.restart(reader, number, start)
        for tenant in self.ownership.tenants_of(reader.lanes[shard]):
            queued = self.ownership.in_memory(reader, tenant)
            is_ahead = bool(queued) and reader.pipelines[number].next <= min(queued)
            if reader.owners[tenant] == number or not is_ahead or rules.sends_beside_backfill:
                continue
            if rules.owns_by_route:
                reader = self.ownership.drop(reader, tenant)
            else:
                reader = self.ownership.give(reader, tenant, number)
        return tidied(reader)

    def _moves(self, reader: Reader, placement: Placement) -> Iterator[tuple[str, Reader]]:
        if reader.main < self._end and self._has_room(reader):
            operation = reader.main
            following = replace(reader, main=operation + 1)
            if reader.owners[self._tenants[operation]] == MAIN:
                yield f"main sends {operation}", self.ownership.put(following, operation)
            else:
                yield f"main passes {operation}", following
        for number, pipeline in enumerate(reader.pipelines):
            if pipeline.is_reading:
                yield from self._read(reader, number, pipeline, placement)
            elif placement.answers(pipeline.waits_for) and self._may_begin(reader):
                yield from self._begin(reader, number, pipeline)
        for tenant in self._all:
            if reader.lookup[tenant]:
                yield self._find(reader, tenant, placement)
        for shard in self._shards:
            if placement.is_down[shard] and reader.lanes[shard]:
                yield f"lane of {SHARD_NAMES[shard]} fails, held", self.ownership.hold_shard(reader, shard)

    def _may_begin(self, reader: Reader) -> bool:
        bounds_held = self.ownership.rules.bounds_held
        return sum(one.is_reading or bounds_held for one in reader.pipelines) < self._bounds.pipelines_reading

    def _has_room(self, reader: Reader) -> bool:
        return sum(map(len, (*reader.lanes, *reader.lookup))) < self._bounds.operations_in_memory

    def _begin(self, reader: Reader, number: int, pipeline: Pipeline) -> Iterator[tuple[str, Reader]]:
        rules = self.ownership.rules
        if rules.lifts_holds and pipeline.backfills == NO_SHARD:
            yield f"hold from {pipeline.next} lifted", hand_over(reader, number, MAIN)
            return
        begun = change(reader, number, is_reading=True, waits_for=NOTHING)
        yield f"pipeline from {pipeline.next} begins", begun
        if pipeline.backfills != NO_SHARD:
            return
        for other, joined in enumerate(reader.pipelines):
            is_ahead = joined.next > pipeline.next and not rules.joins_pipeline_ahead
            if other != number and joined.is_reading and not is_ahead:
                label = f"pipeline from {pipeline.next} joins the one at {joined.next}"
                yield label, hand_over(reader, number, other)

    def _read(
        self, reader: Reader, number: int, pipeline: Pipeline, placement: Placement
    ) -> Iterator[tuple[str, Reader]]:
        rules, operation = self.ownership.rules, pipeline.next
        is_answered_late = rules.passes_before_answer and pipeline.is_here != NOT_ASKED
        if is_answered_late:
            yield self._answer_late(reader, number, pipeline)
        elif operation < reader.main and self._has_room(reader):
            is_owner = reader.owners[self._tenants[operation]] == number
            passed = change(reader, number, next=operation + 1, is_here=NOT_ASKED)
            if is_owner:
                yield f"pipeline sends {operation}", self.ownership.put(passed, operation)
            elif pipeline.backfills == NO_SHARD:
                yield f"pipeline passes {operation}", passed
            else:
                yield self._backfill_meets(reader, number, pipeline, placement)
        if operation >= reader.main:
            own = [tenant for tenant in self._all if reader.owners[tenant] == number]
            is_drained = not any(self.ownership.in_memory(reader, tenant) for tenant in own)
            if is_drained or not rules.own_lanes:
                merged = hand_over(change(reader, number, backfills=NO_SHARD), number, MAIN)
                yield f"pipeline meets main at {operation}", merged

    def _backfill_meets(
        self, reader: Reader, number: int, pipeline: Pipeline, placement: Placement
    ) -> tuple[str, Reader]:
        rules, ownership, operation, shard = self.ownership.rules, self.ownership, pipeline.next, pipeline.backfills
        tenant, shard_name = self._tenants[operation], SHARD_NAMES[shard]
        passed = change(reader, number, next=operation + 1, is_here=NOT_ASKED)
        if rules.backfills_by_route:
            if reader.routes[tenant] == shard:
                passed = ownership.put(ownership.give(passed, tenant, number), operation)
            return f"backfill of {shard_name} goes by the route of {operation}", passed
        if pipeline.is_here == NOT_ASKED:
            if placement.is_down[shard]:
                return f"backfill of {shard_name} gets no answer", ownership.hold_shard(reader, shard)
            is_here = placement.homes[tenant] == shard
            following = operation + rules.passes_before_answer
            asked = change(reader, number, next=following, is_here=int(is_here))
            return f"backfill of {shard_name} asks for {TENANT_NAMES[tenant]} at {operation}: {is_here}", asked
        if pipeline.is_here and rules.owns_by_route:
            if reader.owners[tenant] == MAIN:
                passed = ownership.queue(passed, shard, (operation,))
            return f"backfill of {shard_name} sends {operation} of its shard", passed
        is_left = reader.owners[tenant] != MAIN and (rules.leaves_held or rules.leaves_to_each_other)
        is_behind = ownership.first_pending(reader, tenant) < operation and not rules.takes_from_behind
        if not pipeline.is_here or is_left or is_behind:
            return f"backfill of {shard_name} leaves {operation}", passed
        # The operation itself may be in memory: it counts only for the backfill as it was, at this operation.
        taken = change(ownership.give(reader, tenant, number), number, next=operation + 1, is_here=NOT_ASKED)
        taken = replace(taken, routes=put_at(taken.routes, tenant, shard))
        if taken.owners[tenant] == number:
            taken = ownership.put(taken, operation)
        return f"backfill of {shard_name} takes {TENANT_NAMES[tenant]} at {operation}", taken

    def _answer_late(self, reader: Reader, number: int, pipeline: Pipeline) -> tuple[str, Reader]:
        operation = pipeline.next - 1
        tenant = self._tenants[operation]
        answered = change(reader, number, is_here=NOT_ASKED)
        if pipeline.is_here and self.ownership.first_pending(answered, tenant) >= operation:
            answered = self.ownership.give(answered, tenant, number)
            answered = replace(answered, routes=put_at(answered.routes, tenant, pipeline.backfills))
            answered = self.ownership.put(answered, operation)
        return f"backfill of {SHARD_NAMES[pipeline.backfills]} has the answer for {operation}", answered

    def _find(self, reader: Reader, tenant: int, placement: Placement) -> tuple[str, Reader]:
        name, home = TENANT_NAMES[tenant], placement.homes[tenant]
        if home == NO_SHARD:
            pipeline = Pipeline(NO_SHARD, reader.main, is_reading=False, waits_for=TENANT + tenant)
            reader = replace(reader, pipelines=(*reader.pipelines, pipeline))
            held = self.ownership.split(reader, tenant, len(reader.pipelines) - 1)
            return f"{name} is not registered, held", held
        if placement.is_down[home]:
            if hold_of(reader, home) is None and backfill_of(reader, home) is not None:
                reader = self.ownership.hold_shard(reader, home)
            reader, number = ensure_hold(reader, home)
            held = self.ownership.split(reader, tenant, number)
            return f"{name}: {SHARD_NAMES[home]} does not answer, held", held
        operations = reader.lookup[tenant]
        found = replace(reader, lookup=put_at(reader.lookup, tenant, ()), routes=put_at(reader.routes, tenant, home))
        return f"{name} found on {SHARD_NAMES[home]}", self.ownership.send(found, tenant, home, operations)
