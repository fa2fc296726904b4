"""Following the logs of two shards, while transactions run, a tenant moves, and a stale standby is promoted.

Tenant a moves between the shards 0 and 1; tenant b stays on shard 0, where its transactions run beside those of a. The
standby has a prefix of the commits; what a promotion loses is applied again from the stream. A commit that a mover
makes is safe before it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.reading_order import ROWS_MAX, BatchRef, LogCursor, TenantEpochs, readable_below, resume
from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

SHARDS = (0, 1)
CHANGE, LEFT, CAME = "change", "left", "came"
TENANTS = "ab"
IDLE, ROLLBACKS, PROMOTIONS, MOVES = range(4)
FIRST_NUMBER = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """How a log is read; each switch is a deviation from the agreed way."""

    reads_beyond_horizon: bool = False
    number_alone: bool = False  # a batch is known by its number, whatever its token
    undone_behind_newest: bool = False  # only batches behind the newest that is there are reported
    forgets_unsafe: bool = False  # only the last batch is remembered
    target_before_source: bool = False  # without waiting for the marker on the source
    marker_before_fence: bool = False  # its number is drawn while a batch of the tenant still runs


AGREED = Rules()


class Batch(StatePart, frozen=True):
    """A transaction that writes to the log. *value* is the number of a change, or the epoch of a marker."""

    number: int
    token: str
    tenant: str
    kind: str
    value: int

    @property
    def ref(self) -> BatchRef:
        return BatchRef(self.number, self.token)


class Shard(StatePart, frozen=True):
    """A server: its log in the order of the commits, how many of these the standby has, and what runs."""

    log: tuple[Batch, ...] = ()
    standby: int = 0
    running: tuple[Batch, ...] = ()
    idle: int = 0  # the number of a transaction that writes nothing; 0 without one
    next_number: int = FIRST_NUMBER


class Reader(StatePart, frozen=True):
    """The cursor of one log, as the product's parts, and the epoch of the tenant that came there last."""

    remembered: tuple[tuple[int, str], ...] = ()
    position: int = 0
    epoch: int = 0


class State(StatePart, frozen=True):
    shards: tuple[Shard, Shard]
    readers: tuple[Reader, Reader]
    home: int  # of tenant a; -1 between the two shards
    epoch: int
    target: int  # of the move that runs; -1 without one
    seen: tuple[tuple[int, ...], tuple[int, ...]]  # the changes of a and b that were read, and not undone
    passed: int  # the epoch for which a has left a shard, as read
    tokens: int  # drawn so far
    left: tuple[int, ...]
    promise: str = ""  # broken on the way here


