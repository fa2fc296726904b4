"""One tenant that is put back to a backup on its shard, while the shard's reader goes on, and the shard fails over.

Every even operation of the stream is for that tenant, every odd one for another tenant of the shard. There are the
shard, a replica that may get nothing for a while, the row with the position of the stream shard and its token, one
reader, and restorers: each goes on where the one before it was killed, and an older one may still take a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import Literal, TypeAlias

from model.failover_rows import NEW, OUTDATED, TO_ADOPT, TO_COME, names_of_rows
from model.search import Memory, StatePart, one_less, put_at
from msgspec.structs import replace

NOTHING = -1  # in place of bits

Mode: TypeAlias = Literal["catch up", "as of backup"]
Step: TypeAlias = Literal["none", "exporting", "replacing", "copied", "done"]
Run: TypeAlias = tuple[int, int]  # the number of the restorer, and how often it has begun
Phase: TypeAlias = Literal["fence", "export", "begin", "delete", "copy", "release", "confirm", "over"]


@dataclass(frozen=True, slots=True)
class Rules:
    """How restorers and readers go about it; each switch is a deviation from the agreed way."""

    keeps_live_log: bool = False  # to catch up
    replaces_log_of_shard: bool = False  # of the other tenants as well
    lowers_nothing: bool = False  # the position, to catch up
    keeps_token: bool = False  # of the row with the lower position
    lowers_apart: bool = False  # the position, in a transaction after the release
    takes_log_of_backup: bool = False  # as of the backup
    empties_log: bool = False
    leaves_out_log_of_backup: bool = False
    has_no_fence: bool = False
    fences_beside_batches: bool = False
    ends_every_fence: bool = False  # after its deadline, whatever the restorer has done
    writes_without_token: bool = False
    counts_runs: bool = False  # by the token alone, which a shard that has lost commits gives twice
    trusts_own_progress: bool = False  # of the copy, and not what the shard has of it
    exports_again: bool = False  # when an earlier restorer has begun to delete
    reports_early: bool = False  # before the replica has the release


AGREED = Rules()


@dataclass(frozen=True, slots=True)
class Budget:
    """How often each kind of trouble comes, and how often a restorer is started."""

    restorers: int = 1
    failovers: int = 0
    crashes: int = 0  # of the reader
    expiries: int = 0  # of the fence


class Left(IntEnum):
    """The places in `State.left`, in the order of the fields of Budget."""

    RESTORERS = 0
    FAILOVERS = 1
    CRASHES = 2
    EXPIRIES = 3


class Version(StatePart, frozen=True):
    is_fenced: bool = False
    token: int = 0  # of the tenant's row
    run: Run = (0, 0)  # in the journal
    step: Step = "none"  # in the journal
    effects: int = 0  # bits: the operations whose effect the resources show
    log: int = 0  # bits: the operations in the log
    is_whole: bool = True  # whether the tenant has the resources that no operation of the stream has made
    row_token: int = 1
    position: int = 0
    undone: int = 0  # bits, since the last restore
    before: int = 0  # bits: the tenant's effects as of the fence
    exported: int = 0  # bits: its effects in the file that the journal names


class Restorer(StatePart, frozen=True):
    run: Run  # at random; another one at each new beginning
    phase: Phase = "fence"
    token: int = 0
    exported: int = 0


class Reader(StatePart, frozen=True):
    """The reader of the stream shard; *in_flight* is an operation that its transaction is about to apply."""

    next: int = 0
    token: int = NEW
    in_flight: int = NOTHING


class State(StatePart, frozen=True):
    shard: Version
    replica: Version | None  # one that gets nothing any more; None: it has everything
    backup: Version | None
    restorers: tuple[Restorer, ...]
    reader: Reader
    checkpoint: int
    undone: int  # bits, of a restore that was reported
    is_reported: bool
    left: tuple[int, ...]  # by Left
    promise: str = ""  # broken on the way here


Works: TypeAlias = tuple[tuple[str, State], ...]


class RestoreModel:
    """A stream of *count* operations, a shard, and a backup of it that is made at any time."""

    def __init__(self, count: int, mode: Mode, budget: Budget, rules: Rules = AGREED) -> None:
        self._count = count
        self._mode = mode
        self._budget = budget
        self._rules = rules
        self._all = (1 << count) - 1
        self._works: Memory[State, tuple[Works, Works]] = Memory()
        self._own = sum(1 << operation for operation in range(0, count, 2))

    def first(self) -> State:
        left = astuple(self._budget)
        return State(Version(), None, None, (), Reader(), 0, 0, is_reported=False, left=left)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        alike = replace(state, checkpoint=0, left=())  # what these do depends on neither
        works = self._works.get(alike)
        if works is None:
            works = self._works[alike] = (
                (*self._read(alike), *self._end_of_lag(alike)),
                tuple(one for place, it in enumerate(alike.restorers) for one in self._restore(alike, place, it)),
            )
        for label, after in works[0]:
            yield label, replace(after, checkpoint=state.checkpoint, left=state.left)
        if state.reader.next > state.checkpoint:
            yield f"checkpoint {state.reader.next}", replace(state, checkpoint=state.reader.next)
        if state.backup is None:
            yield "a backup", replace(state, backup=state.shard)
        elif state.left[Left.RESTORERS] and not state.restorers:
            yield "start a restorer", replace(_spend(state, Left.RESTORERS), restorers=(Restorer((0, 0)),))
        for label, after in works[1]:
            yield label, replace(after, checkpoint=state.checkpoint, left=state.left)
        if state.shard.is_fenced and all(one.phase == "over" for one in state.restorers):
            if state.shard.step == "exporting":
                yield "a worker ends the fence", self._expired(state)
            else:
                last = len(state.restorers) - 1
                yield "run the command again", _put(state, last, _again(state.restorers[last]))

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        shard = state.shard
        may_end = shard.is_fenced and (shard.step == "exporting" or self._rules.ends_every_fence)
        if may_end and state.left[Left.EXPIRIES]:
            yield "a worker ends the fence", self._expired(_spend(state, Left.EXPIRIES))
        if state.left[Left.RESTORERS] and state.restorers:
            more = _spend(state, Left.RESTORERS)
            another = Restorer((len(state.restorers), 0))
            yield "start another restorer", replace(more, restorers=(*state.restorers, another))
            killed = put_at(state.restorers, len(state.restorers) - 1, _again(state.restorers[-1]))
            yield "the restorer is killed, start another one", replace(more, restorers=killed)
        if state.left[Left.CRASHES]:
            yield "crash", replace(_spend(state, Left.CRASHES), reader=Reader(state.checkpoint))
        if state.left[Left.FAILOVERS] and state.replica is None:
            yield "the replica gets no more", replace(_spend(state, Left.FAILOVERS), replica=state.shard)

    def broken(self, state: State) -> str:
        shard = state.shard
        if state.promise:
            return state.promise
        if not shard.is_fenced and not shard.is_whole:
            return "lost: the old resources"
        if state.undone & shard.effects:
            return f"came back: {state.undone & shard.effects:b}"
        if state.is_reported and shard.step == "done" and shard.exported != shard.before:
            return f"export: {shard.before:b} were there, and the file has {shard.exported:b}"
        return ""

    def unsettled(self, state: State) -> str:
        shard = state.shard
        if not state.is_reported:
            return f"unsettled: no restore has ended, {state.restorers}"
        if shard.is_fenced:
            return "unsettled: the tenant is fenced"
        if shard.effects != self._all & ~state.undone:
            return f"lost: the effects are {shard.effects:b}, undone were {state.undone:b}"
        return ""

    # The reader

    def _read(self, state: State) -> Iterator[tuple[str, State]]:
        shard, reader = state.shard, state.reader
        if reader.in_flight != NOTHING:
            committed = replace(state, reader=replace(reader, in_flight=NOTHING))
            yield f"commit {reader.in_flight}", self._written(committed, reader.in_flight)
        elif reader.token in {NEW, TO_ADOPT}:
            adopted = Reader(min(reader.next, shard.position), shard.row_token)
            yield "read the row", _renamed(replace(state, reader=adopted))
        elif reader.next < self._count and not (self._is_own(reader.next) and shard.is_fenced):
            if self._rules.fences_beside_batches:
                begun = replace(reader, in_flight=reader.next)
                yield f"begin {reader.next}", replace(state, reader=begun)
            else:
                yield f"apply {reader.next}", self._written(state, reader.next)
        elif shard.position != reader.next:
            yield "write the row", self._written(state, None)

    def _written(self, state: State, operation: int | None) -> State:
        shard, reader = state.shard, state.reader
        if shard.row_token != reader.token:
            return _renamed(replace(state, reader=replace(reader, token=TO_ADOPT)))
        promise, effects, log = "", shard.effects, shard.log
        if operation is not None and not log >> operation & 1:
            tenant = self._own if self._is_own(operation) else self._all & ~self._own
            before = tenant & ((1 << operation) - 1)
            if effects >> operation & 1:
                promise = f"twice: {operation}"
            elif log & tenant != before:
                promise = f"order: {operation}, and the log is {log:b}"
            effects, log = effects | 1 << operation, log | 1 << operation
        shard = replace(shard, effects=effects, log=log, row_token=TO_COME, position=reader.next)
        reader = Reader(reader.next + (operation is not None), TO_COME)
        return _renamed(replace(state, shard=shard, reader=reader, promise=promise))

    def _end_of_lag(self, state: State) -> Iterator[tuple[str, State]]:
        if state.replica is None:
            return
        yield "the replica has everything", _renamed(replace(state, replica=None))
        if state.replica != state.shard:
            yield "failover", _renamed(replace(state, shard=state.replica, replica=None))

    def _is_own(self, operation: int) -> bool:
        return bool(self._own >> operation & 1)

    # The restorers

    def _restore(self, state: State, place: int, restorer: Restorer) -> Iterator[tuple[str, State]]:
        if restorer.phase == "over":
            return
        if restorer.phase == "confirm":
            yield from self._confirm(state, place, restorer)
            return
        following = {
            "fence": self._fence,
            "export": self._export,
            "begin": self._begin,
            "delete": self._delete,
            "copy": self._copy,
            "release": self._release,
        }[restorer.phase](state, restorer)
        if following is not None:
            one, after = following
            yield f"{restorer.phase} ({place})", _put(after, place, one)
        else:
            # The last one begins again, as the person does; an earlier one has been overtaken.
            is_last = place == len(state.restorers) - 1
            one = _again(restorer) if is_last else replace(restorer, phase="over")
            yield f"{restorer.phase} ({place}): refused", _put(state, place, one)

    def _expired(self, state: State) -> State:
        ended = replace(state.shard, is_fenced=False, token=state.shard.token + 1, step="none")
        return replace(state, shard=ended)

    def _fence(self, state: State, restorer: Restorer) -> tuple[Restorer, State] | None:
        shard = state.shard
        token = shard.token + 1
        if shard.step in {"replacing", "copied"}:
            phase: Phase = "export" if self._rules.exports_again else "delete"
            shard = replace(shard, token=token, run=restorer.run, step="replacing")
        else:
            phase = "export"
            before = shard.effects & self._own
            is_fenced = not self._rules.has_no_fence
            shard = replace(shard, is_fenced=is_fenced, token=token, run=restorer.run, step="exporting", before=before)
        return replace(restorer, phase=phase, token=token), replace(state, shard=shard)

    def _export(self, state: State, restorer: Restorer) -> tuple[Restorer, State] | None:
        if not self._is_current(state, restorer):
            return None
        exported, is_first = state.shard.effects & self._own, state.shard.step == "exporting"
        if is_first:
            return replace(restorer, phase="begin", exported=exported), state
        shard = replace(state.shard, exported=exported)
        return replace(restorer, phase="delete"), replace(state, shard=shard)

    def _begin(self, state: State, restorer: Restorer) -> tuple[Restorer, State] | None:
        if not self._is_current(state, restorer) or state.shard.step != "exporting":
            return None
        shard = replace(state.shard, step="replacing", exported=restorer.exported)
        return replace(restorer, phase="delete"), replace(state, shard=shard)

    def _delete(self, state: State, restorer: Restorer) -> tuple[Restorer, State] | None:
        if not self._is_current(state, restorer) or state.shard.step != "replacing":
            return None
        shard = state.shard
        emptied = replace(shard, effects=shard.effects & ~self._own, is_whole=False)
        return replace(restorer, phase="copy"), replace(state, shard=emptied)

    def _copy(self, state: State, restorer: Restorer) -> tuple[Restorer, State] | None:
        rules, shard, backup = self._rules, state.shard, state.backup
        assert backup is not None
        if not self._is_current(state, restorer) or (shard.step != "replacing" and not rules.writes_without_token):
            return None
        own = self._own
        catches_up = self._mode == "catch up"
        undone = 0 if catches_up else shard.log & own & ~backup.log
        if (catches_up and not rules.keeps_live_log) or rules.takes_log_of_backup:
            log = shard.log & ~own | backup.log & own
            log = backup.log if rules.replaces_log_of_shard else log
        elif rules.empties_log:
            log = shard.log & ~own
        elif rules.leaves_out_log_of_backup or catches_up:
            log = shard.log
        else:
            log = shard.log | backup.log & own
        effects = shard.effects & ~own | backup.effects & own
        copied = replace(shard, effects=effects, log=log, is_whole=True, step="copied", undone=undone)
        return replace(restorer, phase="release"), replace(state, shard=copied)

    def _release(self, state: State, restorer: Restorer) -> tuple[Restorer, State] | None:
        rules, shard, backup = self._rules, state.shard, state.backup
        assert backup is not None
        if not self._is_current(state, restorer) or (shard.step != "copied" and not rules.trusts_own_progress):
            return None
        shard = replace(shard, is_fenced=False, step="done")
        if self._mode == "catch up" and not rules.lowers_nothing and not rules.lowers_apart:
            shard = self._lowered(shard, backup)
        return replace(restorer, phase="confirm"), _renamed(replace(state, shard=shard))

    def _confirm(self, state: State, place: int, restorer: Restorer) -> Iterator[tuple[str, State]]:
        shard, replica = state.shard, state.replica
        if shard.step != "done" or not self._is_of(shard, restorer):
            one = _again(restorer) if place == len(state.restorers) - 1 else replace(restorer, phase="over")
            yield f"the release is lost ({place})", _put(state, place, one)
        elif (
            replica is None or (replica.step == "done" and self._is_of(replica, restorer)) or self._rules.reports_early
        ):
            if self._rules.lowers_apart and self._mode == "catch up" and state.backup is not None:
                shard = self._lowered(shard, state.backup)
            reported = replace(state, shard=shard, is_reported=True, undone=shard.undone)
            yield f"report ({place})", _renamed(_put(reported, place, replace(restorer, phase="over")))

    def _lowered(self, shard: Version, backup: Version) -> Version:
        token = shard.row_token if self._rules.keeps_token else TO_COME
        return replace(shard, position=min(shard.position, backup.position), row_token=token)

    def _is_current(self, state: State, restorer: Restorer) -> bool:
        if self._rules.writes_without_token:
            return True
        return self._is_of(state.shard, restorer) and (state.shard.is_fenced or self._rules.has_no_fence)

    def _is_of(self, version: Version, restorer: Restorer) -> bool:
        return version.token == restorer.token and (version.run == restorer.run or self._rules.counts_runs)


def _renamed(state: State) -> State:
    shard, replica, backup, reader = state.shard, state.replica, state.backup, state.reader
    if replica is None:
        names = names_of_rows(shard.row_token)
    else:
        names = names_of_rows(shard.row_token, replica.row_token)
        replica = _with_token(replica, names[replica.row_token])
    if reader.token > OUTDATED:
        token = names.get(reader.token, OUTDATED)
        reader = reader if token == reader.token else replace(reader, token=token)
    return replace(
        state,
        shard=_with_token(shard, names[shard.row_token]),
        replica=replica,
        backup=backup and _with_token(backup, 0),
        reader=reader,
    )


def _with_token(version: Version, token: int) -> Version:
    return version if version.row_token == token else replace(version, row_token=token)


def _again(restorer: Restorer) -> Restorer:
    number, beginnings = restorer.run
    return Restorer((number, beginnings + 1))


def _put(state: State, place: int, restorer: Restorer) -> State:
    return replace(state, restorers=put_at(state.restorers, place, restorer))


def _spend(state: State, kind: Left) -> State:
    return replace(state, left=one_less(state.left, kind))
