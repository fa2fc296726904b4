"""Group commit: batches of several stream shards of a replica in one transaction on one Postgres shard.

Two replicas. A stream shard has one operation after the other, each a batch, and a row with position and token on the
Postgres shard. A reader keeps no token here: it is enough whether the row's token is among those that it knows, and
whether the token of the standby's row is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations

from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

REPLICAS = (0, 1)
TAKES, LOST_ANSWERS, FAILOVERS, CATCH_UPS = range(4)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a group is committed; each switch is a deviation from the agreed way."""

    locks_as_they_come: bool = False  # not in order of the rows
    inserts_last: bool = False  # in order, but rows that exist before those that do not
    error_for_all: bool = False  # of one part's token: all readers read their rows again
    drops_others: bool = False  # the parts with the right token are not tried again
    applies_untokened: bool = False  # a part with another reader's token is applied too, only its row is left alone
    positions_first: bool = False  # in a transaction of their own
    first_position_alone: bool = False  # the group writes one row
    retries_together: bool = False  # a failed group is tried again as it is


AGREED = Rules()


class Budget(StatePart, frozen=True):
    takes: int = 1
    lost_answers: int = 0
    failovers: int = 0
    catch_ups: int = 0


class Row(StatePart, frozen=True):
    """The row of a stream shard, on the primary or the standby, and the log there: which operations it has."""

    exists: bool
    position: int
    log: tuple[bool, ...]


class Reader(StatePart, frozen=True):
    position: int
    has_read: bool = False  # the row
    inserts: bool = False  # it found none
    knows_row: bool = False
    knows_standby: bool = False
    goes_alone: bool = False


class Transaction(StatePart, frozen=True):
    """The stream shards of a group, in the order of their locks, and how many rows are locked."""

    parts: tuple[int, ...]
    locked: int = 0
    untokened: tuple[int, ...] = ()  # parts with another reader's token, in a design that applies them
    has_positions: bool = False  # committed, before the effects


class State(StatePart, frozen=True):
    rows: tuple[Row, ...]
    standby: tuple[Row, ...]
    is_same: tuple[bool, ...]  # whether the standby's row has the token of the row
    owners: tuple[int, ...]  # of the leases, by stream shard
    checkpoints: tuple[int, ...]
    readers: tuple[tuple[Reader | None, ...], ...]  # by replica and stream shard
    running: tuple[Transaction | None, ...]  # by replica
    left: tuple[int, ...]
    promise: str = ""  # broken on the way here


