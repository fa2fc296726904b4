"""A Postgres shard that is replaced by a replica without its last commits, and how readers find out and backfill it.

The shard, A, has a row for the stream shard: what it claims to have applied, and a token that is new with every write.
A reader's transaction counts only while the row has a token that the reader knows. Otherwise the reader *adopts*: it
takes the row's token and reads again from where the row says. Another shard, where there is one, loses nothing. A
commit whose acknowledgement is lost happens at any later time, or never.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.failover_readers import A, PlainReaders, Readers, WholeReaders
from model.failover_rows import NEW, NO_ROW, NO_TOKEN, OUTDATED, TO_ADOPT, TO_COME, Row, names_of, names_of_rows
from model.reader_model import Scene
from model.search import Memory, StatePart, one_less
from msgspec.structs import replace


@dataclass(frozen=True, slots=True)
class Rules:
    """How readers go about it; each switch but the first two is a deviation from the agreed ways."""

    names_held: bool = False  # in the row, which claims more of the others: as right
    claims_early: bool = False  # when the batch is sent, not when it is committed: as right
    never_backfills: bool = False
    writes_blindly: bool = False  # only the prober compares
    probes_no_idle_shard: bool = False
    trusts_first_contact: bool = False  # takes the token and goes on at the checkpoint
    trusts_missing_row: bool = False  # likewise where there is no row
    backfills_from_log: bool = False  # from behind the last operation in it
    backfills_seen_only: bool = False  # tenants that the reader has come across since it started
    rewinds_if_below_pending: bool = False  # if the row is below the lowest that the reader owes there
    claims_by_route: bool = False  # leaves out tenants that have no shard now
    claims_own_batch: bool = False  # as if all of it were applied
    counts_tokens: bool = False  # one more than the last
    keeps_tokens: bool = False  # of unknown outcomes, though a later batch is known to be committed
    resends_claim: bool = False  # of a batch that was rolled back, after adopting
    mixes_claims: bool = False  # who is held, as of an earlier look, with how far the others are now
    names_seen_only: bool = False  # in the row


AGREED = Rules()


@dataclass(frozen=True, slots=True)
class Budget:
    troubles: int = 0
    crashes: int = 1
    takes: int = 0
    lost_acks: int = 0
    failovers: int = 1


class Version(StatePart, frozen=True):
    applied: int  # bits
    row: Row


class Batch(StatePart, frozen=True):
    operation: int | None
    row: Row
    tokens: tuple[int, ...]  # of which the row is to have one

    def __str__(self) -> str:
        return "touch" if self.operation is None else f"commit {self.operation}"


class Worker(StatePart, frozen=True):
    reader: Any
    token: int = NEW
    unknown: tuple[int, ...] = ()  # tokens of its transactions of which it did not learn the outcome
    claim: Row | None = None  # of the batch that is sent
    started_at: int = 0


class State(StatePart, frozen=True):
    shard: Version
    replica: Version | None  # gets nothing any more; None: it has everything
    elsewhere: int  # bits: applied on the other shard
    checkpoint: int
    owner: Worker
    zombie: Worker | None
    adrift: tuple[Batch, ...]
    is_troubled: bool
    left: tuple[int, ...]  # as in Budget
    promise: str  # broken on the way here


Role = Literal["owner", "zombie"]
TROUBLES, CRASHES, TAKES, LOST_ACKS, FAILOVERS = range(5)


class FailoverModel:
    """One stream shard: everything has to be applied in the end, also what the Postgres shard has lost.

    Trouble with a tenant is found in the transaction, which then writes the row only; with *is_found_before*, before
    it.
    """

    def __init__(
        self,
        scene: Scene,
        budget: Budget,
        rules: Rules = AGREED,
        *,
        is_plain: bool = False,
        is_found_before: bool = False,
        checks_claims: bool = True,
    ) -> None:
        self._scene = scene
        self._budget = budget
        self._rules = rules
        self._is_found_before = is_found_before
        self._checks_claims = checks_claims
        self._end = len(scene.tenants)
        self._works: Memory[tuple[State, Role], tuple[tuple[str, State], ...]] = Memory()
        self._readers: Readers = PlainReaders(scene) if is_plain else WholeReaders(scene)
        self._all = range(len(scene.shards))
        self._its = tuple(tenant for tenant in self._all if scene.shards[tenant] == A)
        self._may_be_down = scene.is_shard_trouble and not scene.troubled.isdisjoint(self._its)

    def first(self) -> State:
        budget = self._budget
        return State(
            shard=Version(0, NO_ROW),
            replica=None,
            elsewhere=0,
            checkpoint=0,
            owner=self._start(0),
            zombie=None,
            adrift=(),
            is_troubled=False,
            left=(budget.troubles, budget.crashes, budget.takes, budget.lost_acks, budget.failovers),
            promise="",
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._work(state, "owner")
        if (pending := self._readers.pending(state.owner.reader, self._all)) > state.checkpoint:
            yield f"checkpoint {pending}", replace(state, checkpoint=pending)
        if state.is_troubled:
            yield "trouble ends", replace(state, is_troubled=False)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        """Return what the zombie does, commits that come late, trouble, and a failover in its two steps."""
        for label, following in self._work(state, "zombie"):
            yield f"zombie: {label}", following
        for batch in state.adrift:
            if state.shard.row.token in batch.tokens:
                left_over = tuple(other for other in state.adrift if other != batch)
                yield f"late {batch}", self._committed(replace(state, adrift=left_over), batch)
        if state.left[TROUBLES] and not state.is_troubled:
            yield "trouble begins", replace(_spend(state, TROUBLES), is_troubled=True)
        if state.left[CRASHES]:
            yield "crash", self._named(replace(_spend(state, CRASHES), owner=self._start(state.checkpoint)))
        if state.left[TAKES]:
            taken = replace(_spend(state, TAKES), owner=self._start(state.checkpoint), zombie=state.owner)
            yield "lease taken", self._named(taken)
        if state.left[LOST_ACKS] and state.owner.token > TO_ADOPT:
            yield from self._lost_acknowledgements(state)
        if state.replica is not None and state.replica != state.shard:
            yield "failover", self._named(replace(state, shard=state.replica, replica=None))
        elif state.left[FAILOVERS] and state.replica is None:
            yield "replica gets no more", replace(_spend(state, FAILOVERS), replica=state.shard)

    def broken(self, state: State) -> str:
        if state.promise or not self._checks_claims:
            return state.promise
        for version in {state.shard, state.replica or state.shard}:
            for operation, tenant in enumerate(self._scene.tenants):
                is_claimed = tenant in self._its and operation < version.row.claimed(tenant)
                if is_claimed and not version.applied >> operation & 1:
                    return f"claims: {operation} is not applied, {version.row}"
        return ""

    def unsettled(self, state: State) -> str:
        if missing := ((1 << self._end) - 1) & ~(state.shard.applied | state.elsewhere):
            return f"lost: nobody will apply {(missing & -missing).bit_length() - 1}"
        return "" if state.checkpoint == self._end else f"unsettled: {state}"

    def _start(self, checkpoint: int) -> Worker:
        notes_start = self._rules.backfills_seen_only or self._rules.names_seen_only
        return Worker(self._readers.start(checkpoint), started_at=checkpoint if notes_start else 0)

    def _work(self, state: State, role: Role) -> Iterator[tuple[str, State]]:
        worker = state.owner if role == "owner" else state.zombie
        if worker is None:
            return
        alike = replace(state, checkpoint=0, left=())
        works = self._works.get((alike, role))
        if works is None:
            works = self._works[alike, role] = tuple(self._works_of(alike, role, worker))
        for label, after in works:
            yield label, replace(after, checkpoint=state.checkpoint, left=state.left)

    def _works_of(self, state: State, role: Role, worker: Worker) -> Iterator[tuple[str, State]]:
        barred = self._its if worker.token <= TO_ADOPT else ()
        for label, reader, commits in self._readers.moves(worker.reader, is_troubled=state.is_troubled, barred=barred):
            following = _with(state, role, replace(worker, reader=reader))
            if commits is not None:
                applied, promise = self._scene.take_effect(state.elsewhere, commits)
                following = replace(following, elsewhere=applied, promise=promise)
            yield label, following
        ready = self._readers.ready(worker.reader)
        if worker.token <= TO_ADOPT and not (state.is_troubled and self._may_be_down):
            if ready or not self._rules.probes_no_idle_shard:
                yield self._adopt(state, role, worker)
            return
        if self._rules.mixes_claims:
            yield "look who is held", _with(state, role, replace(worker, claim=self._claim(state, worker, None)))
        for operation in ready:
            if self._is_refused(state, operation) and (self._is_found_before or self._may_be_down):
                kept = worker.claim if self._rules.mixes_claims else None
                refused = replace(worker, reader=self._readers.refused(worker.reader, operation), claim=kept)
                yield f"{operation} refused", _with(state, role, refused)
            else:
                yield self._send(state, role, worker, operation)
        is_idle = not ready or not isinstance(self._readers, WholeReaders)
        if is_idle and not self._rules.probes_no_idle_shard and not (state.is_troubled and self._may_be_down):
            yield self._send(state, role, worker, None)

    def _send(self, state: State, role: Role, worker: Worker, operation: int | None) -> tuple[str, State]:
        if operation is not None and self._rules.claims_early and worker.claim is None:
            claim = self._claim(state, worker, operation)
            return f"send {operation}", _with(state, role, replace(worker, claim=claim))
        batch, label, reader = self._batch(state, worker, operation), "", worker.reader
        if operation is not None and self._is_refused(state, operation):
            reader, label = self._readers.refused(reader, operation), f", which refuses {operation}"
        elif operation is not None:
            reader = self._readers.settled(reader, operation)
        if state.shard.row.token not in batch.tokens and not (self._rules.writes_blindly and operation is not None):
            kept = worker.claim if self._rules.resends_claim else None
            found = replace(worker, token=TO_ADOPT, unknown=(), claim=kept)
            return f"{batch}: another token", self._named(_with(state, role, found))
        unknown = worker.unknown if self._rules.keeps_tokens else ()
        kept = worker.claim if self._rules.mixes_claims else None
        settled = replace(worker, reader=reader, token=batch.row.token, unknown=unknown, claim=kept)
        return f"{batch}{label}", self._committed(_with(state, role, settled), batch)

    def _batch(self, state: State, worker: Worker, operation: int | None) -> Batch:
        tokens = (worker.token, *worker.unknown)
        claim = worker.claim or self._claim(state, worker, operation)
        if self._rules.mixes_claims and worker.claim:
            claim = replace(claim, read_to=self._claim(state, worker, operation).read_to)
        token = max(tokens) + 1 if self._rules.counts_tokens else TO_COME
        return Batch(operation, replace(claim, token=token), tokens)

    def _committed(self, state: State, batch: Batch) -> State:
        applied, promise = state.shard.applied, ""
        if batch.operation is not None and not self._is_refused(state, batch.operation):
            applied, promise = self._scene.take_effect(applied, batch.operation)
        return self._named(replace(state, shard=Version(applied, batch.row), promise=promise))

    def _lost_acknowledgements(self, state: State) -> Iterator[tuple[str, State]]:
        for operation in self._readers.ready(state.owner.reader) or (None,):
            batch = self._batch(state, state.owner, operation)
            owner = replace(state.owner, unknown=(*state.owner.unknown, batch.row.token), claim=None)
            following = replace(_spend(state, LOST_ACKS), owner=owner, adrift=(*state.adrift, batch))
            yield f"{batch}: acknowledgement lost", self._named(following)

    def _claim(self, state: State, worker: Worker, operation: int | None) -> Row:
        rules, reader, tenants = self._rules, worker.reader, {*self._all}
        if rules.claims_own_batch and operation is not None:
            reader = self._readers.settled(reader, operation)
        if rules.claims_by_route and state.is_troubled:
            tenants -= self._scene.troubled
        pending = self._readers.pending(reader, tenants)
        if not rules.names_held:
            return Row(NO_TOKEN, pending, pending)
        held = self._readers.held(reader)
        if rules.names_seen_only:
            held = tuple(tenant for tenant in held if tenant in self._seen(worker))
        return Row(NO_TOKEN, pending, self._pending_of_others(worker, held), held)

    def _pending_of_others(self, worker: Worker, held: Collection[int]) -> int:
        if self._rules.names_seen_only:
            held = {*held} | {*self._all} - self._seen(worker)
        return self._readers.pending(worker.reader, {*self._all} - {*held})

    def _seen(self, worker: Worker) -> set[int]:
        return {*self._scene.tenants[worker.started_at : worker.reader.dispatch]}

    def _adopt(self, state: State, role: Role, worker: Worker) -> tuple[str, State]:
        row, rules, starts = state.shard.row, self._rules, {}
        trusts = (rules.trusts_first_contact and worker.token == NEW) or (rules.trusts_missing_row and row == NO_ROW)
        is_above = rules.rewinds_if_below_pending and row.pending_from >= self._readers.pending(
            worker.reader, self._its
        )
        if not (rules.never_backfills or trusts or is_above):
            starts = {tenant: row.claimed(tenant) for tenant in self._its}
        if rules.backfills_from_log:
            in_log = (operation for operation in range(self._end) if state.shard.applied >> operation & 1)
            starts = dict.fromkeys(self._its, max(in_log, default=-1) + 1)
        if rules.backfills_seen_only:
            starts = {tenant: start for tenant, start in starts.items() if tenant in self._seen(worker)}
        rewound = self._readers.rewound(worker.reader, starts)
        label = "no row" if row == NO_ROW else f"{row.pending_from}, {row.read_to} but for {row.held}"
        return f"adopt {label}", self._named(_with(state, role, replace(worker, reader=rewound, token=row.token)))

    def _is_refused(self, state: State, operation: int) -> bool:
        return state.is_troubled and self._scene.tenants[operation] in self._scene.troubled

    def _named(self, state: State) -> State:
        return state if self._rules.counts_tokens else _renamed(state)


def _renamed(state: State) -> State:
    rows = [version.row.token for version in (state.shard, state.replica) if version is not None]
    if state.adrift:
        names: Mapping[int, int] = names_of(rows, [(batch.row.token, batch.tokens) for batch in state.adrift])
    else:
        names = names_of_rows(*rows)

    def version(one: Version) -> Version:
        token = names[one.row.token]
        return one if token == one.row.token else replace(one, row=replace(one.row, token=token))

    def tokens(of: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(names[token] for token in of if token in names))

    def worker(one: Worker) -> Worker:
        token = one.token if one.token <= TO_ADOPT else names.get(one.token, OUTDATED)
        if token == one.token and not one.unknown:
            return one
        return replace(one, token=token, unknown=tokens(one.unknown))

    return replace(
        state,
        shard=version(state.shard),
        replica=None if state.replica is None else version(state.replica),
        owner=worker(state.owner),
        zombie=None if state.zombie is None else worker(state.zombie),
        adrift=tuple(
            replace(batch, row=replace(batch.row, token=names[batch.row.token]), tokens=tokens(batch.tokens))
            for batch in state.adrift
            if batch.row.token in names
        ),
    )


def _with(state: State, role: Role, worker: Worker) -> State:
    return replace(state, owner=worker) if role == "owner" else replace(state, zombie=worker)


def _spend(state: State, kind: int) -> State:
    return replace(state, left=one_less(state.left, kind))
