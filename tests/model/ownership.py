"""The owners of tenants within one reader: which pipeline sends a tenant's operations, and how a tenant changes hands.

A pipeline reads the stream: the main reader, a catch-up, or the backfill of a Postgres shard. Two invariants hold.

- Unique: every tenant has exactly one owner, and only its owner sends its operations.
- Handed in: every operation of a tenant before the next one of its owner is applied or in memory; those in memory are
  all in one place, a lane or the lookup of homes, in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.search import StatePart, put_at
from msgspec.structs import replace

MAIN = -1  # in place of the number of a pipeline: the main reader
NO_SHARD = 2  # in place of the number of a Postgres shard
TENANT = 2  # a pipeline that waits for tenant t, to be registered, waits for TENANT + t; for shard x, for x
NOTHING = 99  # in place of what a pipeline waits for
NEVER = 98  # the same, and it never comes
NOT_ASKED = -1  # in place of a shard's answer


@dataclass(frozen=True, slots=True)
class Rules:
    """How a reader goes about it; each switch but the first is a deviation from the agreed way."""

    slots: bool = False  # all tenants share one slot of a bitmap: they change hands together. As right
    own_lanes: bool = False  # of each owner, drained before it meets the main reader
    lifts_holds: bool = False  # a held tenant is the main reader's as soon as its target answers
    ignores_holds: bool = False  # in the checkpoint and in the rows
    splits_at_main: bool = False  # a hold begins at the position of the main reader
    joins_pipeline_ahead: bool = False  # that has passed the beginning of the hold
    sends_beside_backfill: bool = False  # without a look at whether the shard has a backfill
    backfills_by_route: bool = False  # a backfill goes by remembered routes, not by the shard's answer
    leaves_held: bool = False  # a backfill takes no tenant from another pipeline
    takes_from_behind: bool = False  # also from an owner with an earlier operation that is not applied
    gives_when_passed: bool = False  # to a backfill that has passed the operation
    keeps_given: bool = False  # the operations of a tenant that is given away stay in their lane
    continues_after_loss: bool = False  # the backfill of a shard that loses commits again
    passes_before_answer: bool = False  # a backfill passes an operation, and takes its tenant when the answer comes
    leaves_to_each_other: bool = False  # a backfill leaves tenants to any other owner, and any other to a backfill
    owns_by_route: bool = False  # a backfill owns its whole shard, and no tenant individually
    forgets_parents: bool = False  # a backfill begins at the own row, though that does not contain the parents' end
    adopts_without_writing: bool = False  # a row by which the position of the parents counts
    done_early: bool = False  # the row contains that the parents' operations are applied before these are
    bounds_held: bool = False  # the bound on pipelines that read counts those that are held as well
    hands_back: bool = False  # an operation that a backfill has passed gets a pipeline of its own, which hands it back
    sheds_oldest: bool = False  # a tenant held for its share loses its first operations in memory, not its last ones
    sheds_at_main: bool = False  # a hold for a share begins at the position of the main reader
    sheds_behind_all: bool = False  # a hold for a share begins behind what its tenant's owner has read
    never_resumes: bool = False  # a tenant held for its share is not read again: its share is 0


AGREED = Rules()


class Pipeline(StatePart, frozen=True):
    """A catch-up or a backfill, reading or held; its tenants are in `Reader.owners`."""

    backfills: int  # the shard whose tenants it takes over as it meets them, or NO_SHARD
    next: int  # the operation that it reads next
    is_reading: bool  # else it is held
    waits_for: int  # while held: a shard, a tenant, or NOTHING
    is_here: int = NOT_ASKED  # the answer of its shard: whether the tenant of `next` is stored there


class Reader(StatePart, frozen=True):
    main: int  # the operation that the main reader reads next
    began: int  # where it began
    owners: tuple[int, ...]  # by tenant: the number of its pipeline, or MAIN
    pipelines: tuple[Pipeline, ...]
    lanes: tuple[tuple[int, ...], ...]  # by shard: one queue, first in first out for each tenant
    lookup: tuple[tuple[int, ...], ...]  # by tenant: operations that wait for its route
    routes: tuple[int, ...]  # by tenant: the shard that was found last, or NO_SHARD
    tokens: tuple[int, ...]  # by shard: the token of the row as this reader knows it


class Ownership:
    def __init__(self, tenants: Sequence[int], tenant_count: int, rules: Rules) -> None:
        self._tenants = tenants
        self._all = range(tenant_count)
        self.rules = rules

    def in_memory(self, reader: Reader, tenant: int) -> list[int]:
        return [*reader.lookup[tenant], *(one for lane in reader.lanes for one in lane if self._tenants[one] == tenant)]

    def tenants_of(self, operations: Iterable[int]) -> list[int]:
        return sorted({self._tenants[one] for one in operations})

    def first_pending(self, reader: Reader, tenant: int) -> int:
        owner = reader.owners[tenant]
        following = reader.main if owner == MAIN else reader.pipelines[owner].next
        return min([following, *self.in_memory(reader, tenant)])

    def safe_checkpoint(self, reader: Reader) -> int:
        queued = [one for queue in (*reader.lanes, *reader.lookup) for one in queue]
        others = () if self.rules.ignores_holds else reader.pipelines
        return min([reader.main, *queued, *(one.next for one in others)])

    def read_to(self, reader: Reader) -> tuple[int, tuple[int, ...]]:
        """Return the position before which everything is applied but of the tenants of pipelines, and these tenants."""
        own = (tenant for tenant in self._all if reader.owners[tenant] == MAIN)
        pending = (one for tenant in own for one in self.in_memory(reader, tenant))
        return min((reader.main, *pending)), tuple(one for one in self._all if reader.owners[one] != MAIN)

    def drop(self, reader: Reader, tenant: int) -> Reader:
        lanes = tuple(tuple(one for one in lane if self._tenants[one] != tenant) for lane in reader.lanes)
        return replace(reader, lanes=lanes, lookup=put_at(reader.lookup, tenant, ()))

    def split(self, reader: Reader, tenant: int, number: int) -> Reader:
        """Give a tenant to a held pipeline, which begins no later than at its first pending operation."""
        for one in self._unit(tenant):
            pending = reader.main if self.rules.splits_at_main else self.first_pending(reader, one)
            reader = change(reader, number, next=min(reader.pipelines[number].next, pending))
            reader = replace(self.drop(reader, one), owners=put_at(reader.owners, one, number))
        return reader

    def give(self, reader: Reader, tenant: int, number: int) -> Reader:
        """Give a tenant to a reading pipeline that will come to every operation that its owner has not read.

        Its operations in memory stay where the pipeline has passed the first of them: those of the pipeline come
        behind them in the same queue, and the log drops repetitions. Else the pipeline reads all of them again.
        """
        for one in self._unit(tenant):
            queued = self.in_memory(reader, one)
            if queued and min(queued) >= reader.pipelines[number].next:
                if not self.rules.keeps_given:
                    reader = self.drop(reader, one)
            elif queued and self.rules.own_lanes and not self.rules.keeps_given:
                reader, own = add(reader, Pipeline(NO_SHARD, min(queued), is_reading=False, waits_for=NOTHING))
                reader = self.split(reader, one, own)
                continue
            reader = replace(reader, owners=put_at(reader.owners, one, number))
        return reader

    def restart(self, reader: Reader, number: int, start: int) -> Reader:
        """Make a pipeline read again, no later than from *start* and from its tenants' first operation in memory."""
        own = [tenant for tenant in self._all if reader.owners[tenant] == number]
        queued = (one for tenant in own for one in self.in_memory(reader, tenant))
        following = min((start, reader.pipelines[number].next, *queued))
        reader = change(reader, number, next=following, is_here=NOT_ASKED)
        for tenant in own:
            reader = self.drop(reader, tenant)
        return reader

    def hold_shard(self, reader: Reader, shard: int) -> Reader:
        """Hold the tenants in the lane of a shard that takes no operations, and the backfill of the shard."""
        backfill = backfill_of(reader, shard)
        if backfill is not None:
            reader = change(reader, backfill, is_reading=False, waits_for=shard)
            reader = self.restart(reader, backfill, reader.pipelines[backfill].next)
        reader, held = ensure_hold(reader, shard)
        for tenant in self.tenants_of(reader.lanes[shard]):
            reader = self.split(reader, tenant, held)
        return reader

    def shed(self, reader: Reader, tenant: int, shard: int, kept: int) -> Reader:
        """Hold a tenant for its share of the memory: only its first *kept* operations in a lane stay there.

        Its hold begins at the first of the others, or where its owner had still to read. It waits for nothing outside.
        """
        rules = self.rules
        lane = reader.lanes[shard]
        own = [place for place, one in enumerate(lane) if self._tenants[one] == tenant]  # one may be there twice
        places = own[: len(own) - kept] if rules.sheds_oldest else own[kept:]
        shed = [lane[place] for place in places]
        owner = reader.owners[tenant]
        following = reader.main if owner == MAIN else reader.pipelines[owner].next
        if rules.sheds_at_main:
            begin = reader.main
        elif rules.sheds_behind_all:
            begin = max([following, *shed])
        else:
            begin = min([following, *shed])
        lane = tuple(one for place, one in enumerate(lane) if place not in places)
        waits_for = NEVER if rules.never_resumes else NOTHING
        reader, number = add(reader, Pipeline(NO_SHARD, begin, is_reading=False, waits_for=waits_for))
        unit = self._unit(tenant)  # the operations of the others stay in memory: their repetitions come behind them
        owners = tuple(number if one in unit else owner for one, owner in enumerate(reader.owners))
        return replace(reader, lanes=put_at(reader.lanes, shard, lane), owners=owners)

    def put(self, reader: Reader, operation: int) -> Reader:
        """Send an operation to where its tenant has others in memory, else to its route, else look its route up."""
        tenant = self._tenants[operation]
        occupied = (
            shard for shard, lane in enumerate(reader.lanes) if any(self._tenants[one] == tenant for one in lane)
        )
        shard = next(occupied, reader.routes[tenant])
        if reader.lookup[tenant] or shard == NO_SHARD:
            return self._look_up(reader, tenant, (operation,))
        return self.send(reader, tenant, shard, (operation,))

    def send(self, reader: Reader, tenant: int, shard: int, operations: tuple[int, ...]) -> Reader:
        """Send a tenant's operations to a shard, by a route that may be old.

        If the shard is held, the tenant is too. If the shard has a backfill that has not passed the first operation,
        the tenant is given to it: the backfill will come to it, and to the lost operations before it. A backfill that
        has passed it found the tenant elsewhere, or left it to an owner that had still to read those.
        """
        rules = self.rules
        held = hold_of(reader, shard)
        if held is not None:
            return self.split(self._look_up(reader, tenant, operations), tenant, held)
        backfill = backfill_of(reader, shard)
        if backfill is not None and reader.owners[tenant] != backfill and not rules.sends_beside_backfill:
            is_ahead = reader.pipelines[backfill].next <= operations[0]
            if rules.hands_back and not is_ahead:
                own = Pipeline(NO_SHARD, operations[0], is_reading=False, waits_for=NOTHING)
                reader, number = add(self._look_up(reader, tenant, operations), own)
                return self.split(reader, tenant, number)
            if is_ahead or rules.leaves_to_each_other or rules.gives_when_passed:
                return reader if rules.owns_by_route else self.give(reader, tenant, backfill)
        return self.queue(reader, shard, operations)

    def queue(self, reader: Reader, shard: int, operations: tuple[int, ...]) -> Reader:
        return replace(reader, lanes=put_at(reader.lanes, shard, (*reader.lanes[shard], *operations)))

    def _look_up(self, reader: Reader, tenant: int, operations: tuple[int, ...]) -> Reader:
        return replace(reader, lookup=put_at(reader.lookup, tenant, (*reader.lookup[tenant], *operations)))

    def _unit(self, tenant: int) -> Iterable[int]:
        return self._all if self.rules.slots else (tenant,)


