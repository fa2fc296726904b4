"""A tenant that moves from a Postgres shard to another one while workers apply its operations; no shard loses commits.

A mover may die before each of its statements, and wake up late beside another one. It works in the phases of
docs/adr/0007-moving-tenants.md: *take*, *prepare*, *read* and *write* the copy, *fence*, the *last* delta, *commit*,
*activate*. A read and the write that follows it are two steps, for they are statements on two shards.

The tenant's data are the old rows, one value that each operation changes, one rename, which is not in the log, and the
resources of two order events with one id. A batch is one operation, and holds the lock of the tenant's row. A reader
sends the next operation to any shard with an active row: routes can only delay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import Literal, TypeAlias

from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

SHARD_NAMES = "AB"

TenantState: TypeAlias = Literal["none", "incoming", "ready", "active", "fenced", "moved"]
Phase: TypeAlias = Literal[
    "take", "prepare", "read", "write", "fence", "read last", "write last", "commit", "activate", "drop"
]


@dataclass(frozen=True, slots=True)
class Rules:
    """How movers and workers go about it; each switch is a deviation from the agreed way."""

    reads_expired_fence_as_active: bool = False  # a worker applies on, and nobody writes that the fence is over
    commits_without_fence: bool = False  # the commit looks at the token, and not at the state
    has_no_token: bool = False
    takes_token_at_fence: bool = False  # and not before the target is touched
    writes_without_token: bool = False  # to the target
    expiry_keeps_token: bool = False  # and the mover fences again with it
    fences_beside_batches: bool = False  # does not wait for those that have begun
    misses_batches_in_flight: bool = False  # the delta begins behind operations that were not committed at the copy
    leaves_log: bool = False  # does not copy the rows of the log
    ignores_renames: bool = False  # the last delta has the operations of the log alone
    ignores_older_rows: bool = False  # the last delta has of each id of order events the newest row alone
    repairs_by_newest_rows: bool = False  # takes what these do not name for unchanged since the fence
    repairs_newer_rows: bool = False  # writes over rows that were written since the fence
    activates_incoming: bool = False  # a target without the last delta
    activates_by_present_token: bool = False  # of the source, and not by the one read with `moved`
    drops_without_token: bool = False  # a rollback before the commit
    continues_from_own_start: bool = False  # a copy that an earlier mover has left: the delta begins with this mover
    rolls_back_in_place: bool = False  # after the commit, by making the source active again
    rolls_back_by_old_copy: bool = False  # the delta of the walk back begins with the walk
    trusts_cleaned_rows: bool = False  # the walk back takes rows for whole that a cleanup has deleted
    cleans_up_unchecked: bool = False  # deletes rows of a tenant that has come back


AGREED = Rules()


@dataclass(frozen=True, slots=True)
class Budget:
    moves: int = 1
    moves_back: int = 0
    rollbacks: int = 0  # before the commit
    cleanups: int = 0
    renames: int = 0
    orders: int = 0  # order events: the first, and the second with the same id
    repairs: int = 0  # by `tenants verify --repair`
    crashes: int = 0  # of the worker
    takes: int = 0  # of its lease: the old one goes on as a zombie
    late_commits: int = 0  # without an answer, so that the mover begins again before they arrive


class Left(IntEnum):
    """The places in `State.left`, in the order of the fields of Budget."""

    MOVES = 0
    MOVES_BACK = 1
    ROLLBACKS = 2
    CLEANUPS = 3
    RENAMES = 4
    ORDERS = 5
    REPAIRS = 6
    CRASHES = 7
    TAKES = 8
    LATE_COMMITS = 9


class Rows(StatePart, frozen=True):
    """The tenant's rows on a shard, or as a mover has read them."""

    has_old: bool = False
    value: int = 0  # the number of operations that it shows
    is_renamed: bool = False
    orders: int = 0  # bits: the resources of the order events
    order_row: int = 0  # bit: the one of the newest row with their id
    log: int = 0  # bits


NO_ROWS = Rows()


class Side(StatePart, frozen=True):
    state: TenantState
    token: int = 0
    rows: Rows = NO_ROWS
    copied_log: int = 0  # the log of the source as of the copy
    has_copy: bool = False  # since the tenant began to move here
    is_whole: bool = True  # no cleanup has begun since the tenant left


