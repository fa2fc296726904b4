"""Giving up an operation of a known tenant: dead letter, marked row, replay at another position, a second reader.

One key; its first operation fails by itself while the cause lasts. A replay is a new record of the same `requestId` and
digest at the end of the stream shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from model.search import StatePart
from msgspec.structs import replace


@dataclass(frozen=True, slots=True)
class Rules:
    """How an operation is given up; each switch is a deviation from the agreed way."""

    leaves_no_row: bool = False
    leaves_plain_row: bool = False  # a failed row like any other: nothing may replace it
    row_before_letter: bool = False
    any_other_position_replaces: bool = False  # not only a later one
    other_stream_shard_replaces: bool = False  # after a reshard, when the replay is in the child; later or not


AGREED = Rules()


class Mark(IntEnum):
    NONE = 0
    GIVEN_UP = 1
    APPLIED = 2


class Row(StatePart, frozen=True):
    mark: Mark
    position: int  # of the record that it is about


class Reader(StatePart, frozen=True):
    position: int
    is_half_given_up: bool = False  # of letter and row the first is there


class State(StatePart, frozen=True):
    records: tuple[int, ...]  # the request of each
    log: tuple[Row, ...]  # by request
    last_effect: int  # the highest position of a record that took effect
    has_letter: bool  # of request 0, in the dead-letter queue
    is_failing: bool
    checkpoint: int
    owner: Reader
    zombie: Reader | None
    left: tuple[int, int, int, int]  # crashes, takes, replays, changes of the cause
    promise: str  # broken on the way here


class GivingUpModel:
    """One stream shard and one key, of which request 0 fails by itself."""

    def __init__(
        self, request_count: int, *, crashes: int = 1, takes: int = 1, replays: int = 1, rules: Rules = AGREED
    ) -> None:
        self._count = request_count
        self._left = (crashes, takes, replays, 2)
        self._rules = rules

    def first(self) -> State:
        records = tuple(range(self._count))
        log = (Row(Mark.NONE, -1),) * self._count
        return State(
            records,
            log,
            last_effect=-1,
            has_letter=False,
            is_failing=True,
            checkpoint=0,
            owner=Reader(0),
            zombie=None,
            left=self._left,
            promise="",
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for label, reader, following in self._moves(state, state.owner):
            yield label, replace(following, owner=reader)
        if state.owner.position > state.checkpoint:
            yield f"checkpoint {state.owner.position}", replace(state, checkpoint=state.owner.position)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        if state.zombie is not None:
            for label, reader, following in self._moves(state, state.zombie):
                yield f"zombie: {label}", replace(following, zombie=reader)
        crashes, takes, replays, changes = state.left
        fresh = Reader(state.checkpoint)
        if crashes:
            yield "crash", replace(state, owner=fresh, left=(crashes - 1, takes, replays, changes))
        if takes:
            left = (crashes, takes - 1, replays, changes)
            yield "lease taken", replace(state, owner=fresh, zombie=state.owner, left=left)
        if replays and state.has_letter:
            left = (crashes, takes, replays - 1, changes)
            label = f"replay of request 0 as record {len(state.records)}"
            yield label, replace(state, records=(*state.records, 0), has_letter=False, left=left)
        if changes:
            label = "the cause ends" if state.is_failing else "the cause comes back"
            left = (crashes, takes, replays, changes - 1)
            yield label, replace(state, is_failing=not state.is_failing, left=left)

    def broken(self, state: State) -> str:
        if state.promise:
            return state.promise
        for record in range(state.checkpoint):
            request = state.records[record]
            is_given_up = request == 0 and (state.has_letter or state.records.count(0) > 1)
            if state.log[request].mark is not Mark.APPLIED and not is_given_up:
                return f"lost: the checkpoint is {state.checkpoint}, and record {record} left no trace"
        return ""

    def unsettled(self, state: State) -> str:
        """Return what is left over at the end: a request neither applied nor a dead letter that can be replayed."""
        if state.log[0].mark is not Mark.APPLIED and not state.has_letter:
            return "replay dropped: request 0 is neither applied nor a dead letter, for ever"
        is_settled = state.checkpoint == len(state.records) and all(row.mark is Mark.APPLIED for row in state.log[1:])
        return "" if is_settled else f"unsettled: {state}"

    def _moves(self, state: State, reader: Reader) -> Iterator[tuple[str, Reader, State]]:
        record = reader.position
        if record == len(state.records):
            return
        request = state.records[record]
        past = Reader(record + 1)
        if reader.is_half_given_up:
            if self._rules.row_before_letter:
                yield f"stores the letter of record {record}", past, replace(state, has_letter=True)
            else:
                yield f"gives up record {record}", past, self._give_up(state, record)
        elif not self._may_replace(state.log[request], record):
            yield f"drops record {record}, which is in the log", past, state
        elif request == 0 and state.is_failing:
            half = Reader(record, is_half_given_up=True)
            if self._rules.row_before_letter:
                yield f"gives up record {record}", half, self._give_up(state, record)
            else:
                yield f"stores the letter of record {record}", half, replace(state, has_letter=True)
        else:
            yield f"applies record {record}", past, self._apply(state, record)

    def _give_up(self, state: State, record: int) -> State:
        request = state.records[record]
        if self._rules.leaves_no_row or not self._may_replace(state.log[request], record):
            return state
        return replace(state, log=_set(state.log, request, Row(Mark.GIVEN_UP, record)))

    def _apply(self, state: State, record: int) -> State:
        request = state.records[record]
        promise = ""
        if record < state.last_effect:
            promise = f"order: record {record} took effect after record {state.last_effect}, of the same key"
        log = _set(state.log, request, Row(Mark.APPLIED, record))
        return replace(state, log=log, last_effect=max(state.last_effect, record), promise=promise)

    def _may_replace(self, row: Row, record: int) -> bool:
        if row.mark is not Mark.GIVEN_UP:
            return row.mark is Mark.NONE
        if self._rules.any_other_position_replaces:
            return record != row.position
        if self._rules.other_stream_shard_replaces and (record < self._count) != (row.position < self._count):
            return True
        return record > row.position and not self._rules.leaves_plain_row


def _set(log: tuple[Row, ...], request: int, row: Row) -> tuple[Row, ...]:
    return (*log[:request], row, *log[request + 1 :])
