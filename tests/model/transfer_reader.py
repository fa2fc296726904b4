"""Readers beside transfers: they apply operations where the tenant is active, and leave positions on each shard.

The activation of a move gives B's row a new token, and notes the token that it had before and the one of A's row as of
the fence. A reader *follows* it: it takes the new token and reads nothing again, if it knew the former token, wrote the
carried one itself since it last adopted any row, and finds that A's row still has a token that it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from model.failover_rows import NEW, NO_TOKEN, OUTDATED, TO_ADOPT, TO_COME, names_of
from model.search import put_at
from model.transfer_state import IN_RESULTS, IN_ROW, SHARD_NAMES, A, B, Merge, Reader, Rules, Setting, Shard, State, put
from msgspec.structs import replace

NAMED_MAX = 1 << 16  # renamings that are remembered


class Readers:
    def __init__(self, setting: Setting, rules: Rules) -> None:
        self._setting = setting
        self._rules = rules
        self.all = (1 << setting.count) - 1
        self.own = sum(1 << one for one in range(0, setting.count, 2 if setting.has_neighbour else 1))

    def new_reader(self, position: int) -> Reader:
        count = self._setting.shard_count
        return Reader(position, tokens=(NEW,) * count, arrivals=(0,) * count)

    def reads(self, state: State) -> Iterator[tuple[str, State]]:
        """Return what the owner of the lease may do next."""
        reader, has_positions = state.owner, self._setting.has_positions
        if reader.shard is not None:
            committed = replace(state, owner=replace(reader, shard=None, saw=False))
            yield f"commit {reader.next}", self._written(committed, reader.shard, reader.next, saw=reader.saw)
            return
        for shard, one in enumerate(state.shards):
            name = SHARD_NAMES[shard]
            if shard == B and reader.following is not None:
                yield "follow the move", self._followed(state, reader.following)
            elif has_positions and reader.tokens[shard] in {NEW, TO_ADOPT}:
                yield f"read the row of {name}", self._adopted(state, shard)
            elif reader.next < self._setting.count and self._may_apply(one, reader.next):
                if self._setting.is_split:
                    begun = replace(reader, shard=shard, saw=bool(one.rows.named & IN_ROW))
                    yield f"begin {reader.next} on {name}", replace(state, owner=begun)
                else:
                    yield f"apply {reader.next} on {name}", self._written(state, shard, reader.next)
            elif has_positions and one.position != reader.next:
                yield f"write the row of {name}", self._written(state, shard, None)

    def is_own(self, operation: int) -> bool:
        return bool(self.own >> operation & 1)

    def _may_apply(self, shard: Shard, operation: int) -> bool:
        seems_active = shard.state == "fenced" and self._rules.reads_expired_fence_as_active
        return shard.state == "active" or seems_active or not self.is_own(operation)

    def _adopted(self, state: State, shard: int) -> State:
        one, reader, rules = state.shards[shard], state.owner, self._rules
        is_resident = (
            one.state in {"active", "fenced"}
            or (one.state == "incoming" and not rules.reads_nothing_for_incoming)
            or (one.state == "ready" and rules.counts_ready_as_resident)
        )
        adopted = replace(
            reader,
            next=min(reader.next, max(0, one.position)) if is_resident else reader.next,
            tokens=put_at(reader.tokens, shard, one.row_token),
            arrivals=put_at(reader.arrivals, shard, 0 if one.row_token else one.arrivals),
        )
        if shard == A and rules.follows_adopted_token:
            adopted = replace(adopted, written=(one.row_token,))
        elif not (rules.keeps_written_if_source_lost if shard == A else rules.keeps_written_if_target_lost):
            adopted = replace(adopted, written=())
        return renamed(replace(state, owner=adopted))

    def _followed(self, state: State, merge: Merge) -> State:
        rules, reader = self._rules, state.owner
        has_all = (state.shards[A].row_token == reader.tokens[A] or rules.follows_without_source) and (
            merge.carried in reader.written or rules.follows_without_carried
        )
        tokens = put_at(reader.tokens, B, merge.token if has_all else TO_ADOPT)
        return renamed(replace(state, owner=replace(reader, tokens=tokens, following=None)))

    def _written(self, state: State, shard: int, operation: int | None, *, saw: bool = False) -> State:
        one, reader = state.shards[shard], state.owner
        if self._setting.has_positions and not self._is_known(one, reader, shard):
            if self._may_follow(reader, shard, one):
                return replace(state, owner=replace(reader, following=one.merge))
            refused = replace(reader, tokens=put_at(reader.tokens, shard, TO_ADOPT))
            return renamed(replace(state, owner=refused))
        promise = ""
        if operation is not None:
            promise, one = self._applied(one, operation, SHARD_NAMES[shard], saw=saw)
        reader = replace(reader, next=reader.next + (operation is not None))
        if not self._setting.has_positions:
            return replace(put(state, shard, one), owner=reader, promise=promise)
        one = replace(one, row_token=TO_COME, position=state.owner.next)
        follows = self._setting.shard_count > 1 and shard == A
        reader = replace(
            reader,
            tokens=put_at(reader.tokens, shard, TO_COME),
            written=(*reader.written, TO_COME) if follows else reader.written,
        )
        return renamed(replace(put(state, shard, one), owner=reader, promise=promise))

    def _applied(self, one: Shard, operation: int, name: str, *, saw: bool) -> tuple[str, Shard]:
        rows, bit = one.rows, 1 << operation
        if rows.log & bit:
            return "", one
        tenant = self.own if self.is_own(operation) else self.all & ~self.own
        shown = (rows.log | rows.effects) & tenant
        promise = ""
        if rows.effects & bit:
            promise = f"twice: {operation} on {name}"
        elif shown != tenant & (bit - 1):
            promise = f"order: {operation} on {name}, which has {shown:b}"
        named = rows.named | (IN_RESULTS if saw else 0)
        return promise, replace(one, rows=replace(rows, effects=rows.effects | bit, log=rows.log | bit, named=named))

    def _is_known(self, one: Shard, reader: Reader, shard: int) -> bool:
        if one.row_token == NO_TOKEN == reader.tokens[shard] and not self._rules.makes_row_beside_move:
            return one.arrivals == reader.arrivals[shard]
        return one.row_token == reader.tokens[shard]

    def _may_follow(self, reader: Reader, shard: int, one: Shard) -> bool:
        merge = one.merge
        if self._rules.never_follows or shard == A or merge is None or merge.token != one.row_token:
            return False
        return merge.former == reader.tokens[B] or self._rules.follows_from_any_token


def is_locked(state: State, number: int) -> bool:
    """Return whether a batch on the shard has begun: it holds the lock of the tenant's row."""
    return any(reader is not None and reader.shard == number for reader in (state.owner, state.zombie))