class LogOrderModel:
    def __init__(
        self,
        counts: tuple[int, int] = (2, 1),
        *,
        idle: int = 0,
        rollbacks: int = 0,
        promotions: int = 0,
        moves: int = 0,
        rules: Rules = AGREED,
    ) -> None:
        self._counts = counts
        self._left = (idle, rollbacks, promotions, moves)
        self._rules = rules

    def first(self) -> State:
        return State((Shard(), Shard()), (Reader(), Reader()), 0, 1, -1, ((), ()), 1, 0, self._left)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for tenant in TENANTS:
            yield from self._begin_change(state, tenant)
        for place in SHARDS:
            yield from self._commits(state, place)
            yield from self._read(state, place)
            shard = state.shards[place]
            if shard.idle:
                yield f"idle transaction {shard.idle} ends", _with_shard(state, place, replace(shard, idle=0))
            if state.left[PROMOTIONS] and shard.standby < len(shard.log):
                ahead = replace(shard, standby=shard.standby + 1)
                yield f"standby {place} has {shard.log[shard.standby].token}", _with_shard(state, place, ahead)
        yield from self._move(state)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        for place in SHARDS:
            shard = state.shards[place]
            if state.left[IDLE] and not shard.idle:
                idle = replace(shard, idle=shard.next_number, next_number=shard.next_number + 1)
                yield f"idle transaction begins on {place}", _with_shard(state, place, idle, IDLE)
            if state.left[ROLLBACKS]:
                for one in shard.running:
                    if one.kind == CHANGE:
                        rest = tuple(other for other in shard.running if other != one)
                        rolled_back = _with_shard(state, place, replace(shard, running=rest), ROLLBACKS)
                        yield f"{one.token} is rolled back", rolled_back
            if state.left[PROMOTIONS] and shard.standby < len(shard.log):
                yield f"standby {place} is promoted", self._promote(state, place)
        if state.left[MOVES] and state.home >= 0 and state.target < 0:
            begun = replace(state, target=1 - state.home, left=one_less(state.left, MOVES))
            yield f"a move to {begun.target} begins", begun

    def broken(self, state: State) -> str:
        return state.promise

    def unsettled(self, state: State) -> str:
        for tenant, seen, count in zip(TENANTS, state.seen, self._counts, strict=True):
            if seen != tuple(range(count)):
                return f"missed: of {tenant} {seen} of {count} changes were read"
        return ""

    def _applied(self, state: State, tenant: str) -> int:
        return sum(one.tenant == tenant and one.kind == CHANGE for shard in state.shards for one in shard.log)

    def _begin_change(self, state: State, tenant: str) -> Iterator[tuple[str, State]]:
        index = TENANTS.index(tenant)
        place = state.home if tenant == "a" else 0
        blocking = {CHANGE} if self._rules.marker_before_fence else {CHANGE, LEFT}
        if place < 0 or any(one.tenant == tenant and one.kind in blocking for one in state.shards[place].running):
            return
        number = self._applied(state, tenant)
        if number < self._counts[index]:
            yield f"{tenant}{number} begins on {place}", _begin(state, place, tenant, CHANGE, number)

    def _commits(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        shard = state.shards[place]
        for one in shard.running:
            if one.kind == LEFT and any(other.tenant == "a" and other != one for other in shard.running):
                continue  # the fence waits for the tenant's batches
            rest = tuple(other for other in shard.running if other != one)
            log = (*shard.log, one)
            committed = replace(shard, log=log, running=rest)
            if one.kind != CHANGE:
                committed = replace(committed, standby=len(log))
            after = _with_shard(state, place, committed)
            if one.kind == LEFT:
                after = replace(after, home=-1)
            elif one.kind == CAME:
                after = replace(after, home=place, epoch=one.value, target=-1)
            yield f"{one.token} ({one.tenant} {one.kind} {one.value}) commits on {place}", after

    def _move(self, state: State) -> Iterator[tuple[str, State]]:
        if state.target < 0:
            return
        if state.home >= 0:
            running = [one for one in state.shards[state.home].running if one.tenant == "a"]
            blocking = {LEFT} if self._rules.marker_before_fence else {LEFT, CHANGE}
            if not any(one.kind in blocking for one in running):
                yield "the marker of a begins", _begin(state, state.home, "a", LEFT, state.epoch + 1)
        elif not state.shards[state.target].running:
            yield f"a comes to {state.target}", _begin(state, state.target, "a", CAME, state.epoch + 1)

    def _promote(self, state: State, place: int) -> State:
        shard = state.shards[place]
        kept = shard.log[: shard.standby]
        number = max((one.number for one in kept), default=FIRST_NUMBER - 1) + 1
        promoted = Shard(log=kept, standby=shard.standby, next_number=number)
        return _with_shard(state, place, promoted, PROMOTIONS)

    def _read(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        shard, reader = state.shards[place], state.readers[place]
        cursor = LogCursor(0, tuple(BatchRef(*one) for one in reader.remembered), reader.position)
        there = {one.ref for one in shard.log}
        if self._rules.number_alone:
            numbers = {one.number for one in shard.log}
            there = {one for one in cursor.remembered if one.batch_id in numbers}
        resumption = resume(cursor, there)
        undone = set(resumption.undone)
        if undone:
            if self._rules.undone_behind_newest:
                undone = {one for one in undone if one.batch_id > resumption.cursor.batch_id}
            gone = {ref.token for ref in undone}
            yield f"{sorted(gone)} are undone on {place}", self._forget(state, place, resumption.cursor, gone)
            return
        if state.left[PROMOTIONS]:
            safe = {one.ref for one in shard.log[: shard.standby]}
            settled = cursor.settled(cursor.remembered if self._rules.forgets_unsafe else safe)
        else:
            settled = cursor
        running = [one.number for one in shard.running] + [shard.idle] * bool(shard.idle)
        horizon = readable_below(min(running, default=shard.next_number), 0)
        if self._rules.reads_beyond_horizon:
            horizon = shard.next_number
        found = [one for one in shard.log if cursor.batch_id < one.number < horizon]
        if found:
            one = min(found, key=lambda batch: batch.number)
            if self._is_held(state, reader, one):
                return
            yield f"{one.token} is read on {place}", self._note_read(state, place, settled, one)
        elif settled != cursor:
            yield f"settled on {place}", _with_reader(state, place, settled, reader.epoch)

    def _is_held(self, state: State, reader: Reader, batch: Batch) -> bool:
        if batch.tenant != "a" or batch.kind == CAME or self._rules.target_before_source:
            return False
        epochs = TenantEpochs({"a": state.passed})
        return not epochs.may_read("a", reader.epoch or 1)

    def _note_read(self, state: State, place: int, cursor: LogCursor, batch: Batch) -> State:
        after = cursor.advanced(batch.ref, ROWS_MAX)
        epoch = batch.value if batch.kind == CAME else state.readers[place].epoch
        following = _with_reader(state, place, after, epoch)
        if batch.kind == LEFT:
            epochs = TenantEpochs({"a": state.passed}).with_left("a", batch.value)
            return replace(following, passed=epochs.left["a"])
        if batch.kind == CAME:
            return following
        index = TENANTS.index(batch.tenant)
        seen = state.seen[index]
        promise = ""
        if batch.value in seen:
            promise = f"twice: {batch.tenant}{batch.value} was read before"
        elif batch.value != len(seen):
            promise = f"order: {batch.tenant}{batch.value} was read behind {seen}"
        return replace(following, seen=put_at(state.seen, index, (*seen, batch.value)), promise=promise)

    def _forget(self, state: State, place: int, cursor: LogCursor, gone: set[str]) -> State:
        seen = tuple(
            tuple(one for one in known if not any(token.startswith(f"{tenant}{one}-") for token in gone))
            for tenant, known in zip(TENANTS, state.seen, strict=True)
        )
        following = _with_reader(state, place, cursor, state.readers[place].epoch)
        return replace(following, seen=(seen[0], seen[1]))


def _begin(state: State, place: int, tenant: str, kind: str, value: int) -> State:
    shard = state.shards[place]
    name = f"{tenant}{value}" if kind == CHANGE else f"{kind}{value}"
    batch = Batch(shard.next_number, f"{name}-{state.tokens}", tenant, kind, value)
    running = (*shard.running, batch)
    begun = replace(shard, running=running, next_number=shard.next_number + 1)
    return replace(_with_shard(state, place, begun), tokens=state.tokens + 1)


def _with_shard(state: State, place: int, shard: Shard, fault: int | None = None) -> State:
    left = state.left if fault is None else one_less(state.left, fault)
    first, second = put_at(state.shards, place, shard)
    return replace(state, shards=(first, second), left=left)


def _with_reader(state: State, place: int, cursor: LogCursor, epoch: int) -> State:
    remembered = tuple((one.batch_id, one.token) for one in cursor.remembered)
    first, second = put_at(state.readers, place, Reader(remembered, cursor.position, epoch))
    return replace(state, readers=(first, second))
