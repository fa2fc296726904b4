"""The feed of two shards to one destination, while publishers are killed, a tenant moves, a stale standby is promoted.

The shards, the move and the promotions are those of `log_order_model`. What the feed keeps on a shard is a commit like
others, which a promotion may take back. Where the server has another run than the row, or no row, a new incarnation
begins, and the destination gets a `reset` before anything else: what is behind the cursor comes again.

The receiver is that of docs/feed.md: a reset takes back what earlier incarnations have sent behind its place, if it
is read before or, with *late*, after what comes again; and whatever an earlier incarnation has sent from there, and is
read only then, is dropped. A queue may swallow repetitions within an incarnation. With *lagging* no standby is awaited:
events of lost commits were published, and the source of a move may go back behind a departure that the target has
passed. A destination that *leaves* the file comes back with its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from model.log_order_model import CAME, CHANGE, LEFT, SHARDS, TENANTS, Batch, LogOrderModel, State
from model.reading_order import readable_below
from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

ROW = "row"
PROMOTIONS, KILLS, LEAVES, LATE = 2, 4, 5, 6
NOBODY, OUT_OF_FILE = -1, -2


@dataclass(frozen=True, slots=True)
class Rules:
    """How a shard is published, and read; each switch is a deviation from the agreed way."""

    reads_beyond_horizon: bool = False
    cursor_before_publish: bool = False
    publishes_unsafe: bool = False
    target_before_source: bool = False
    trusts_unsafe_cursor: bool = False  # the target goes on before the cursor of the source is safe
    reset_behind_newest: bool = False  # behind the newest batch of the log, not behind the cursor
    late_cursor: bool = False  # a publisher writes its cursor on the server that was promoted meanwhile
    no_reset: bool = False  # as long as the row is there
    told_before_delivery: bool = False  # the row says that a destination was told before it was
    told_out_of_file: bool = False  # and that one was told which is not in the file
    swallows_by_event: bool = False  # a queue takes an event that comes again for a repetition, in any incarnation
    keeps_first_incarnation: bool = False  # a receiver does not note that an event came again
    applies_late: bool = False  # a receiver applies what was sent before a reset, and is read after it


AGREED = Rules()


class Event(StatePart, frozen=True):
    """An event of a change; a receiver has it with the last incarnation in which it came."""

    value: int
    token: str
    place: int
    number: int
    incarnation: str


class Reset(StatePart, frozen=True):
    place: int
    behind: int
    incarnation: str

    def takes_back(self, event: Event) -> bool:
        is_behind = event.place == self.place and event.number > self.behind
        return is_behind and event.incarnation < self.incarnation


Events: TypeAlias = tuple[Event, ...]


class FeedState(State, frozen=True):
    """All of it, with what publishers and receivers have. *heads* are where the logs are read, NOBODY without one.

    What waits to be read by the receiver is in *queues*, of each tenant, and of resets.
    """

    heads: tuple[int, int] = (NOBODY, NOBODY)
    told: tuple[str, str] = ("", "")  # in which incarnation the publisher knows the destination to have its reset
    runs: tuple[int, int] = (0, 0)
    unsent: tuple[int, int] = (0, 0)  # the batch that is read, and not published
    queues: tuple[Events, Events, tuple[Reset, ...]] = ((), (), ())
    received: tuple[Events, Events] = ((), ())
    resets: tuple[Reset, ...] = ()
    sent: tuple[str, ...] = ()  # tokens, with *lagging*


class FeedRow(StatePart, frozen=True):
    """The rows of a shard; *told* is the incarnation whose reset the destination has."""

    cursor: int
    incarnation: str
    told: str
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
        leaves: int = 0,
        late: int = 0,
        feed: Rules = AGREED,
    ) -> None:
        super().__init__(counts, idle=idle, promotions=promotions, moves=moves)
        self._more = (kills, leaves, late)
        self._lagging = lagging
        self._is_late = late > 0
        self._feed = feed

    def first(self) -> FeedState:
        begin = super().first()
        parts = {name: getattr(begin, name) for name in State.__struct_fields__}
        state = FeedState(**parts | {"left": (*begin.left, *self._more)})
        for place in SHARDS:
            state = self._take_row(state, place, None)
            state = replace(state, told=_put(state.told, place, f"i{place:02}"))
        return state

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        assert isinstance(state, FeedState)
        yield from super().steps(state)
        for index, queue in enumerate(state.queues[:2]):
            if queue:
                rest = replace(state, queues=_put(state.queues, index, queue[1:]))
                yield f"{queue[0]} is read", self._receive(rest, index, queue[0])
        if resets := state.queues[2]:
            rest = replace(state, queues=_put(state.queues, 2, resets[1:]))
            yield f"{resets[0]} is read", self._reset(rest, resets[0])

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
        if state.left[KILLS]:
            killed = _without_publisher(state, place)
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
            values = [one.value for one in received]
            if values != list(range(count)):
                return f"missed: of {tenant} {values} of {count} changes came"
        return ""

    def _promote(self, state: State, place: int) -> State:
        promoted = super()._promote(state, place)
        assert isinstance(promoted, FeedState)
        return replace(_without_publisher(promoted, place), runs=_put(promoted.runs, place, promoted.runs[place] + 1))

    def _read(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        assert isinstance(state, FeedState)
        row, head = _row_of(state.shards[place].log), state.heads[place]
        if head == OUT_OF_FILE:
            yield f"the destination is back in the file at {place}", _with_head(state, place, NOBODY)
            if row is not None and row.run != state.runs[place]:
                begun = self._with_incarnation(state, place, row, is_told=self._feed.told_out_of_file)
                yield f"an incarnation begins on {place} for others", begun
            return
        if head == NOBODY:
            yield f"{place} gets a publisher", self._take_row(state, place, row)
            return
        assert row is not None
        told = state.told[place]
        if told != row.incarnation:
            yield from self._tell(state, place, row)
            return
        if state.unsent[place]:
            sent = replace(state, unsent=_put(state.unsent, place, 0))
            for label, after in self._publish(sent, place, state.unsent[place], row):
                yield f"{label} late", after
        if row.cursor < head or row.told != told:
            yield f"the cursor of {place} is {head}", _with_row(state, place, replace(row, cursor=head, told=told))
        elif (one := self._next(state, place, head)) is not None:
            following = _with_head(state, place, one.number)
            if self._feed.cursor_before_publish:
                noted = _with_row(following, place, replace(row, cursor=one.number))
                unsent = _put(state.unsent, place, one.number)
                yield f"{one.token} is noted on {place}", replace(noted, unsent=unsent)
            else:
                yield from self._publish(following, place, one.number, row)

    def _take_row(self, state: FeedState, place: int, row: FeedRow | None) -> FeedState:
        if row is None:
            row = FeedRow(0, "", "", -1)  # an earlier row may be lost
            begun = self._with_incarnation(state, place, row, is_told=self._feed.told_before_delivery)
        elif row.run != state.runs[place] and not self._feed.no_reset:
            begun = self._with_incarnation(state, place, row, is_told=self._feed.told_before_delivery)
        else:
            begun = state
        return replace(_with_head(begun, place, row.cursor), told=_put(state.told, place, row.told))

    def _with_incarnation(self, state: FeedState, place: int, row: FeedRow, *, is_told: bool) -> FeedState:
        incarnation = f"i{state.tokens:02}"
        begun = FeedRow(row.cursor, incarnation, incarnation if is_told else row.told, state.runs[place])
        return _with_row(replace(state, tokens=state.tokens + 1), place, begun)

    def _tell(self, state: FeedState, place: int, row: FeedRow) -> Iterator[tuple[str, FeedState]]:
        behind = row.cursor
        if self._feed.reset_behind_newest:
            behind = max((one.number for one in state.shards[place].log), default=0)
        reset = Reset(place, behind, row.incarnation)
        told = replace(state, told=_put(state.told, place, row.incarnation))
        for label, queues in self._late(told, 2, reset):
            yield f"{reset} is published{label}", queues
        if not state.queues[2]:
            yield f"{reset} is published", self._reset(told, reset)

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

    def _publish(self, state: FeedState, place: int, number: int, row: FeedRow) -> Iterator[tuple[str, FeedState]]:
        batch = next((one for one in state.shards[place].log if one.number == number and one.kind != ROW), None)
        if batch is None or batch.kind != CHANGE:
            yield f"{number} of {place} is passed", state
            return
        if self._feed.swallows_by_event and batch.token in state.sent:
            yield f"{batch.token} is swallowed", state
            return
        index = TENANTS.index(batch.tenant)
        event = Event(batch.value, batch.token, place, number, row.incarnation)
        for label, queued in self._late(state, index, event):
            yield f"{batch.token} is published on {place}{label}", queued
        if not state.queues[index]:
            yield f"{batch.token} is published on {place}", self._receive(state, index, event)

    def _late(self, state: FeedState, index: int, one: Event | Reset) -> Iterator[tuple[str, FeedState]]:
        """Yield *state* with what is read later, if it may be: in the order of its queue."""
        queued = replace(state, queues=_put(state.queues, index, (*state.queues[index], one)))
        if state.queues[index]:
            yield ", and read later", queued
        elif state.left[LATE]:
            yield ", and read later", replace(queued, left=one_less(state.left, LATE))

    def _reset(self, state: FeedState, reset: Reset) -> FeedState:
        first, second = (tuple(one for one in received if not reset.takes_back(one)) for received in state.received)
        return replace(state, received=(first, second), resets=_with_reset(state.resets, reset))

    def _receive(self, state: FeedState, index: int, event: Event) -> FeedState:
        received, promise = state.received[index], state.promise
        if not self._feed.applies_late and any(reset.takes_back(event) for reset in state.resets):
            return state
        known = [one.token for one in received]
        if event.token in known:
            if self._feed.keeps_first_incarnation:
                return state
            latest = max(received[known.index(event.token)], event, key=lambda one: one.incarnation)
            return replace(
                state, received=_put(state.received, index, put_at(received, known.index(event.token), latest))
            )
        values = [one.value for one in received]
        if self._lagging and (event.token in state.sent or self._is_late):
            # It was taken back, or the reset that takes back another one of its change is still to be read.
            received = tuple(sorted((*received, event), key=lambda one: (one.value, one.token)))
        else:
            if event.value in values:
                promise = f"twice: {TENANTS[index]}{event.value} came before, as another event"
            elif values and event.value < max(values):
                promise = f"order: {TENANTS[index]}{event.value} came behind {values}"
            received = (*received, event)
        sent = tuple(sorted({*state.sent, event.token})) if self._lagging else ()
        return replace(state, received=_put(state.received, index, received), promise=promise, sent=sent)

    def broken(self, state: State) -> str:
        """Return the promise that was broken: where standbys are awaited, no event of a lost commit is published."""
        assert isinstance(state, FeedState)
        if not self._lagging:
            for received in state.received:
                for one in received:
                    if not any(one.token == batch.token for batch in state.shards[one.place].log):
                        return f"undone: the commit of {one.token} is lost"
        return state.promise


def _with_reset(resets: Sequence[Reset], reset: Reset) -> tuple[Reset, ...]:
    """Return the resets without those that take back nothing more than a later one: a model need not keep these."""
    known = sorted({*resets, reset})
    return tuple(
        one
        for one in known
        if not any(
            one is not other
            and one.place == other.place
            and one.behind >= other.behind
            and one.incarnation <= other.incarnation
            for other in known
        )
    )


def _row_of(log: Sequence[Batch]) -> FeedRow | None:
    for one in reversed(log):
        if one.kind == ROW:
            run, told = one.tenant.split("|")
            return FeedRow(one.value, one.token, told, int(run))
    return None


def _with_row(state: FeedState, place: int, row: FeedRow) -> FeedState:
    shard = state.shards[place]
    commit = Batch(0, row.incarnation, f"{row.run}|{row.told}", ROW, row.cursor)
    # A later row makes an earlier one void, which goes unless the standby has that one and not yet the later one.
    kept = tuple(one for index, one in enumerate(shard.log) if one.kind != ROW or index < shard.standby)
    return replace(state, shards=_put(state.shards, place, replace(shard, log=(*kept, commit))))


def _with_head(state: FeedState, place: int, head: int) -> FeedState:
    return replace(state, heads=_put(state.heads, place, head))


def _without_publisher(state: FeedState, place: int) -> FeedState:
    if state.heads[place] == OUT_OF_FILE:
        return state
    gone = _with_head(state, place, NOBODY)
    return replace(gone, unsent=_put(state.unsent, place, 0), told=_put(state.told, place, ""))


def _put(parts: Any, index: int, part: object) -> Any:
    return put_at(parts, index, part)
