"""A tenant that moves between shards that may each be replaced by a replica without their last commits.

Beside what `move_model.py` has: a replica of each shard, which may get nothing for a while; the row with the position
of the stream shard and its token on each shard; and one message of a queue, which is deleted when its commit is on the
replica. There is one mover at a time, and its copy is one step. It moves the tenant from shard A to shard B.

The activation gives B's row a new token, and notes the token that it had before and the one of A's row as of the fence.
A reader *follows* it: it takes the new token and reads nothing again, if it knew the former token, wrote the carried
one itself since it last adopted any row, and finds that A's row still has a token that it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal, TypeAlias

from model.failover_rows import NEW, NO_TOKEN, OUTDATED, TO_ADOPT, TO_COME, names_of
from model.search import Memory, StatePart, one_less, put_at
from msgspec.structs import replace

A, B = 0, 1
SHARD_NAMES = "AB"
NO_ROW = -1  # in place of a position
NAMED_MAX = 1 << 16  # renamings that are remembered

TenantState: TypeAlias = Literal["none", "incoming", "ready", "active", "fenced", "moved"]
Phase: TypeAlias = Literal["take", "prepare", "copy", "fence", "last delta", "commit", "activate"]
MessageState: TypeAlias = Literal["none", "queued", "deleted"]


@dataclass(frozen=True, slots=True)
class Rules:
    """How movers and readers go about it; each switch but the first is a deviation from the agreed way."""

    skips_target_wait: bool = False  # before the commit: as right, but the copy may have to be made again
    activates_any_incoming: bool = False  # by the state of the source alone
    ready_without_token: bool = False  # activates what an earlier attempt has made ready
    skips_source_wait: bool = False  # activates though the source's replica may have the tenant active
    never_copies_again: bool = False  # from a source that the tenant has left
    carries_no_position: bool = False
    merges_before_commit: bool = False  # the positions, when the target gets ready, and not when it gets active
    counts_ready_as_resident: bool = False  # of a shard, when a reader adopts its row
    keeps_row_if_source_has_none: bool = False
    makes_row_beside_move: bool = False  # a reader that saw none, though a tenant has arrived since
    trusts_own_progress: bool = False  # of the copy, and not what the target has of it
    deletes_messages_early: bool = False  # before the replica has their commit
    never_follows: bool = False  # but reads again after every move: as right, and slow
    follows_from_any_token: bool = False  # whatever the reader knew of the target's row
    follows_without_carried: bool = False  # whenever A's row is as the reader left it
    follows_without_source: bool = False  # without a look at A's row
    follows_adopted_token: bool = False  # a token of A's row that the reader has found there, and not written
    keeps_written_if_source_lost: bool = False  # the tokens written before it adopted A's row
    keeps_written_if_target_lost: bool = False  # those written before it adopted B's row


AGREED = Rules()


@dataclass(frozen=True, slots=True)
class Budget:
    """How often each kind of trouble comes, and how often a mover is started."""

    movers: int = 1
    failovers_of_source: int = 0
    failovers_of_target: int = 0
    crashes: int = 0  # of the reader


class Left(IntEnum):
    """The places in `State.left`, in the order of the fields of Budget."""

    MOVERS = 0
    OF_SOURCE = 1
    OF_TARGET = 2
    CRASHES = 3


class Merge(StatePart, frozen=True):
    """An activation: the new token of the target's row, the one before, and that of the source's as of the fence."""

    token: int
    former: int
    carried: int


class Version(StatePart, frozen=True):
    state: TenantState
    token: int = 0  # of the move
    has_old: bool = False
    log: int = 0  # bits: the operations that were applied; the tenant's data show the same
    has_message: bool = False
    row_token: int = NO_TOKEN
    position: int = NO_ROW  # everything before it is applied, for the tenants of the shard
    arrivals: int = 0  # changes whenever a tenant arrives
    copied_log: int | None = None  # on the target: the source's log as of the copy, when that is done
    carried: int = NO_ROW  # on the target: the source's position as of the fence
    carried_token: int = NO_TOKEN  # and the token of that row
    merge: Merge | None = None  # on the target: how its row got its token at the activation


class Mover(StatePart, frozen=True):
    phase: Phase = "take"
    token: int = 0
    carried: int = NO_ROW
    carried_token: int = NO_TOKEN
    is_committed: bool = False


class Reader(StatePart, frozen=True):
    """A reader: the tenant's next operation, and the token that it knows of each shard's row."""

    next: int = 0
    tokens: tuple[int, ...] = (NEW, NEW)
    arrivals: tuple[int, ...] = (0, 0)  # as of when it found no row
    written: tuple[int, ...] = ()  # the tokens that it has written into A's row since it adopted any row
    following: Merge | None = None  # it has yet to look at A's row


class State(StatePart, frozen=True):
    shards: tuple[Version, ...]  # A and B
    replicas: tuple[Version | None, ...]  # one that gets nothing any more; None: it has everything
    mover: Mover | None
    reader: Reader
    checkpoint: int
    message: MessageState
    left: tuple[int, ...]  # by Left
    promise: str = ""  # broken on the way here


Works: TypeAlias = tuple[tuple[str, State], ...]


class MoveFailoverModel:
    """One tenant, two shards, a stream of *count* operations, and, where there is one, a message."""

    def __init__(
        self,
        count: int,
        budget: Budget,
        rules: Rules = AGREED,
        *,
        has_message: bool = False,
        has_rows: str = "AB",
    ) -> None:
        self._count = count
        self._budget = budget
        self._rules = rules
        self._has_message = has_message
        self._has_rows = has_rows
        self._remembered: Memory[State, tuple[Works, Works]] = Memory()

    def first(self) -> State:
        with_rows = [name in self._has_rows for name in SHARD_NAMES]
        (token_a, position_a), (token_b, position_b) = [
            (1, 0) if has_row else (NO_TOKEN, NO_ROW) for has_row in with_rows
        ]
        home = Version("active", has_old=True, row_token=token_a, position=position_a)
        return State(
            shards=(home, Version("none", row_token=token_b, position=position_b)),
            replicas=(None, None),
            mover=None,
            reader=Reader(),
            checkpoint=0,
            message="queued" if self._has_message else "none",
            left=astuple(self._budget),
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Return what the reader and the mover do, the end of fences and of lags, and the message."""
        reads, moves = self._works(replace(state, checkpoint=0, left=(), message="none"))
        others = (state.checkpoint, state.left, state.message)
        for label, after in reads:
            yield label, _with_others(after, *others)
        if state.reader.next > state.checkpoint:
            yield f"checkpoint {state.reader.next}", replace(state, checkpoint=state.reader.next)
        if state.mover is None and state.left[Left.MOVERS]:
            yield "start a mover", replace(_spend(state, Left.MOVERS), mover=Mover())
        for label, after in moves:
            yield label, _with_others(after, *others)
        yield from self._take_message(state)

    def _works(self, state: State) -> tuple[Works, Works]:
        works = self._remembered.get(state)
        if works is None:
            reads = [one for shard in (A, B) for one in (*self._read(state, shard), *self._end_of_lag(state, shard))]
            works = self._remembered[state] = (tuple(reads), tuple(self._moves(state)))
        return works

    def _moves(self, state: State) -> Iterator[tuple[str, State]]:
        if state.mover is not None:
            yield from self._move(state, state.mover)
        source, target = state.shards
        is_stuck = source.state == "moved" and target.state != "active" and not self._is_ready(state)
        if state.mover is None and is_stuck and not self._rules.never_copies_again:
            yield "run the move again", replace(state, mover=Mover())
        if source.state == "fenced":
            ended = replace(source, state="active", token=source.token + 1)
            yield "the fence expires", _put(state, A, ended)
        if self._may_activate(state):
            yield "a worker activates", self._activated(state)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        """Return movers that start and die, crashes of the reader, and replicas that get nothing for a while."""
        if state.left[Left.MOVERS] and state.mover is not None:  # one without a successor may just take its time
            yield "the mover dies, start another one", replace(_spend(state, Left.MOVERS), mover=Mover())
        if state.left[Left.CRASHES]:
            yield "crash", replace(_spend(state, Left.CRASHES), reader=Reader(state.checkpoint))
        for shard, kind in ((A, Left.OF_SOURCE), (B, Left.OF_TARGET)):
            if state.left[kind] and state.replicas[shard] is None:
                lagging = put_at(state.replicas, shard, state.shards[shard])
                label = f"the replica of {SHARD_NAMES[shard]} gets no more"
                yield label, replace(_spend(state, kind), replicas=lagging)

    def broken(self, state: State) -> str:
        """Return the promise that was broken: one home, old rows, order, and rows that claim what is applied."""
        if state.promise:
            return state.promise
        active = [one for one in state.shards if one.state == "active"]
        if len(active) > 1:
            return "homes: both shards have an active row"
        for one in active:
            if not one.has_old:
                return "lost: the old rows"
            if state.message == "deleted" and not one.has_message:
                return "lost: the message"
            if any(not one.log >> operation & 1 for operation in range(max(0, one.position))):
                return f"claims: everything before {one.position}, and the log is {one.log:b}"
        return ""

    def unsettled(self, state: State) -> str:
        home = next((one for one in state.shards if one.state == "active"), None)
        if home is None:
            return f"unsettled: no home, {state.shards}"
        if home.log != (1 << self._count) - 1:
            return f"lost: the log is {home.log:b}"
        return "unsettled: the message" if state.message == "queued" else ""

    # The reader, the message

    def _read(self, state: State, shard: int) -> Iterator[tuple[str, State]]:
        version, reader, name = state.shards[shard], state.reader, SHARD_NAMES[shard]
        known = reader.tokens[shard]
        if shard == B and reader.following is not None:
            yield "follow the move", self._followed(state, reader.following)
            return
        if known in {NEW, TO_ADOPT}:
            yield f"read the row of {name}", self._adopted(state, shard)
            return
        if version.state == "active" and reader.next < self._count:
            yield f"apply {reader.next} on {name}", self._written(state, shard, reader.next)
        elif version.position != reader.next:
            yield f"write the row of {name}", self._written(state, shard, None)

    def _adopted(self, state: State, shard: int) -> State:
        version, reader = state.shards[shard], state.reader
        resident_states = {"active", "fenced"} | ({"ready"} if self._rules.counts_ready_as_resident else set())
        position = min(reader.next, max(0, version.position)) if version.state in resident_states else reader.next
        adopted = replace(
            reader,
            next=position,
            tokens=put_at(reader.tokens, shard, version.row_token),
            arrivals=put_at(reader.arrivals, shard, 0 if version.row_token else version.arrivals),
        )
        rules = self._rules
        if shard == A and rules.follows_adopted_token:
            adopted = replace(adopted, written=(version.row_token,))
        elif not (rules.keeps_written_if_source_lost if shard == A else rules.keeps_written_if_target_lost):
            adopted = replace(adopted, written=())
        return _renamed(replace(state, reader=adopted))

    def _followed(self, state: State, merge: Merge) -> State:
        rules, reader, source = self._rules, state.reader, state.shards[A]
        has_all = (source.row_token == reader.tokens[A] or rules.follows_without_source) and (
            merge.carried in reader.written or rules.follows_without_carried
        )
        tokens = put_at(reader.tokens, B, merge.token if has_all else TO_ADOPT)
        return _renamed(replace(state, reader=replace(reader, tokens=tokens, following=None)))

    def _written(self, state: State, shard: int, operation: int | None) -> State:
        version, reader = state.shards[shard], state.reader
        is_known = version.row_token == reader.tokens[shard]
        if is_known and version.row_token == NO_TOKEN and not self._rules.makes_row_beside_move:
            is_known = version.arrivals == reader.arrivals[shard]
        if not is_known and self._may_follow(reader, shard, version):
            return replace(state, reader=replace(reader, following=version.merge))
        if not is_known:
            refused = replace(reader, tokens=put_at(reader.tokens, shard, TO_ADOPT))
            return _renamed(replace(state, reader=refused))
        promise, log = "", version.log
        if operation is not None and not log >> operation & 1:
            if log != (1 << operation) - 1:
                promise = f"order: {operation} on {SHARD_NAMES[shard]}, and the log is {log:b}"
            log |= 1 << operation
        version = replace(version, log=log, row_token=TO_COME, position=reader.next)
        reader = replace(
            reader,
            next=reader.next + (operation is not None),
            tokens=put_at(reader.tokens, shard, TO_COME),
            written=(*reader.written, TO_COME) if shard == A else reader.written,
        )
        return _renamed(replace(_put(state, shard, version), reader=reader, promise=promise))

    def _may_follow(self, reader: Reader, shard: int, version: Version) -> bool:
        merge = version.merge
        if self._rules.never_follows or shard == A or merge is None or merge.token != version.row_token:
            return False
        return merge.former == reader.tokens[B] or self._rules.follows_from_any_token

    def _take_message(self, state: State) -> Iterator[tuple[str, State]]:
        if state.message != "queued":
            return
        for shard, version in enumerate(state.shards):
            if version.state != "active":
                continue
            if not version.has_message:
                applied = _put(state, shard, replace(version, has_message=True))
                yield f"apply the message on {SHARD_NAMES[shard]}", applied
                continue
            replica = state.replicas[shard]
            if replica is None or replica.has_message or self._rules.deletes_messages_early:
                yield "delete the message", replace(state, message="deleted")

    def _end_of_lag(self, state: State, shard: int) -> Iterator[tuple[str, State]]:
        replica, name = state.replicas[shard], SHARD_NAMES[shard]
        if replica is None:
            return
        caught_up = replace(state, replicas=put_at(state.replicas, shard, None))
        yield f"the replica of {name} has everything", _renamed(caught_up)
        if replica != state.shards[shard]:
            yield f"failover of {name}", _renamed(_put(caught_up, shard, replica))

    # The mover

    def _move(self, state: State, mover: Mover) -> Iterator[tuple[str, State]]:
        if mover.phase == "activate":
            if self._may_activate(state):
                yield "activate", replace(self._activated(state), mover=None)
            elif not self._is_ready(state) and not self._rules.never_copies_again:
                yield "activate: the target has lost its rows", replace(state, mover=Mover())
        elif mover.phase != "commit" or self._is_safe_to_commit(state, mover):
            following = {
                "take": self._take,
                "prepare": self._prepare,
                "copy": self._copy,
                "fence": self._fence,
                "last delta": self._finish_copy,
                "commit": self._commit,
            }[mover.phase](state, mover)
            if following is None:
                yield f"{mover.phase}: refused", replace(state, mover=None)
            else:
                yield mover.phase, following

    def _prepare(self, state: State, mover: Mover) -> State | None:
        target = state.shards[B]
        if target.state not in {"none", "incoming", "ready"} or target.token >= mover.token:
            return None
        empty = Version(
            "incoming",
            mover.token,
            row_token=target.row_token,
            position=target.position,
            arrivals=self._arrived(target),
            merge=target.merge,
        )
        return replace(_put(state, B, empty), mover=replace(mover, phase="copy"))

    def _copy(self, state: State, mover: Mover) -> State | None:
        source, target = state.shards
        if (target.state, target.token) != ("incoming", mover.token):
            return None
        copy = replace(target, has_old=source.has_old, log=source.log, has_message=source.has_message)
        phase: Phase = "last delta" if mover.is_committed else "fence"
        copied = _put(state, B, replace(copy, copied_log=source.log))
        return replace(copied, mover=replace(mover, phase=phase))

    def _fence(self, state: State, mover: Mover) -> State | None:
        source = state.shards[A]
        if (source.state, source.token) != ("active", mover.token):
            return None
        following = replace(mover, phase="last delta", carried=source.position, carried_token=source.row_token)
        return replace(_put(state, A, replace(source, state="fenced")), mover=following)

    def _take(self, state: State, _: Mover) -> State | None:
        source, target = state.shards
        token = max(source.token, target.token) + 1
        mover = Mover("prepare", token)
        if source.state == "moved":
            if target.state == "active" or (self._rules.never_copies_again and not self._is_ready(state)):
                return None
            if self._is_ready(state):
                return replace(state, mover=Mover("activate", source.token))
            # The target has lost the copy. The source's rows are exact as of its fence.
            mover = replace(mover, is_committed=True, carried=source.carried, carried_token=source.carried_token)
            return replace(_put(state, A, replace(source, token=token)), mover=mover)
        if source.state not in {"active", "fenced"}:
            return None
        return replace(_put(state, A, replace(source, state="active", token=token)), mover=mover)

    def _finish_copy(self, state: State, mover: Mover) -> State | None:
        source, target = state.shards
        if (target.state, target.token) != ("incoming", mover.token):
            return None
        if target.copied_log is None and not self._rules.trusts_own_progress:
            return None
        # The delta is of the log alone: rows that were not copied are not in it.
        log = target.log | (source.log if target.copied_log is None else source.log & ~target.copied_log)
        ready = replace(
            target,
            state="ready",
            log=log,
            has_message=target.has_message or source.has_message,
            copied_log=None,
            carried=mover.carried,
            carried_token=mover.carried_token,
        )
        if self._rules.merges_before_commit:
            ready = self._merged(ready)
        phase: Phase = "activate" if mover.is_committed else "commit"
        return _renamed(replace(_put(state, B, ready), mover=replace(mover, phase=phase)))

    def _is_safe_to_commit(self, state: State, mover: Mover) -> bool:
        replica, mark = state.replicas[B], ("ready", mover.token)
        has_lost_rows = (state.shards[B].state, state.shards[B].token) != mark
        is_safe = replica is None or (replica.state, replica.token) == mark
        return is_safe or has_lost_rows or self._rules.skips_target_wait

    def _commit(self, state: State, mover: Mover) -> State | None:
        source, target = state.shards
        is_ready = (target.state, target.token) == ("ready", mover.token)
        if not is_ready or (source.state, source.token) != ("fenced", mover.token):
            return None
        moved = replace(source, state="moved", carried=mover.carried, carried_token=mover.carried_token)
        return replace(_put(state, A, moved), mover=replace(mover, phase="activate"))

    def _is_ready(self, state: State) -> bool:
        source, target = state.shards
        if self._rules.activates_any_incoming and target.state == "incoming":
            return True
        return target.state == "ready" and (target.token == source.token or self._rules.ready_without_token)

    def _may_activate(self, state: State) -> bool:
        source, replica = state.shards[A], state.replicas[A]
        is_safe = replica is None or replica.state == "moved" or self._rules.skips_source_wait
        return source.state == "moved" and is_safe and self._is_ready(state)

    def _activated(self, state: State) -> State:
        target = state.shards[B]
        target = replace(target, state="active", arrivals=self._arrived(target), copied_log=None)
        if not self._rules.merges_before_commit:
            target = self._merged(target)
        return _renamed(_put(state, B, replace(target, carried=NO_ROW, carried_token=NO_TOKEN)))

    def _arrived(self, target: Version) -> int:
        return target.arrivals if self._has_rows == SHARD_NAMES else target.arrivals + 1

    def _merged(self, target: Version) -> Version:
        rules = self._rules
        if rules.carries_no_position:
            return target
        if target.carried == NO_ROW and rules.keeps_row_if_source_has_none:
            return target
        if NO_ROW in {target.carried, target.position}:
            return replace(target, row_token=NO_TOKEN, position=NO_ROW)
        merge = Merge(TO_COME, target.row_token, target.carried_token)
        return replace(target, row_token=TO_COME, position=min(target.carried, target.position), merge=merge)