class Mover(StatePart, frozen=True):
    """A process that moves the tenant from the shard `source` to the other one, or takes such a move back."""

    source: int
    phase: Phase = "take"
    is_rollback: bool = False
    token: int = 0
    rows: Rows = NO_ROWS  # read on the source, and not yet written


class Reader(StatePart, frozen=True):
    """A reader of the stream: the next operation, and the shard where its batch has begun."""

    next: int = 0
    shard: int | None = None


class State(StatePart, frozen=True):
    sides: tuple[Side, ...]  # of shards A and B
    movers: tuple[Mover, ...]
    cleaner: tuple[int, int] | None  # a cleanup that has begun: its shard, its token
    late_commit: tuple[int, int] | None  # shard and token
    owner: Reader
    zombie: Reader | None
    checkpoint: int
    is_renamed: bool
    orders: int  # bits: the order events that were applied
    left: tuple[int, ...]  # by Left
    promise: str = ""  # broken on the way here


class MoveModel:
    def __init__(self, count: int, budget: Budget, rules: Rules = AGREED, *, keeps_copies: bool = False) -> None:
        self._keeps_copies = keeps_copies
        self._count = count
        self._budget = budget
        self._rules = rules

    def first(self) -> State:
        return State(
            sides=(Side("active", rows=Rows(has_old=True)), Side("none")),
            movers=(),
            cleaner=None,
            late_commit=None,
            owner=Reader(),
            zombie=None,
            checkpoint=0,
            is_renamed=False,
            orders=0,
            left=astuple(self._budget),
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Return what the reader and the movers do, and what any worker does where a mover has died."""
        for label, (read, owner) in self._read(state, state.owner):
            yield label, replace(read, owner=owner)
        if state.owner.next > state.checkpoint:
            yield f"checkpoint {state.owner.next}", replace(state, checkpoint=state.owner.next)
        for number, mover in enumerate(state.movers):
            label, following = self._move(state, number, mover)
            yield f"mover {SHARD_NAMES[mover.source]}{mover.token}: {label}", following
        yield from self._end_of_fences(state)
        for source, (one, other) in enumerate((state.sides, state.sides[::-1])):
            if one.state == "moved" and self._may_activate(one.token, other):
                yield f"a worker activates {SHARD_NAMES[1 - source]}", _activated(state, 1 - source)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        if state.zombie is not None:
            for label, (following, zombie) in self._read(state, state.zombie):
                yield f"zombie: {label}", replace(following, zombie=zombie)
        for number, mover in enumerate(state.movers):
            yield f"mover {SHARD_NAMES[mover.source]}{mover.token} dies", _without_mover(state, number)
        yield from self._starts(state)
        yield from self._late_commits(state)
        if state.left[Left.CRASHES]:
            yield "crash", replace(_spend(state, Left.CRASHES), owner=Reader(state.checkpoint))
        if state.left[Left.TAKES]:
            taken = _spend(state, Left.TAKES)
            yield "lease taken", replace(taken, owner=Reader(state.checkpoint), zombie=state.owner)
        for number, side in enumerate(state.sides):
            if state.left[Left.RENAMES] and side.state == "active":
                renamed = replace(side, rows=replace(side.rows, is_renamed=True))
                following = replace(_spend(state, Left.RENAMES), is_renamed=True)
                yield f"rename on {SHARD_NAMES[number]}", _put(following, number, renamed)
            if state.left[Left.ORDERS] and side.state == "active":
                order = state.orders + 1  # the next bit
                rows = replace(side.rows, orders=side.rows.orders | order, order_row=order)
                following = replace(_spend(state, Left.ORDERS), orders=state.orders | order)
                yield f"order {order} on {SHARD_NAMES[number]}", _put(following, number, replace(side, rows=rows))
            if state.left[Left.REPAIRS]:
                yield from self._repair(_spend(state, Left.REPAIRS), number)
        yield from self._clean_up(state)

    def broken(self, state: State) -> str:
        """Return the promise that was broken: one home, and an active row has all that was acknowledged."""
        if state.promise:
            return state.promise
        active = [side for side in state.sides if side.state == "active"]
        if len(active) > 1:
            return "homes: both shards have an active row"
        for side in active:
            if not side.rows.has_old:
                return "lost: the old rows"
            if side.rows.value < state.checkpoint:
                return f"lost: operation {side.rows.value}"
            if state.is_renamed and not side.rows.is_renamed:
                return "lost: the rename"
            if state.orders & ~side.rows.orders:
                return f"lost: order {state.orders & ~side.rows.orders}"
        return ""

    def unsettled(self, state: State) -> str:
        homes = {"active", "fenced"} if self._rules.reads_expired_fence_as_active else {"active"}
        if not any(side.state in homes for side in state.sides):
            return f"unsettled: no home, {state.sides}"
        return "" if state.checkpoint == self._count else f"unsettled: {state.owner}"

    # The readers

    def _read(self, state: State, reader: Reader) -> Iterator[tuple[str, tuple[State, Reader]]]:
        if reader.shard is not None:
            following = self._committed(state, reader.shard, reader.next)
            yield f"commit {reader.next}", (following, Reader(reader.next + 1))
        elif reader.next < self._count:
            for number, side in enumerate(state.sides):
                seems_active = self._rules.reads_expired_fence_as_active and side.state == "fenced"
                if side.state == "active" or seems_active:
                    yield f"begin {reader.next} on {SHARD_NAMES[number]}", (state, replace(reader, shard=number))

    def _committed(self, state: State, number: int, operation: int) -> State:
        side = state.sides[number]
        rows = side.rows
        if rows.log >> operation & 1:
            return state
        promise = ""
        if rows.value > operation:
            promise = f"twice: {operation} on {SHARD_NAMES[number]}"
        elif rows.value < operation:
            promise = f"order: {operation} on {SHARD_NAMES[number]} before {rows.value}"
        rows = replace(rows, value=operation + 1, log=rows.log | 1 << operation)
        return replace(_put(state, number, replace(side, rows=rows)), promise=promise)

    def _is_locked(self, state: State, number: int) -> bool:
        return any(reader is not None and reader.shard == number for reader in (state.owner, state.zombie))

    def _end_of_fences(self, state: State) -> Iterator[tuple[str, State]]:
        if self._rules.reads_expired_fence_as_active:
            return
        for number, side in enumerate(state.sides):
            if side.state == "fenced":
                token = side.token if self._rules.expiry_keeps_token or self._rules.has_no_token else side.token + 1
                ended = replace(side, state="active", token=token)
                yield f"the fence on {SHARD_NAMES[number]} expires", _put(state, number, ended)

    # The movers

    def _starts(self, state: State) -> Iterator[tuple[str, State]]:
        if len(state.movers) > 1:
            return
        if state.left[Left.MOVES]:
            yield "start a mover", _with_mover(_spend(state, Left.MOVES), Mover(0))
        if state.left[Left.MOVES_BACK]:
            yield "start a mover back", _with_mover(_spend(state, Left.MOVES_BACK), Mover(1))
        if state.left[Left.ROLLBACKS]:
            phase: Phase = "drop" if self._rules.drops_without_token else "take"
            yield "start a rollback", _with_mover(_spend(state, Left.ROLLBACKS), Mover(0, phase, is_rollback=True))

    def _move(self, state: State, number: int, mover: Mover) -> tuple[str, State]:
        if mover.phase in {"read", "read last"}:
            phase: Phase = "write" if mover.phase == "read" else "write last"
            read = replace(mover, phase=phase, rows=state.sides[mover.source].rows)
            return mover.phase, _next(state, number, read)
        following = {
            "take": self._take,
            "prepare": self._prepare,
            "write": self._write,
            "fence": self._fence,
            "write last": self._write,
            "commit": self._commit,
            "activate": self._activate,
            "drop": self._drop,
        }[mover.phase](state, number, mover)
        if following is None:
            return f"{mover.phase}: refused", _without_mover(state, number)
        return mover.phase, following

    def _prepare(self, state: State, number: int, mover: Mover) -> State | None:
        source, target = state.sides[mover.source], state.sides[1 - mover.source]
        is_free = target.state in {"none", "incoming", "ready", "moved"}
        if not is_free or (target.token >= mover.token and not self._rules.has_no_token):
            return None
        prepared, phase = self._prepared(source, target, mover.token)
        return _next(_put(state, 1 - mover.source, prepared), number, replace(mover, phase=phase))

    def _write(self, state: State, number: int, mover: Mover) -> State | None:
        rules, target = self._rules, state.sides[1 - mover.source]
        is_own = target.state == "incoming" and (target.token == mover.token or rules.has_no_token)
        if not is_own and not (rules.writes_without_token and mover.phase == "write"):
            return None
        written = _put(state, 1 - mover.source, self._written(state, mover, target))
        phase: Phase = "fence" if mover.phase == "write" else "commit"
        return _next(written, number, replace(mover, phase=phase, rows=NO_ROWS))

    def _commit(self, state: State, number: int, mover: Mover) -> State | None:
        source = state.sides[mover.source]
        if not self._may_commit(source, mover.token):
            return None
        committed = _put(state, mover.source, replace(source, state="moved", is_whole=True))
        return _next(committed, number, replace(mover, phase="activate"))

    def _activate(self, state: State, number: int, mover: Mover) -> State | None:
        token = state.sides[mover.source].token if self._rules.activates_by_present_token else mover.token
        if not self._may_activate(token, state.sides[1 - mover.source]):
            return None
        return _without_mover(_activated(state, 1 - mover.source), number)

    def _drop(self, state: State, number: int, mover: Mover) -> State | None:
        target = state.sides[1 - mover.source]
        is_older = target.token < mover.token or self._rules.drops_without_token
        if target.state not in {"incoming", "ready"} or not is_older:
            return None
        return _put(_without_mover(state, number), 1 - mover.source, Side("none"))

    def _take(self, state: State, number: int, mover: Mover) -> State | None:
        source, target = state.sides[mover.source], state.sides[1 - mover.source]
        if source.state == "moved" and self._rules.rolls_back_in_place and mover.is_rollback:
            back = _put(state, mover.source, replace(source, state="active"))
            return _without_mover(_put(back, 1 - mover.source, replace(target, state="moved")), number)
        if source.state == "moved" and not mover.is_rollback:
            return _next(state, number, replace(mover, phase="activate", token=source.token))
        if source.state not in {"active", "fenced"}:
            return None
        token = 0 if self._rules.has_no_token else max(source.token, target.token) + 1
        phase: Phase = "drop" if mover.is_rollback else "prepare"
        following = _next(state, number, replace(mover, phase=phase, token=token))
        if self._rules.takes_token_at_fence:
            return following
        return _put(following, mover.source, replace(source, state="active", token=token))

    def _prepared(self, source: Side, target: Side, token: int) -> tuple[Side, Phase]:
        if self._keeps_copies and target.state in {"incoming", "ready"} and target.has_copy:
            covered = source.rows.log if self._rules.continues_from_own_start else target.copied_log
            return replace(target, state="incoming", token=token, copied_log=covered), "fence"
        is_warm = target.state == "moved" and (target.is_whole or self._rules.trusts_cleaned_rows)
        if not is_warm:
            return Side("incoming", token), "read"
        copied_log = source.rows.log if self._rules.rolls_back_by_old_copy else target.rows.log
        return Side("incoming", token, target.rows, copied_log), "fence"

    def _written(self, state: State, mover: Mover, target: Side) -> Side:
        rules, rows = self._rules, mover.rows
        log = 0 if rules.leaves_log else rows.log
        if mover.phase == "write":
            covered = rows.log
            if rules.misses_batches_in_flight:
                for reader in (state.owner, state.zombie):
                    if reader is not None and reader.shard == mover.source:
                        covered |= 1 << reader.next
            return replace(target, rows=replace(rows, log=log), copied_log=covered, has_copy=self._keeps_copies)
        delta = rows.log & ~target.copied_log
        named = _named_since(target.rows, rows, by_newest=rules.ignores_older_rows)
        written = replace(
            target.rows,
            value=rows.value if delta else target.rows.value,
            log=target.rows.log | (0 if rules.leaves_log else delta),
            is_renamed=target.rows.is_renamed if rules.ignores_renames else rows.is_renamed,
            orders=target.rows.orders | rows.orders & named,
            order_row=rows.order_row,
        )
        if self._keeps_copies:
            target = replace(target, copied_log=rows.log)
        return replace(target, state="ready", rows=written)

    def _fence(self, state: State, number: int, mover: Mover) -> State | None:
        source = state.sides[mover.source]
        if self._rules.activates_incoming:  # in one step with the commit, and without the last delta
            moved = _put(state, mover.source, replace(source, state="moved", token=mover.token))
            return _next(moved, number, replace(mover, phase="activate"))
        if self._is_locked(state, mover.source) and not self._rules.fences_beside_batches:
            return state  # it waits
        is_own = source.token == mover.token or self._rules.takes_token_at_fence or self._rules.has_no_token
        if source.state != "active" or not is_own:
            return None
        fenced = _put(state, mover.source, replace(source, state="fenced", token=mover.token))
        return _next(fenced, number, replace(mover, phase="read last"))

    def _may_commit(self, source: Side, token: int) -> bool:
        is_fenced = source.state == "fenced" or (self._rules.commits_without_fence and source.state == "active")
        return is_fenced and (source.token == token or self._rules.has_no_token)

    def _may_activate(self, token: int, target: Side) -> bool:
        if self._rules.activates_incoming and target.state == "incoming":
            return True
        return target.state == "ready" and (target.token == token or self._rules.has_no_token)

    def _late_commits(self, state: State) -> Iterator[tuple[str, State]]:
        if state.left[Left.LATE_COMMITS]:
            for number, mover in enumerate(state.movers):
                if mover.phase == "commit":
                    phase: Phase = "fence" if self._rules.expiry_keeps_token else "take"
                    begun = _next(_spend(state, Left.LATE_COMMITS), number, replace(mover, phase=phase))
                    yield "the commit has no answer", replace(begun, late_commit=(mover.source, mover.token))
        if state.late_commit is not None:
            shard, token = state.late_commit
            arrived = replace(state, late_commit=None)
            if self._may_commit(state.sides[shard], token):
                moved = replace(state.sides[shard], state="moved", is_whole=True)
                arrived = _put(arrived, shard, moved)
            yield "the commit arrives late", arrived

    def _repair(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        home, former = state.sides[number], state.sides[1 - number]
        if home.state != "active" or former.state != "moved" or not former.is_whole or former.token != home.token:
            return
        kept = _named_since(former.rows, home.rows, by_newest=self._rules.repairs_by_newest_rows)
        if not self._rules.repairs_newer_rows:
            kept |= home.rows.orders & ~former.rows.orders
        orders = (home.rows.orders & kept) | (former.rows.orders & ~kept)
        repaired = replace(home, rows=replace(home.rows, orders=orders))
        yield f"repair on {SHARD_NAMES[number]}", _put(state, number, repaired)

    def _clean_up(self, state: State) -> Iterator[tuple[str, State]]:
        if state.cleaner is not None:
            shard, token = state.cleaner
            side = state.sides[shard]
            ended = replace(state, cleaner=None)
            if (side.state == "moved" and side.token == token) or self._rules.cleans_up_unchecked:
                ended = _put(ended, shard, replace(side, rows=Rows(log=side.rows.log)))
            yield f"cleanup on {SHARD_NAMES[shard]}", ended
        elif state.left[Left.CLEANUPS]:
            for number, side in enumerate(state.sides):
                if side.state == "moved" and state.sides[1 - number].state == "active":
                    begun = replace(side, token=side.token + 1, is_whole=False)
                    following = replace(_spend(state, Left.CLEANUPS), cleaner=(number, begun.token))
                    yield f"begin a cleanup on {SHARD_NAMES[number]}", _put(following, number, begun)


def _named_since(before: Rows, now: Rows, *, by_newest: bool) -> int:
    if not by_newest:
        return now.orders & ~before.orders
    return now.order_row if now.order_row != before.order_row else 0


def _put(state: State, number: int, side: Side) -> State:
    return replace(state, sides=put_at(state.sides, number, side))


def _activated(state: State, number: int) -> State:
    return _put(state, number, replace(state.sides[number], state="active"))


def _next(state: State, number: int, mover: Mover) -> State:
    return _with_mover(_without_mover(state, number), mover)


def _without_mover(state: State, number: int) -> State:
    return replace(state, movers=(*state.movers[:number], *state.movers[number + 1 :]))


def _with_mover(state: State, mover: Mover) -> State:
    return replace(state, movers=tuple(sorted((*state.movers, mover))))


def _spend(state: State, kind: Left) -> State:
    return replace(state, left=one_less(state.left, kind))
