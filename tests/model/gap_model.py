"""A shard that goes back by more than the stream keeps, and shards that only seem to: when a reader holds one.

Every even record is for the shard, every odd one for another. Within a tick, a part of the retention, a fleet that runs
reads everything, meets the shard, and writes its row again. No operation may take effect over one that the shard lost
and the stream has dropped, before a person accepts that. The shard is held only if an older backup took its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.search import StatePart, one_less
from msgspec.structs import replace

RETENTION = 2  # ticks
NONE = -1


@dataclass(frozen=True, slots=True)
class Rules:
    """When a shard is held; each switch is a deviation from the agreed way."""

    never_holds: bool = False
    ignores_age: bool = False  # of the row
    ignores_checkpoint: bool = False
    ignores_stop: bool = False  # of the fleet
    trusts_own_reads: bool = False  # at the first contact, as a sign that the fleet was not stopped
    keeps_in_memory: bool = False  # that it holds a shard


AGREED = Rules()


class Row(StatePart, frozen=True):
    """The row of the stream shard on the shard: all before *position* is there."""

    position: int
    written_at: int
    marked_from: int = NONE
    is_accepted: bool = False


class Shard(StatePart, frozen=True):
    applied: int  # a bit for each record
    row: Row


class Reader(StatePart, frozen=True):
    position: int
    began: int
    knows_row: bool = False
    was_read: bool = False
    is_holding: bool = False
    held_from: int = NONE


class State(StatePart, frozen=True):
    now: int
    records: tuple[int, ...]  # the tick at which each arrived
    shard: Shard
    replica: Shard  # lacks the last commit
    backup: Shard | None
    had: int  # a bit for each record that once was applied
    checkpoint: int
    reader: Reader | None
    is_unmet: bool  # the shard has gone back, and no reader has met it since
    is_from_old_backup: bool
    left: tuple[int, int, int, int, int, int]  # records, ticks, kills, restores, failovers, acceptances
    promise: str


class GapModel:
    def __init__(
        self,
        *,
        records: int = 3,
        ticks: int = 4,
        kills: int = 1,
        restores: int = 1,
        failovers: int = 1,
        acceptances: int = 1,
        rules: Rules = AGREED,
    ) -> None:
        self._left = (records, ticks, kills, restores, failovers, acceptances)
        self._rules = rules

    def first(self) -> State:
        shard = Shard(0, Row(0, 0))
        reader = Reader(0, 0, knows_row=True, was_read=True)
        return State(0, (), shard, shard, None, 0, 0, reader, False, False, self._left, "")

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        reader = state.reader
        if reader is None:
            yield "a reader starts", replace(state, reader=Reader(state.checkpoint, state.checkpoint))
            return
        if not reader.knows_row:
            yield self._meet(state, reader)
        if reader.position < len(state.records):
            yield from self._read(state, reader)
        elif reader.knows_row and (state.shard.row.position, state.shard.row.written_at) != (
            reader.position,
            state.now,
        ):
            row = replace(state.shard.row, position=reader.position, written_at=state.now)
            yield "writes the row again", replace(state, replica=state.shard, shard=replace(state.shard, row=row))
        floor = reader.position if reader.held_from == NONE else reader.held_from
        if floor > state.checkpoint:
            yield f"checkpoint {floor}", replace(state, checkpoint=floor)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        records, ticks, kills, restores, failovers, acceptances = state.left
        if records:
            yield "a record", replace(state, records=(*state.records, state.now), left=one_less(state.left, 0))
        if ticks and self._is_prompt(state):
            yield "a tick", self._tick(state)
        # Rows are written within seconds of a record, an instant beside a tick.
        is_fresh = state.shard.row.written_at == state.now
        if kills and state.reader is not None and not state.is_unmet and (is_fresh or state.reader.is_holding):
            yield "the reader is killed", replace(state, reader=None, left=one_less(state.left, 2))
        if state.backup is None and restores:
            yield "a backup", replace(state, backup=state.shard)
        # Where it went back before a fleet that was stopped meets it, nothing tells it from the others.
        can_be_told = state.reader is not None and (state.reader.was_read or self._has(state, state.reader.began))
        if state.backup is not None and restores and can_be_told:
            yield "a restore", self._put_back(state, state.backup, place=3)
        if failovers and can_be_told:
            yield "a failover", self._put_back(state, state.replica, place=4)
        row = state.shard.row
        if acceptances and row.marked_from == row.position and not row.is_accepted:
            accepted = replace(state.shard, row=replace(row, is_accepted=True))
            reader = state.reader and replace(state.reader, knows_row=False)
            missing = state.had & ~state.shard.applied
            yield (
                "a person accepts",
                replace(state, shard=accepted, reader=reader, had=state.had & ~missing, left=one_less(state.left, 5)),
            )

    def broken(self, state: State) -> str:
        return state.promise

    def unsettled(self, state: State) -> str:
        """Return what is left over: a record that the stream has, and that neither the shard has nor a hold."""
        if state.reader is not None and state.reader.is_holding:
            return ""
        for record, arrived_at in enumerate(state.records):
            is_kept = arrived_at > state.now - RETENTION
            if record % 2 == 0 and is_kept and not state.shard.applied >> record & 1:
                return f"unsettled: record {record}"
        return ""

    def _is_prompt(self, state: State) -> bool:
        reader = state.reader
        if reader is None:
            return True
        if state.is_unmet or reader.position < len(state.records):
            return False
        if not (reader.knows_row or reader.is_holding):
            return False
        return reader.is_holding or state.shard.row.written_at == state.now

    def _tick(self, state: State) -> State:
        now, had, row = state.now + 1, state.had, state.shard.row
        if state.reader is None and (row.marked_from != row.position or row.is_accepted):
            for record, arrived_at in enumerate(state.records):
                if arrived_at <= now - RETENTION and not state.shard.applied >> record & 1:
                    had &= ~(1 << record)
        return replace(state, now=now, had=had, replica=state.shard, left=one_less(state.left, 1))

    def _has(self, state: State, position: int) -> bool:
        return position > 0 and state.records[position - 1] > state.now - RETENTION

    def _put_back(self, state: State, shard: Shard, *, place: int) -> State:
        reader = state.reader and replace(state.reader, knows_row=False)
        return replace(
            state,
            shard=shard,
            replica=shard,
            reader=reader,
            had=state.had & (shard.applied | (1 << state.checkpoint) - 1),  # others were not checkpointed
            is_unmet=True,
            is_from_old_backup=state.now - shard.row.written_at >= RETENTION,
            left=one_less(state.left, place),
        )

    def _meet(self, state: State, reader: Reader) -> tuple[str, State]:
        row = state.shard.row
        met = replace(state, is_unmet=False)
        if self._is_gap(state, reader, row):
            if row.marked_from != row.position and not self._rules.keeps_in_memory:
                row = replace(row, marked_from=row.position, is_accepted=False)
            promise = "" if state.is_from_old_backup else "held in vain: no old backup took its place"
            held = replace(reader, is_holding=True)
            shard = replace(state.shard, row=row)
            return "holds the shard", replace(met, reader=held, shard=shard, promise=promise)
        compared = reader.position if reader.was_read else reader.began
        if reader.held_from != NONE:
            compared = max(compared, reader.position)
        position = min(reader.position, row.position) if row.position < compared else reader.position
        if reader.held_from != NONE:
            position = min(position, reader.held_from)
        following = replace(reader, position=position, knows_row=True, was_read=True, is_holding=False, held_from=NONE)
        return f"meets the shard, reads from {position}", replace(met, reader=following)

    def _is_gap(self, state: State, reader: Reader, row: Row) -> bool:
        rules = self._rules
        if rules.never_holds:
            return False
        if row.marked_from == row.position:
            return not row.is_accepted
        if rules.keeps_in_memory and reader.is_holding:
            return True
        is_old = rules.ignores_age or state.now - row.written_at >= RETENTION
        if reader.was_read:
            checkpoint = max(state.checkpoint, 0 if reader.is_holding else reader.position)
        else:
            checkpoint = reader.began
        went_back = row.position < (reader.position if rules.ignores_checkpoint else checkpoint)
        read_to = reader.position if rules.trusts_own_reads else reader.began
        has_read_on = rules.ignores_stop or reader.was_read or self._has(state, read_to)
        has_left = not self._has(state, row.position)
        return is_old and went_back and has_left and has_read_on

    def _read(self, state: State, reader: Reader) -> Iterator[tuple[str, State]]:
        record = reader.position
        past = replace(reader, position=record + 1)
        if state.records[record] <= state.now - RETENTION:
            yield f"record {record} has left the stream", replace(state, reader=past)
        elif record % 2:
            yield f"record {record} goes to the other shard", replace(state, reader=past)
        elif reader.is_holding:
            held_from = record if reader.held_from == NONE else reader.held_from
            yield f"record {record} is held", replace(state, reader=replace(past, held_from=held_from))
        elif reader.knows_row:
            yield f"applies record {record}", self._apply(state, past, record)

    def _apply(self, state: State, past: Reader, record: int) -> State:
        missing = state.had & ~state.shard.applied & (1 << record) - 1
        gone = [r for r in range(record) if missing >> r & 1 and state.records[r] <= state.now - RETENTION]
        promise = f"over a gap: record {record} took effect, and {gone} is missing" if gone else ""
        bit = 1 << record
        row = replace(state.shard.row, position=record, written_at=state.now)
        shard = Shard(state.shard.applied | bit, row)
        return replace(state, shard=shard, replica=state.shard, had=state.had | bit, reader=past, promise=promise)