def change(reader: Reader, number: int, **changes: int) -> Reader:
    return replace(reader, pipelines=put_at(reader.pipelines, number, replace(reader.pipelines[number], **changes)))


def add(reader: Reader, pipeline: Pipeline) -> tuple[Reader, int]:
    return replace(reader, pipelines=(*reader.pipelines, pipeline)), len(reader.pipelines)


def hand_over(reader: Reader, number: int, to: int) -> Reader:
    """Give all tenants of a pipeline to another, or to the main reader, with their operations in memory."""
    return replace(reader, owners=tuple(to if owner == number else owner for owner in reader.owners))


def hold_of(reader: Reader, target: int) -> int | None:
    held = (n for n, one in enumerate(reader.pipelines) if not one.is_reading and one.waits_for == target)
    return next(held, None)


def ensure_hold(reader: Reader, target: int) -> tuple[Reader, int]:
    """Return the number of the pipeline that is held for a target, which is made if there is none."""
    held = hold_of(reader, target)
    if held is not None:
        return reader, held
    return add(reader, Pipeline(NO_SHARD, reader.main, is_reading=False, waits_for=target))


def backfill_of(reader: Reader, shard: int) -> int | None:
    return next((n for n, one in enumerate(reader.pipelines) if one.backfills == shard), None)


def tidied(reader: Reader) -> Reader:
    """Return the reader without catch-ups that have no tenants, and its pipelines in the order of their contents."""
    if not reader.pipelines:
        return reader
    kept = [n for n, one in enumerate(reader.pipelines) if one.backfills != NO_SHARD or n in reader.owners]
    kept.sort(key=lambda number: (reader.pipelines[number], [owner == number for owner in reader.owners]))
    if kept == list(range(len(reader.pipelines))):
        return reader
    numbers = {number: place for place, number in enumerate(kept)} | {MAIN: MAIN}
    return replace(
        reader,
        owners=tuple(numbers[owner] for owner in reader.owners),
        pipelines=tuple(reader.pipelines[number] for number in kept),
    )