def _renamed(state: State) -> State:
    mover = state.mover
    carried_token = None if mover is None else mover.carried_token
    shards, replicas, reader, carried_token = _named(state.shards, state.replicas, state.reader, carried_token)
    if mover is not None and carried_token is not None:
        mover = replace(mover, carried_token=carried_token)
    return replace(state, shards=shards, replicas=replicas, mover=mover, reader=reader)


@lru_cache(maxsize=NAMED_MAX)  # most states differ from earlier ones in other things than these
def _named(
    shards: tuple[Version, ...], replicas: tuple[Version | None, ...], reader: Reader, carried_token: int | None
) -> tuple[tuple[Version, ...], tuple[Version | None, ...], Reader, int | None]:
    versions = [[shards[shard], *([] if (one := replicas[shard]) is None else [one])] for shard in (A, B)]
    merges = [one.merge for one in versions[B] if one.merge is not None and one.merge.token == one.row_token]
    merges += [] if reader.following is None else [reader.following]
    carried = [one.carried_token for both in versions for one in both] + [one.carried for one in merges]
    carried += [] if carried_token is None else [carried_token]
    names_a = names_of([*(one.row_token for one in versions[A]), *(token for token in carried if token)])
    # Carried tokens are of rows that are there: none of them stands for a missing row.
    names_a[NO_TOKEN] = NO_TOKEN
    names_b = names_of([*(one.row_token for one in versions[B]), *(t for m in merges for t in (m.former, m.token))])
    lagging_a, lagging_b = replicas
    return (
        (_with_names(shards[A], names_a, names_a), _with_names(shards[B], names_b, names_a)),
        (
            None if lagging_a is None else _with_names(lagging_a, names_a, names_a),
            None if lagging_b is None else _with_names(lagging_b, names_b, names_a),
        ),
        replace(
            reader,
            tokens=tuple(
                names.get(token, OUTDATED) if token > OUTDATED else token
                for token, names in zip(reader.tokens, (names_a, names_b), strict=True)
            ),
            written=tuple(sorted(names_a[token] for token in reader.written if token in names_a)),
            following=None if reader.following is None else _merge_with_names(reader.following, names_b, names_a),
        ),
        None if carried_token is None else names_a[carried_token],
    )


def _with_names(version: Version, names: dict[int, int], names_a: dict[int, int]) -> Version:
    merge = version.merge
    return replace(
        version,
        row_token=names[version.row_token],
        carried_token=names_a[version.carried_token],
        merge=None if merge is None or merge.token != version.row_token else _merge_with_names(merge, names, names_a),
    )


def _merge_with_names(merge: Merge, names: dict[int, int], names_a: dict[int, int]) -> Merge:
    return Merge(names[merge.token], names[merge.former], names_a[merge.carried])


def _with_others(state: State, checkpoint: int, left: tuple[int, ...], message: MessageState) -> State:
    return replace(state, checkpoint=checkpoint, left=left, message=message)


def _put(state: State, shard: int, version: Version) -> State:
    return replace(state, shards=put_at(state.shards, shard, version))


def _spend(state: State, kind: Left) -> State:
    return replace(state, left=one_less(state.left, kind))