class GroupCommitModel:
    def __init__(
        self,
        *,
        stream_shards: int = 2,
        count: int = 1,
        has_rows: bool = True,
        refused: tuple[tuple[int, int], ...] = (),
        budget: Budget | None = None,
        rules: Rules = AGREED,
    ) -> None:
        self._all = range(stream_shards)
        self._count = count
        self._has_rows = has_rows
        self._refused = frozenset(refused)
        budget = budget or Budget()
        self._left = (budget.takes, budget.lost_answers, budget.failovers, budget.catch_ups)
        self._rules = rules

    def first(self) -> State:
        row = Row(self._has_rows, 0, (False,) * self._count)
        rows = (row,) * len(self._all)
        begun: tuple[Reader | None, ...] = (Reader(0),) * len(self._all)
        return State(
            rows=rows,
            standby=rows,
            is_same=(True,) * len(self._all),
            owners=(0,) * len(self._all),
            checkpoints=(0,) * len(self._all),
            readers=(begun, (None,) * len(self._all)),
            running=(None, None),
            left=self._left,
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for replica in REPLICAS:
            for part in self._all:
                yield from self._read_row(state, replica, part)
            if state.running[replica] is None:
                for parts in self._groups(state, replica):
                    if all(state.owners[part] == replica for part in parts):
                        yield self._begin(state, replica, parts)
            else:
                yield from self._proceed(state, replica)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        for replica in REPLICAS:
            if state.running[replica] is None:
                for parts in self._groups(state, replica):
                    if any(state.owners[part] != replica for part in parts):
                        yield self._begin(state, replica, parts)
            elif state.left[LOST_ANSWERS] and self._is_locked(state, replica):
                left = one_less(state.left, LOST_ANSWERS)
                yield (
                    f"{replica} commits, and the answer is lost",
                    replace(self._commit(state, replica, is_answered=False), left=left),
                )
        if state.left[TAKES]:
            for part in self._all:
                yield from self._take(state, part)
        if state.left[CATCH_UPS] and state.standby != state.rows:
            yield "the standby catches up", self._catch_up(state)
        if state.left[FAILOVERS]:
            yield "failover", self._fail_over(state)

    def broken(self, state: State) -> str:
        """Return the promise that was broken: order, a row that claims too much, a deadlock, blame for another's."""
        if state.promise:
            return state.promise
        for part, row in enumerate(state.rows):
            if not all(row.log[: row.position]):
                return f"claims: the row of {part} is at {row.position}, and the log has {row.log}"
        waits = [self._waits_for(state, replica) for replica in REPLICAS]
        if all(part is not None for part in waits):
            return f"deadlock: the replicas wait for the rows {waits}"
        return ""

    def unsettled(self, state: State) -> str:
        if missing := [part for part, row in enumerate(state.rows) if not all(row.log)]:
            return f"lost: operations of {missing} are not applied, for ever"
        return ""

    def _read_row(self, state: State, replica: int, part: int) -> Iterator[tuple[str, State]]:
        reader, row = state.readers[replica][part], state.rows[part]
        if reader is None or self._is_in_flight(state, replica, part):
            return
        if reader.has_read and (not row.exists if reader.inserts else reader.knows_row):
            return
        if state.owners[part] != replica:
            yield f"{replica} stops its reader of {part}", _with_reader(state, replica, part, None)
            return
        read = replace(
            reader,
            position=min(reader.position, row.position if row.exists else 0),
            has_read=True,
            inserts=not row.exists,
            knows_row=row.exists,
            knows_standby=row.exists and state.is_same[part],
        )
        yield f"{replica} reads the row of {part}", _with_reader(state, replica, part, read)

    def _groups(self, state: State, replica: int) -> Iterator[tuple[int, ...]]:
        ready = [part for part in self._all if self._is_ready(state.readers[replica][part])]
        together = [part for part in ready if not self._goes_alone(state.readers[replica][part])]
        yield from ((part,) for part in ready)
        for size in range(2, len(together) + 1):
            yield from combinations(together, size)

    def _is_ready(self, reader: Reader | None) -> bool:
        return reader is not None and reader.has_read and reader.position < self._count

    def _goes_alone(self, reader: Reader | None) -> bool:
        return reader is not None and reader.goes_alone

    def _begin(self, state: State, replica: int, parts: tuple[int, ...]) -> tuple[str, State]:
        if self._rules.locks_as_they_come and replica:
            parts = parts[::-1]
        if self._rules.inserts_last:
            parts = tuple(sorted(parts, key=lambda part: (_reader(state, replica, part).inserts, part)))
        return f"{replica} begins with {parts}", _with_running(state, replica, Transaction(parts))

    def _proceed(self, state: State, replica: int) -> Iterator[tuple[str, State]]:
        running = _running(state, replica)
        if self._is_locked(state, replica):
            refused = [part for part in running.parts if self._is_refused(state, replica, part)]
            if refused and len(running.parts) > 1:
                yield f"{replica}: data are refused", self._roll_back(state, replica, ())
            elif self._rules.positions_first and not running.has_positions:
                yield f"{replica} commits the positions", self._commit_positions(state, replica)
            else:
                yield f"{replica} commits", self._commit(state, replica)
            return
        part = running.parts[running.locked]
        reader = _reader(state, replica, part)
        if self._waits_for(state, replica) is not None:
            return
        if not state.rows[part].exists if reader.inserts else reader.knows_row:
            locked = replace(running, locked=running.locked + 1)
            yield f"{replica} locks {part}", _with_running(state, replica, locked)
        elif len(running.parts) > 1 and self._rules.applies_untokened:
            passed = replace(running, locked=running.locked + 1, untokened=(*running.untokened, part))
            yield f"{replica} leaves the row of {part} alone", _with_running(state, replica, passed)
        else:
            yield f"{replica} finds another token in {part}", self._roll_back(state, replica, (part,))

    def _is_locked(self, state: State, replica: int) -> bool:
        running = state.running[replica]
        return running is not None and running.locked == len(running.parts)

    def _is_refused(self, state: State, replica: int, part: int) -> bool:
        number = _reader(state, replica, part).position
        return (part, number) in self._refused and not state.rows[part].log[number]

    def _holds(self, state: State, replica: int, part: int) -> bool:
        running = state.running[replica]
        return running is not None and part in running.parts[: running.locked] and part not in running.untokened

    def _waits_for(self, state: State, replica: int) -> int | None:
        running = state.running[replica]
        if running is None or self._is_locked(state, replica):
            return None
        part = running.parts[running.locked]
        reader = _reader(state, replica, part)
        # A statement compares first: it waits for no row with a token that it does not know.
        return part if self._holds(state, 1 - replica, part) and (reader.inserts or reader.knows_row) else None

    def _roll_back(self, state: State, replica: int, changed: tuple[int, ...]) -> State:
        running = _running(state, replica)
        is_group = len(running.parts) > 1
        state = _with_running(state, replica, None)
        for part in running.parts:
            reader = _reader(state, replica, part)
            if is_group and self._rules.error_for_all:
                if changed and part not in changed and reader.knows_row:
                    state = replace(state, promise=f"blamed: the reader of {part} for another one's token")
                after = replace(reader, has_read=False)
            elif is_group and self._rules.drops_others and part not in changed:
                after = self._settled(reader)
            elif is_group and not self._rules.retries_together:
                after = replace(reader, goes_alone=True)
            elif is_group:
                after = reader
            else:
                after = replace(reader, has_read=False, goes_alone=False)
            state = _with_reader(state, replica, part, after)
        return state

    def _settled(self, reader: Reader) -> Reader:
        return replace(reader, position=reader.position + 1, goes_alone=False)

    def _commit_positions(self, state: State, replica: int) -> State:
        running = _running(state, replica)
        for part in running.parts:
            state = self._write_row(state, replica, part, _reader(state, replica, part).position + 1)
        return _with_running(state, replica, replace(running, has_positions=True))

    def _write_row(self, state: State, replica: int, part: int, position: int) -> State:
        row = replace(state.rows[part], exists=True, position=position)
        state = replace(state, rows=put_at(state.rows, part, row), is_same=put_at(state.is_same, part, False))
        other = state.readers[1 - replica][part]
        if other is not None:
            state = _with_reader(state, 1 - replica, part, replace(other, knows_row=False))
        return state

    def _commit(self, state: State, replica: int, *, is_answered: bool = True) -> State:
        running = _running(state, replica)
        for number, part in enumerate(running.parts):
            reader = _reader(state, replica, part)
            state = self._apply(state, part, reader.position)
            is_written = part not in running.untokened and not (self._rules.first_position_alone and number)
            if is_written and not running.has_positions:
                state = self._write_row(state, replica, part, reader.position + 1)
            if is_written:
                # Of an unanswered commit the former token stays known, beside the new one.
                knows_standby = reader.knows_standby and not is_answered
                reader = replace(reader, inserts=False, knows_row=True, knows_standby=knows_standby)
            if is_answered:
                reader = self._settled(reader)
                if state.owners[part] == replica:
                    checkpoint = max(state.checkpoints[part], reader.position)
                    state = replace(state, checkpoints=put_at(state.checkpoints, part, checkpoint))
            state = _with_reader(state, replica, part, reader)
        return _with_running(state, replica, None)

    def _apply(self, state: State, part: int, number: int) -> State:
        row = state.rows[part]
        if row.log[number]:
            return state
        if not all(row.log[:number]):
            state = replace(state, promise=f"order: {number} of {part} took effect, and the log has {row.log}")
        return replace(state, rows=put_at(state.rows, part, replace(row, log=put_at(row.log, number, True))))

    def _take(self, state: State, part: int) -> Iterator[tuple[str, State]]:
        replica = 1 - state.owners[part]
        if not self._is_in_flight(state, replica, part):
            taken = _with_reader(state, replica, part, Reader(state.checkpoints[part]))
            owners = put_at(state.owners, part, replica)
            yield f"{replica} takes {part}", replace(taken, owners=owners, left=one_less(state.left, TAKES))

    def _is_in_flight(self, state: State, replica: int, part: int) -> bool:
        running = state.running[replica]
        return running is not None and part in running.parts

    def _catch_up(self, state: State) -> State:
        return replace(
            _with_known(state, of_standby=True),
            standby=state.rows,
            is_same=(True,) * len(self._all),
            left=one_less(state.left, CATCH_UPS),
        )

    def _fail_over(self, state: State) -> State:
        return replace(
            _with_known(state, of_standby=False),
            rows=state.standby,
            is_same=(True,) * len(self._all),
            running=(None, None),
            left=one_less(state.left, FAILOVERS),
        )


def _reader(state: State, replica: int, part: int) -> Reader:
    reader = state.readers[replica][part]
    assert reader is not None
    return reader


def _running(state: State, replica: int) -> Transaction:
    running = state.running[replica]
    assert running is not None
    return running


def _with_reader(state: State, replica: int, part: int, reader: Reader | None) -> State:
    readers = put_at(state.readers, replica, put_at(state.readers[replica], part, reader))
    return replace(state, readers=readers)


def _with_running(state: State, replica: int, running: Transaction | None) -> State:
    return replace(state, running=put_at(state.running, replica, running))


def _with_known(state: State, *, of_standby: bool) -> State:
    for replica, part in chain.from_iterable(
        [(replica, part) for part in range(len(state.rows))] for replica in REPLICAS
    ):
        reader = state.readers[replica][part]
        if reader is None:
            continue
        if of_standby:
            known = replace(reader, knows_standby=reader.knows_row)
        else:
            known = replace(reader, knows_row=reader.knows_standby)
        state = _with_reader(state, replica, part, known)
    return state
