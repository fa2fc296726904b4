"""The feed of two shards to one destination, while publishers are killed, a tenant moves, a stale standby is promoted.

The shards, the move and the promotions are those of `log_order_model`. What the feed keeps on a shard is a commit like
others, which a promotion may take back. Where the server has another run than the row, or no row, a new incarnation
begins behind the cursor, and the receiver is told.

The receiver keeps to what events say: an event of an earlier incarnation of its shard is undone, if its number is
behind a bound of a later one, unless it comes again. A queue may swallow repetitions within an incarnation. With
*lagging* no standby is awaited: events of lost commits were published, and the source of a move may go back behind a
departure that the target has passed.

A destination that *leaves* the file comes back with its row. With *remembers* a publisher lives through a promotion,
and begins no incarnation where it knows that nothing is undone. Where its file *narrows*, the filter leaves tenant a
out for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.log_order_model import (
    CAME,
    CHANGE,
    LEFT,
    SHARDS,
    TENANTS,
    Batch,
    LogOrderModel,
    State,
)
from model.reading_order import readable_below
from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

from simplu_worker.feed.events import bounds_with
from simplu_worker.feed.types import POSITION_MAX, Place

ROW = "row"
PROMOTIONS, KILLS, LEAVES, NARROWS = 2, 4, 5, 6
NOBODY, OUT_OF_FILE = -1, -2


@dataclass(frozen=True, slots=True)
class Rules:
    """How a shard is published; each switch is a deviation from the agreed way."""

    reads_beyond_horizon: bool = False
    cursor_before_publish: bool = False
    publishes_unsafe: bool = False
    target_before_source: bool = False
    trusts_unsafe_cursor: bool = False  # the target goes on before the cursor of the source is safe
    incarnation_behind_newest: bool = False  # behind the newest batch of the log, not behind the cursor
    late_cursor: bool = False  # a publisher writes its cursor on the server that was promoted meanwhile
    same_incarnation: bool = False  # as long as the row is there
    swallows_by_event: bool = False  # a queue takes an event that comes again for a repetition, in any incarnation
    one_run_for_all: bool = False  # a publisher notes its run for a destination that is not in its file, too
    knows_at_once: bool = False  # a publisher takes what it remembers for all that came, when it begins
    knows_from_begin: bool = False  # and, once it knows, for all from where it began, whatever its filter left out
    knows_whatever_filter: bool = False  # and goes on to do so under another filter


AGREED = Rules()


class Received(StatePart, frozen=True):
    """An event of a change, as the receiver has it; *incarnation* is that with which it came last."""

    value: int
    token: str
    place: int
    number: int
    incarnation: str
    is_undone: bool = False


class Remembered(StatePart, frozen=True):
    """The batches that a publisher has published behind *begun*: all that came from there if *is_whole*."""

    begun: int
    is_whole: bool
    batches: tuple[tuple[int, str], ...] = ()

    def holds(self, cursor: int, log: Sequence[Batch]) -> bool:
        there = {one.token for one in log}
        is_undone = any(number > cursor and token not in there for number, token in self.batches)
        return self.is_whole and self.begun <= cursor and not is_undone


class FeedState(State, frozen=True):
    """All of it, with what publishers and receivers have. *heads* are where the logs are read, NOBODY without one."""

    heads: tuple[int, int] = (NOBODY, NOBODY)
    runs: tuple[int, int] = (0, 0)
    unsent: tuple[int, int] = (0, 0)  # the batch that is read, and not published
    received: tuple[tuple[Received, ...], tuple[Received, ...]] = ((), ())
    memories: tuple[Remembered | None, Remembered | None] = (None, None)
    narrow: tuple[bool, bool] = (False, False)  # the file of the publisher leaves tenant a out


class FeedRow(StatePart, frozen=True):
    cursor: int
    incarnation: str
    bounds: str
    run: int


class FeedModel(LogOrderModel):
    """*counts* changes of the tenants a and b, of which a moves."""

    def __init__(
        self,
        counts: tuple[int, int] = (2, 1),
        *,
        idle: int = 0,
        promotions: int = 0,
        moves: int = 0,
        kills: int = 0,
        lagging: bool = False,
        remembers: bool = False,
        leaves: int = 0,
        narrows: int = 0,
        feed: Rules = AGREED,
    ) -> None:
        super().__init__(counts, idle=idle, promotions=promotions, moves=moves)
        self._kills = kills
        self._lagging = lagging
        self._remembers = remembers
        self._leaves = leaves
        self._narrows = narrows
        self._feed = feed

    def first(self) -> FeedState:
        begin = super().first()
        parts = {name: getattr(begin, name) for name in State.__struct_fields__}
        return FeedState(**parts | {"left": (*begin.left, self._kills, self._leaves, self._narrows)})

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        assert isinstance(state, FeedState)
        for label, after in super().faults(state):
            yield label, after
            if self._feed.late_cursor:
                yield from self._write_late(state, after)
        for place in SHARDS:
            if state.heads[place] >= 0:
                yield from self._faults_of_publisher(state, place)

    def _faults_of_publisher(self, state: FeedState, place: int) -> Iterator[tuple[str, FeedState]]:
        if state.left[LEAVES]:
            out = _with_head(replace(state, left=one_less(state.left, LEAVES)), place, OUT_OF_FILE)
            yield f"the destination leaves the file of the publisher of {place}", out
        if state.left[NARROWS]:
            narrowed = self._with_filter(replace(state, left=one_less(state.left, NARROWS)), place, is_narrow=True)
            yield f"the file of the publisher of {place} leaves out a", narrowed
        if state.left[KILLS]:
            killed = _with_memory(_without_publisher(state, place), place, None)
            yield f"the publisher of {place} is killed", replace(killed, left=one_less(state.left, KILLS))

    def _write_late(self, state: FeedState, after: State) -> Iterator[tuple[str, State]]:
        assert isinstance(after, FeedState)
        for place in SHARDS:
            row, head = _row_of(after.shards[place].log), state.heads[place]
            if after.runs[place] != state.runs[place] and row is not None and head > row.cursor:
                late = _with_row(after, place, replace(row, cursor=head))
                yield f"standby {place} is promoted, and the cursor {head} is written there", late

    def unsettled(self, state: State) -> str:
        assert isinstance(state, FeedState)
        for tenant, received, count in zip(TENANTS, state.received, self._counts, strict=True):
            values = [one.value for one in received if not one.is_undone]
            if tenant == "a" and self._narrows > state.left[NARROWS]:
                continue  # what was read meanwhile was left out
            if values != list(range(count)):
                return f"missed: of {tenant} {values} of {count} changes came"
        return ""

    def _promote(self, state: State, place: int) -> State:
        promoted = super()._promote(state, place)
        assert isinstance(promoted, FeedState)
        runs = put_at(promoted.runs, place, promoted.runs[place] + 1)
        return replace(_without_publisher(promoted, place), runs=(runs[0], runs[1]))

    def _read(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        assert isinstance(state, FeedState)
        row, head = _row_of(state.shards[place].log), state.heads[place]
        if head == OUT_OF_FILE:
            yield f"the destination is back in the file at {place}", _with_head(state, place, NOBODY)
            if self._feed.one_run_for_all and row is not None and row.run != state.runs[place]:
                noted = _with_row(state, place, replace(row, run=state.runs[place]))
                yield f"the publisher of {place} notes its run", noted
            return
        if head == NOBODY:
            yield f"{place} gets a publisher", self._take_row(state, place, row)
            return
        assert row is not None
        if state.narrow[place]:
            yield f"the file of the publisher of {place} has a again", self._with_filter(state, place, is_narrow=False)
        if state.unsent[place]:
            unsent = put_at(state.unsent, place, 0)
            after = self._publish(replace(state, unsent=(unsent[0], unsent[1])), place, state.unsent[place], row)
            yield f"{state.unsent[place]} of {place} is published late", after
        if row.cursor < head:
            yield f"the cursor of {place} is {head}", _with_row(state, place, replace(row, cursor=head))
        elif (one := self._next(state, place, head)) is not None:
            following = _with_head(state, place, one.number)
            if self._feed.cursor_before_publish:
                unsent = put_at(state.unsent, place, one.number)
                noted = _with_row(following, place, replace(row, cursor=one.number))
                yield f"{one.token} is noted on {place}", replace(noted, unsent=(unsent[0], unsent[1]))
            else:
                yield f"{one.token} is published on {place}", self._publish(following, place, one.number, row)

    def _take_row(self, state: FeedState, place: int, row: FeedRow | None) -> FeedState:
        run, log = state.runs[place], state.shards[place].log
        memory = state.memories[place]
        if row is None:
            made = FeedRow(0, f"i{state.tokens}", f"i{state.tokens}:0", run)  # an earlier row may be lost
            told = _judged(_with_row(replace(state, tokens=state.tokens + 1), place, made), place, made)
            return self._begin(told, place, 0)
        if memory is not None and memory.holds(row.cursor, log) and row.run != run:
            return _with_head(_with_row(state, place, replace(row, run=run)), place, row.cursor)
        if memory is not None and row.run == run:
            # The destination was out of the file, or has another filter.
            return self._note_whole(_with_head(state, place, row.cursor), place)
        if row.run == run or self._feed.same_incarnation:
            return self._begin(state, place, row.cursor)
        behind = row.cursor
        if self._feed.incarnation_behind_newest:
            behind = max((one.number for one in log), default=0)
        incarnation = f"i{state.tokens}"
        bounds = bounds_with(row.bounds, incarnation, Place(behind, POSITION_MAX))
        begun = FeedRow(row.cursor, incarnation, bounds, run)
        told = _judged(_with_row(replace(state, tokens=state.tokens + 1), place, begun), place, begun)
        return self._begin(told, place, row.cursor)

    def _begin(self, state: FeedState, place: int, cursor: int) -> FeedState:
        begun = _with_head(state, place, cursor)
        if not self._remembers:
            return begun
        return self._note_whole(_with_memory(begun, place, Remembered(cursor, self._feed.knows_at_once)), place)

    def _with_filter(self, state: FeedState, place: int, *, is_narrow: bool) -> FeedState:
        first, second = put_at(state.narrow, place, is_narrow)
        after = _with_head(replace(state, narrow=(first, second)), place, NOBODY)
        memory = state.memories[place]
        if memory is None or self._feed.knows_whatever_filter:
            return after
        return _with_memory(after, place, replace(memory, is_whole=False))

    def _note_whole(self, state: FeedState, place: int) -> FeedState:
        memory = state.memories[place]
        if memory is None or memory.is_whole or self._next(state, place, state.heads[place]) is not None:
            return state
        begun = memory.begun if self._feed.knows_from_begin else state.heads[place]
        return _with_memory(state, place, replace(memory, is_whole=True, begun=begun))

    def _next(self, state: FeedState, place: int, head: int) -> Batch | None:
        shard = state.shards[place]
        running = [one.number for one in shard.running] + [shard.idle] * bool(shard.idle)
        horizon = readable_below(min(running, default=shard.next_number), 0)
        if self._feed.reads_beyond_horizon:
            horizon = shard.next_number
        numbered = [(one.number, index) for index, one in enumerate(shard.log) if one.kind != ROW]
        found = [one for one in numbered if head < one[0] < horizon]
        if not found:
            return None
        _, index = min(found)
        waits = not self._lagging and not self._feed.publishes_unsafe and state.left[PROMOTIONS] > 0
        if waits and shard.standby <= index:
            return None
        one = shard.log[index]
        return None if one.kind == CAME and not self._source_is_passed(state, place, one.value) else one

    def _source_is_passed(self, state: FeedState, place: int, epoch: int) -> bool:
        if self._feed.target_before_source:
            return True
        source = state.shards[1 - place]
        is_safe = self._lagging or self._feed.trusts_unsafe_cursor or not state.left[PROMOTIONS]
        row = _row_of(source.log if is_safe else source.log[: source.standby])
        return row is not None and all(
            one.number <= row.cursor for one in source.log if one.kind == LEFT and one.value == epoch
        )

    def _publish(self, state: FeedState, place: int, number: int, row: FeedRow) -> FeedState:
        batch = next((one for one in state.shards[place].log if one.number == number and one.kind != ROW), None)
        if batch is None or batch.kind != CHANGE:
            return state
        if batch.tenant == "a" and state.narrow[place]:
            return self._note_whole(state, place)
        index = TENANTS.index(batch.tenant)
        if self._feed.swallows_by_event and any(one.token == batch.token for one in state.received[index]):
            return self._note_published(state, place, batch)
        received = _judged(state, place, row).received[index]
        event = Received(batch.value, batch.token, place, number, row.incarnation)
        known = [one.token for one in received]
        promise = state.promise
        values = [one.value for one in received if not one.is_undone]
        is_again = batch.token in known
        if is_again and (self._lagging or not received[known.index(batch.token)].is_undone):
            received = put_at(received, known.index(batch.token), event)
        else:
            if not is_again and batch.value in values:
                promise = f"twice: {batch.tenant}{batch.value} came before, as another event"
            elif values and batch.value < max(values):
                promise = f"order: {batch.tenant}{batch.value} came behind {values}"
            received = (*(one for one in received if one.token != batch.token), event)
        first, second = put_at(_judged(state, place, row).received, index, received)
        return self._note_published(replace(state, received=(first, second), promise=promise), place, batch)

    def _note_published(self, state: FeedState, place: int, batch: Batch) -> FeedState:
        memory = state.memories[place]
        if memory is None:
            return state
        published = replace(memory, batches=(*memory.batches, (batch.number, batch.token)))
        return self._note_whole(_with_memory(state, place, published), place)

    def broken(self, state: State) -> str:
        """Return the promise that was broken: where standbys are awaited, no event of a lost commit is published."""
        assert isinstance(state, FeedState)
        if not self._lagging:
            for received in state.received:
                for one in received:
                    if not any(one.token == batch.token for batch in state.shards[one.place].log):
                        return f"undone: the commit of {one.token} is lost"
        return state.promise


def _row_of(log: Sequence[Batch]) -> FeedRow | None:
    for one in reversed(log):
        if one.kind == ROW:
            run, bounds = one.tenant.split("|")
            return FeedRow(one.value, one.token, bounds, int(run))
    return None


def _with_row(state: FeedState, place: int, row: FeedRow) -> FeedState:
    shard = state.shards[place]
    commit = Batch(0, row.incarnation, f"{row.run}|{row.bounds}", ROW, row.cursor)
    # A later row makes an earlier one void, which goes unless the standby has that one and not yet the later one.
    kept = tuple(one for index, one in enumerate(shard.log) if one.kind != ROW or index < shard.standby)
    first, second = put_at(state.shards, place, replace(shard, log=(*kept, commit)))
    return replace(state, shards=(first, second))


def _with_head(state: FeedState, place: int, head: int) -> FeedState:
    first, second = put_at(state.heads, place, head)
    return replace(state, heads=(first, second))


def _with_memory(state: FeedState, place: int, memory: Remembered | None) -> FeedState:
    first, second = put_at(state.memories, place, memory)
    return replace(state, memories=(first, second))


def _without_publisher(state: FeedState, place: int) -> FeedState:
    if state.heads[place] == OUT_OF_FILE:
        return state
    unsent = put_at(state.unsent, place, 0)
    return replace(_with_head(state, place, NOBODY), unsent=(unsent[0], unsent[1]))


def _judged(state: FeedState, place: int, row: FeedRow) -> FeedState:
    bounds = [one.split(":") for one in row.bounds.split(",") if one]

    def is_undone(one: Received) -> bool:
        if one.is_undone or one.place != place or one.incarnation == row.incarnation:
            return one.is_undone
        for incarnation, behind in bounds:
            if incarnation == one.incarnation:
                return False
            if one.number > int(behind):
                return True
        return False

    first, second = (tuple(replace(one, is_undone=is_undone(one)) for one in received) for received in state.received)
    return replace(state, received=(first, second))
