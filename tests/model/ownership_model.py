"""Exclusive ownership of tenants in one stream shard's reader, on Postgres shards that lose commits and tenants.

Every tenant has one owner among the reader's pipelines (`ownership.py`), and routes decide nothing. The reader's code
(`simplu_worker/consumers/kinesis/`) has sets of tenants that may overlap, and asks of each operation whose it is.

A batch is one operation, and a commit is atomic. A shard that fails over loses the commits that its replica did not
get. Its row then has another token or a lower position, and the reader sends all operations from there to all tenants
of the shard again: a backfill. The question to the shard which tenants it has, and the use of its answer, are two
steps. A reader whose lease was taken goes on as a zombie. No cycle of steps is without a fault, so that no two
pipelines can hand a tenant to each other for ever. Parents are stream shards that ended before; the same backfill has
their operations.

Not searched: a zombie on two shards, or with outages or moves; slots and parents in every scope; children that start
before their parents' end (`reshard_failover_model.py`); a parent's parents; the clock; aggregated records; lost
acknowledgements (`failover_model.py`); a scan of lease rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import Literal

from model.failover_rows import NEW, OUTDATED, TO_ADOPT, TO_COME, names_of_rows
from model.ownership import AGREED, NO_SHARD, Reader, Rules
from model.ownership_reader import SHARD_NAMES, TENANT_NAMES, UNBOUNDED, Bounds, Lease, OwnershipReaders, Placement
from model.reader_model import Scene
from model.search import Memory, StatePart, one_less, put_at
from msgspec.structs import replace

NEW_AFTER_MOVE = -4  # in place of the token of a reader that has yet to look, and was there before a tenant moved
NO_LEASE = Lease()
Role = Literal["owner", "zombie"]


class Trouble(IntEnum):
    OUTAGE = 0
    FAILOVER = 1
    MOVE = 2
    CRASH = 3
    TAKE = 4
    SHED = 5


@dataclass(frozen=True, slots=True)
class Budget:
    """How often each kind of trouble comes, and to which shards and tenants."""

    outages: int = 0
    failovers: int = 0
    moves: int = 0
    crashes: int = 0
    takes: int = 0
    sheds: int = 0  # tenants held for their share of the memory, by the owner of the lease


class Row(StatePart, frozen=True):
    """A shard's position of the stream shard: for the shard's tenants, everything before it is applied."""

    token: int
    position: int
    is_after_parents: bool = True  # for the shard's tenants, all operations of the parents are applied too


class Shard(StatePart, frozen=True):
    applied: int  # bits
    row: Row
    parents_position: int = 0  # of the parents' rows: everything before it is applied


class State(StatePart, frozen=True):
    """All of it: the shards and their replicas, the lease row, the readers, and the trouble still to come."""

    shards: tuple[Shard, ...]
    replicas: tuple[Shard | None, ...]  # a replica that gets nothing any more; None: it has everything
    placement: Placement
    lease: Lease
    owner: Reader
    zombie: Reader | None
    left: tuple[int, ...]  # by Trouble
    promise: str  # broken on the way here


class OwnershipModel:
    def __init__(
        self,
        operations: str,
        homes: str,
        budget: Budget,
        rules: Rules = AGREED,
        *,
        parents: str = "",
        bounds: Bounds = UNBOUNDED,
        shards: str = "AB",
        falls: str = "AB",
        fails_over: str = "AB",
        moves: str = "abc",
        continues_ahead: bool = False,
    ) -> None:
        """Make a model of tenants on two shards.

        `aba` and `B.` are three operations, of tenant a on shard B and of tenant b that is registered late, on the
        last of the *shards*. *falls* and *fails_over* are the shards with outages and failovers, *moves* the tenants
        that move. *continues_ahead*: a successor begins where its predecessor was, and not at the checkpoint.

        The *parents* have ended, and their operations come before the others: they are applied on the shards, and on
        none of the replicas, which got nothing of them. So their tenants are registered.
        """
        self._scene = Scene.of(parents + operations, shards="AAA", trouble="")
        self._begin = len(parents)
        self._rules = rules
        self._budget = budget
        self._shards = range(len(shards))
        self._falls = [SHARD_NAMES.index(name) for name in falls if name in shards]
        self._fails_over = [SHARD_NAMES.index(name) for name in fails_over if name in shards]
        self._moving = [TENANT_NAMES.index(name) for name in moves[: len(homes)]]
        self._homes = tuple(NO_SHARD if name == "." else SHARD_NAMES.index(name) for name in homes)
        self._continues_ahead = continues_ahead
        self._end = len(parents + operations)
        self._readers = OwnershipReaders(self._scene.tenants, len(homes), len(shards), rules, bounds)
        self._works: Memory[tuple[State, Role], tuple[tuple[str, State], ...]] = Memory()

    def first(self) -> State:
        count = len(self._shards)
        row = Row(1, self._begin, is_after_parents=not self._begin)
        applied = (
            sum(1 << one for one in range(self._begin) if self._homes[self._scene.tenants[one]] == shard)
            for shard in self._shards
        )
        return State(
            shards=tuple(Shard(bits, row, self._begin) for bits in applied),
            replicas=(Shard(0, row) if self._begin else None,) * count,
            placement=Placement(self._homes, (False,) * count),
            lease=(lease := Lease(self._begin, self._begin if self._continues_ahead else 0)),
            owner=self._start(lease),
            zombie=None,
            left=astuple(self._budget),
            promise="",
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._work(state, "owner")
        lease = self._readers.prospect(state.owner, state.placement).lease
        if not self._continues_ahead:
            lease = Lease(lease.checkpoint)
        # During a backfill from before the checkpoint nothing is written: a checkpoint does not go back.
        if lease.checkpoint >= state.lease.checkpoint and lease != state.lease:
            yield f"lease row: {lease}", replace(state, lease=lease)
        placement = state.placement
        for shard in self._shards:
            if placement.is_down[shard]:
                up = replace(placement, is_down=put_at(placement.is_down, shard, False))
                yield f"{SHARD_NAMES[shard]} is up", replace(state, placement=up)
        for tenant, home in enumerate(placement.homes):
            if home == NO_SHARD:
                last = self._shards[-1]
                label = f"{TENANT_NAMES[tenant]} is registered on {SHARD_NAMES[last]}"
                registered = replace(placement, homes=put_at(placement.homes, tenant, last))
                yield label, replace(state, placement=registered)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        if state.zombie is not None:
            for label, following in self._work(state, "zombie"):
                yield f"zombie: {label}", following
        if state.left[Trouble.OUTAGE]:
            yield from self._outages(state)
        for shard in self._fails_over:
            yield from self._fail_over(state, shard)
        if state.left[Trouble.MOVE]:
            yield from self._moves_of_tenants(state)
        if state.left[Trouble.SHED]:
            left = _spend(state, Trouble.SHED)
            for label, shed in self._readers.sheddings(state.owner):
                yield label, replace(state, owner=shed, left=left)
        if state.left[Trouble.CRASH]:
            started = self._start(state.lease)
            yield "crash", replace(state, owner=started, left=_spend(state, Trouble.CRASH))
        if state.left[Trouble.TAKE]:
            started = self._start(state.lease)
            left = _spend(state, Trouble.TAKE)
            yield "lease taken", replace(state, owner=started, zombie=state.owner, left=left)

    def broken(self, state: State) -> str:
        if state.promise:
            return state.promise
        for shard, versions in enumerate(zip(state.shards, state.replicas, strict=True)):
            for version in versions:
                if version is None:
                    continue
                of_parents = self._begin if version.row.is_after_parents else version.parents_position
                for operation in (*range(of_parents), *range(self._begin, version.row.position)):
                    is_here = state.placement.homes[self._scene.tenants[operation]] == shard
                    if is_here and not version.applied >> operation & 1:
                        return f"claims: {operation} is not applied, by the rows of {SHARD_NAMES[shard]}"
        return ""

    def unsettled(self, state: State) -> str:
        for operation, tenant in enumerate(self._scene.tenants):
            home = state.placement.homes[tenant]
            if home == NO_SHARD or not state.shards[home].applied >> operation & 1:
                return f"lost: nobody will apply {operation}"
        return "" if state.lease.checkpoint == self._end else f"unsettled: {state}"

    def _start(self, lease: Lease) -> Reader:
        return self._readers.start(lease if self._continues_ahead else Lease(lease.checkpoint, lease.checkpoint))

    def _work(self, state: State, role: Role) -> Iterator[tuple[str, State]]:
        alike = replace(state, lease=NO_LEASE, left=())
        works = self._works.get((alike, role))
        if works is None:
            works = self._works[alike, role] = tuple(self._works_of(alike, role))
        for label, after in works:
            yield label, replace(after, lease=state.lease, left=state.left)

    def _works_of(self, state: State, role: Role) -> Iterator[tuple[str, State]]:
        reader = state.owner if role == "owner" else state.zombie
        assert reader is not None
        prospect = self._readers.prospect(reader, state.placement)
        for label, following in prospect.moves:
            yield label, _with(state, role, following)
        for shard in self._shards:
            if not state.placement.is_down[shard]:
                row = self._row(state, shard, prospect.safe_checkpoint)
                yield from self._contact(state, role, reader, shard, row)

    def _contact(self, state: State, role: Role, reader: Reader, shard: int, own: Row) -> Iterator[tuple[str, State]]:
        name, row, token = SHARD_NAMES[shard], state.shards[shard].row, reader.tokens[shard]
        if token < OUTDATED:
            yield self._adopt(state, role, reader, shard)
            return
        if token != row.token:
            adopting = replace(reader, tokens=put_at(reader.tokens, shard, TO_ADOPT))
            yield f"{name} has another token", _with(state, role, adopting)
            return
        for operation in self._readers.heads(reader, shard):
            tenant = self._scene.tenants[operation]
            if state.placement.homes[tenant] != shard:
                back = self._readers.take_back(reader, shard, tenant)
                yield f"{name}: {TENANT_NAMES[tenant]} is not here", _with(state, role, back)
            else:
                yield self._commit(state, role, reader, shard, operation, own)
        if not reader.lanes[shard] and (own.position, own.is_after_parents) != (row.position, row.is_after_parents):
            written = replace(state.shards[shard], row=own)
            yield f"{name} stores {own.position}", self._wrote(state, role, reader, shard, written)

    def _row(self, state: State, shard: int, position: int) -> Row:
        is_done = position >= self._begin or self._rules.done_early or state.shards[shard].row.is_after_parents
        return Row(TO_COME, max(position, self._begin), is_done)

    def _adopt(self, state: State, role: Role, reader: Reader, shard: int) -> tuple[str, State]:
        found, name = state.shards[shard], SHARD_NAMES[shard]
        row, start = found.row, found.row.position
        if not row.is_after_parents and found.parents_position < self._begin and not self._rules.forgets_parents:
            start = found.parents_position
        known_to = reader.began if reader.tokens[shard] == NEW else reader.main
        adopted, label = replace(reader, tokens=put_at(reader.tokens, shard, row.token)), "nothing is lost"
        if start < known_to:
            adopted, label = self._readers.backfill(adopted, shard, start), f"backfill from {start}"
        following = _with(state, role, adopted)
        if not row.is_after_parents and not self._rules.adopts_without_writing:
            # Else the loss of the parents' operations would leave the row as the reader knows it.
            written = replace(found, row=replace(row, token=TO_COME))
            following = self._wrote(following, role, adopted, shard, written)
        return f"{name} adopted, {label}", following

    def _commit(
        self, state: State, role: Role, reader: Reader, shard: int, operation: int, row: Row
    ) -> tuple[str, State]:
        applied, promise = self._scene.take_effect(state.shards[shard].applied, operation)
        lane = list(reader.lanes[shard])
        lane.remove(operation)
        after = replace(reader, lanes=put_at(reader.lanes, shard, tuple(lane)))
        written = replace(state.shards[shard], applied=applied, row=row)
        following = self._wrote(state, role, after, shard, written)
        if promise:
            following = replace(following, promise=promise)
        return f"{SHARD_NAMES[shard]} commits {operation}", following

    def _wrote(self, state: State, role: Role, reader: Reader, shard: int, written: Shard) -> State:
        known = replace(reader, tokens=put_at(reader.tokens, shard, TO_COME))
        return _renamed(replace(_with(state, role, known), shards=put_at(state.shards, shard, written)), shard)

    def _outages(self, state: State) -> Iterator[tuple[str, State]]:
        placement = state.placement
        for shard in self._falls:
            if not placement.is_down[shard]:
                down = replace(placement, is_down=put_at(placement.is_down, shard, True))
                label = f"{SHARD_NAMES[shard]} is down"
                yield label, replace(state, placement=down, left=_spend(state, Trouble.OUTAGE))

    def _fail_over(self, state: State, shard: int) -> Iterator[tuple[str, State]]:
        name, replica = SHARD_NAMES[shard], state.replicas[shard]
        if replica is None:
            if state.left[Trouble.FAILOVER]:
                replicas = put_at(state.replicas, shard, state.shards[shard])
                label = f"the replica of {name} gets no more"
                yield label, replace(state, replicas=replicas, left=_spend(state, Trouble.FAILOVER))
        elif replica != state.shards[shard]:
            shards, replicas = put_at(state.shards, shard, replica), put_at(state.replicas, shard, None)
            yield f"failover of {name}", _renamed(replace(state, shards=shards, replicas=replicas), shard)

    def _moves_of_tenants(self, state: State) -> Iterator[tuple[str, State]]:
        is_replicated = all(replica is None for replica in state.replicas)
        if is_replicated and not any(state.placement.is_down):
            for tenant in self._moving:
                if state.placement.homes[tenant] != NO_SHARD:
                    yield self._move(state, tenant)

    def _move(self, state: State, tenant: int) -> tuple[str, State]:
        home = state.placement.homes[tenant]
        target_place = 1 - home
        source, target = state.shards[home], state.shards[target_place]
        own = sum(1 << operation for operation, one in enumerate(self._scene.tenants) if one == tenant)
        row = Row(
            TO_COME,
            min(source.row.position, target.row.position),
            source.row.is_after_parents and target.row.is_after_parents,
        )
        parents_position = min(source.parents_position, target.parents_position)
        shards = put_at(state.shards, home, replace(source, applied=source.applied & ~own))
        merged = Shard(target.applied | source.applied & own, row, parents_position)
        shards = put_at(shards, target_place, merged)
        moved = replace(
            state,
            shards=shards,
            placement=replace(state.placement, homes=put_at(state.placement.homes, tenant, target_place)),
            owner=_after_move(state.owner),
            zombie=None if state.zombie is None else _after_move(state.zombie),
            left=_spend(state, Trouble.MOVE),
        )
        label = f"{TENANT_NAMES[tenant]} moves from {SHARD_NAMES[home]} to {SHARD_NAMES[target_place]}"
        return label, _renamed(moved, target_place)


def _renamed(state: State, shard: int) -> State:
    current, replica = state.shards[shard], state.replicas[shard]
    versions = (current,) if replica is None else (current, replica)
    names = names_of_rows(*[one.row.token for one in versions])

    def version(one: Shard) -> Shard:
        token = names[one.row.token]
        return one if token == one.row.token else replace(one, row=replace(one.row, token=token))

    def reader(one: Reader) -> Reader:
        token = one.tokens[shard]
        if token <= OUTDATED:
            return one
        name = names.get(token, OUTDATED)
        return one if name == token else replace(one, tokens=put_at(one.tokens, shard, name))

    return replace(
        state,
        shards=put_at(state.shards, shard, version(current)),
        replicas=put_at(state.replicas, shard, None if replica is None else version(replica)),
        owner=reader(state.owner),
        zombie=None if state.zombie is None else reader(state.zombie),
    )


def _after_move(reader: Reader) -> Reader:
    tokens = tuple(NEW_AFTER_MOVE if token == NEW else token for token in reader.tokens)
    return replace(reader, tokens=tokens)


def _with(state: State, role: Role, reader: Reader) -> State:
    return replace(state, owner=reader) if role == "owner" else replace(state, zombie=reader)


def _spend(state: State, kind: Trouble) -> tuple[int, ...]:
    return one_less(state.left, kind)