def swapped(state: State) -> State:
    """Return *state* with the zombie as owner."""
    assert state.zombie is not None
    return replace(state, owner=state.zombie, zombie=state.owner)


def renamed(state: State) -> State:
    """Return *state* with other names for the tokens of positions: states that differ in these alone are one."""
    carried = tuple(one.carried_token for one in state.engines)
    shards, replicas, owner, carried = _named(state.shards, state.replicas, state.owner, carried)
    engines = state.engines
    if any(carried):
        engines = tuple(replace(one, carried_token=token) for one, token in zip(engines, carried, strict=True))
    return replace(state, shards=shards, replicas=replicas, owner=owner, engines=engines)


@lru_cache(maxsize=NAMED_MAX)  # most states differ from earlier ones in other things than these
def _named(
    shards: tuple[Shard, ...], replicas: tuple[Shard | None, ...], reader: Reader, of_engines: tuple[int, ...]
) -> tuple[tuple[Shard, ...], tuple[Shard | None, ...], Reader, tuple[int, ...]]:
    versions = [[one, *([] if replica is None else [replica])] for one, replica in zip(shards, replicas, strict=True)]
    merges = [
        one.merge for both in versions[B:] for one in both if one.merge is not None and one.merge.token == one.row_token
    ]
    merges += [] if reader.following is None else [reader.following]
    carried = [one.carried_token for both in versions for one in both] + [one.carried for one in merges]
    carried += of_engines
    names_a = names_of([*(one.row_token for one in versions[A]), *(token for token in carried if token)])
    # Carried tokens are of rows that are there: none of them stands for a missing row.
    names_a[NO_TOKEN] = NO_TOKEN
    of_b = [one.row_token for both in versions[B:] for one in both]
    of_b += [token for merge in merges for token in (merge.former, merge.token)]
    names = [names_a, names_of(of_b)][: len(shards)]
    named = replace(
        reader,
        tokens=tuple(
            of_shard.get(token, OUTDATED) if token > OUTDATED else token
            for token, of_shard in zip(reader.tokens, names, strict=True)
        ),
        written=tuple(sorted(names_a[token] for token in reader.written if token in names_a)),
        following=None if reader.following is None else _merge_with_names(reader.following, names[B], names_a),
    )
    return (
        tuple(_with_names(one, of_shard, names_a) for one, of_shard in zip(shards, names, strict=True)),
        tuple(
            None if one is None else _with_names(one, of_shard, names_a)
            for one, of_shard in zip(replicas, names, strict=True)
        ),
        named,
        tuple(names_a[token] for token in of_engines),
    )


def _with_names(one: Shard, names: dict[int, int], names_a: dict[int, int]) -> Shard:
    merge = one.merge
    return replace(
        one,
        row_token=names[one.row_token],
        carried_token=names_a[one.carried_token],
        merge=None if merge is None or merge.token != one.row_token else _merge_with_names(merge, names, names_a),
    )


def _merge_with_names(merge: Merge, names: dict[int, int], names_a: dict[int, int]) -> Merge:
    return Merge(names[merge.token], names[merge.former], names_a[merge.carried])
