"""A tenant that one engine moves, restores, imports, adopts or erases from, while workers apply its operations.

All kinds are engines that may die before each of their transactions, and wake up late beside another one: they go on by
the rows of both shards, and each transaction looks at the token or the run in these. Either shard may be replaced by a
replica without its last commits. The phases of a move are those of docs/adr/0007-moving-tenants.md; what is particular
to the other kinds is in `transfer_kinds.py`.

The tenant's data are the rows that nothing in the model has made, the effects of its operations, one rename, which is
not in the log, and the resources of two order events with one id. Without positions a reader sends the next operation
to any shard where the tenant is active: routes can only delay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from model.failover_rows import NO_TOKEN, TO_COME
from model.search import Memory, put_at
from model.transfer_kinds import WANTED, Kinds, Taken, wanted_kinds
from model.transfer_reader import Readers, is_locked, renamed, swapped
from model.transfer_state import (
    AGREED,
    IN_RESULTS,
    IN_ROW,
    NO_ROW,
    NO_ROWS,
    SHARD_NAMES,
    A,
    B,
    Budget,
    Engine,
    Kind,
    Merge,
    Phase,
    Rows,
    Rules,
    Setting,
    Shard,
    State,
    put,
    spend,
    with_engine,
)
from msgspec.structs import replace

Works: TypeAlias = tuple[tuple[str, State], ...]

STARTS: Final[dict[str, tuple[Kind, int, Phase]]] = {
    "moves": ("move", A, "take"),
    "moves_back": ("move", B, "take"),
    "rollbacks": ("rollback", A, "take"),
    "restores": ("restore", A, "fence tenant"),
    "imports": ("import", A, "snapshot"),
    "follows": ("follow", A, "snapshot"),
    "discards": ("discard", A, "make"),
    "adoptions": ("adopt", A, "adopt"),
    "erasures": ("erase", A, "find"),
}


class TransferModel:
    def __init__(self, setting: Setting, budget: Budget, rules: Rules = AGREED) -> None:
        self._setting = setting
        self._budget = budget
        self._rules = rules
        self._readers = Readers(setting, rules)
        self._kinds = Kinds(setting, budget, rules, self._readers)
        self._steps = self._kinds.steps | {
            "take": self._take,
            "prepare": self._prepare,
            "copy": self._copy,
            "write": self._write,
            "fence": self._fence,
            "last delta": self._last_delta,
            "write last": self._write_last,
            "commit": self._commit,
            "activate": self._activate,
            "drop": self._drop,
        }
        self._remembered: Memory[State, Works] = Memory()

    def first(self) -> State:
        setting, budget = self._setting, self._budget
        rows = Rows(is_whole=True, named=IN_ROW | IN_RESULTS if budget.erasures else 0)
        homes = [
            Shard(state, rows=rows if state == "active" else NO_ROWS)
            for state in (setting.home, "none")[: setting.shard_count]
        ]
        if setting.has_positions:
            homes = [
                replace(one, row_token=1, position=0) if name in setting.rows else one
                for one, name in zip(homes, SHARD_NAMES, strict=False)
            ]
        return State(
            shards=tuple(homes),
            replicas=(None,) * setting.shard_count,
            engines=(),
            owner=self._readers.new_reader(0),
            left=budget,
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Return what readers and engines do, and what any worker does where an engine has died."""
        checkpoint, left = state.checkpoint, state.left
        alike = replace(state, checkpoint=0, left=self._budget)  # what these do depends on neither
        works = self._remembered.get(alike)
        if works is None:
            works = self._remembered[alike] = tuple(self._works(alike))
        for label, after in works:
            yield label, replace(after, checkpoint=checkpoint, left=left)
        if state.owner.next > checkpoint:
            yield f"checkpoint {state.owner.next}", replace(state, checkpoint=state.owner.next)
        if left.restores and state.backup is None:
            yield "a backup", replace(state, backup=replace(state.shards[A], row_token=NO_TOKEN))
        if left.messages:
            yield from self._messages(state)
        if not state.engines:
            for kind in wanted_kinds(self._budget, state):
                yield f"run the {kind} again", self._started(state, kind)
            if state.shards[A].step == "exporting" and state.shards[A].state == "fenced":
                yield "a worker ends the fence", self._kinds.without_fence(state)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        left = state.left
        if state.zombie is not None:
            for label, after in self._readers.reads(swapped(state)):
                yield f"zombie: {label}", swapped(after)
        for kind in STARTS:
            is_free = len(state.engines) < self._setting.at_once and (kind != "restores" or state.backup is not None)
            if getattr(left, kind) and is_free:
                yield f"start one of the {kind}", self._started(spend(state, kind), kind)
        yield from self._deaths(state)
        yield from self._troubles(state)
        yield from self._kinds.faults(state)
        if left.late_commits or state.late_commit is not None:
            yield from self._late_commits(state)
        for number in range(len(state.shards)):
            if left.renames and state.shards[number].state == "active":
                yield self._rename(state, number)
        if left.cleanups or state.cleaner is not None:
            yield from self._clean_up(state)

    def broken(self, state: State) -> str:
        """Return the promise that was broken: one home, with all that was acknowledged, and no more than that."""
        if state.promise:
            return state.promise
        active = [one for one in state.shards if one.state == "active"]
        if len(active) > 1:
            return "homes: both shards have an active row"
        for one in active:
            if broken := self._broken_at_home(state, one):
                return broken
        return self._kinds.broken(state)

    def unsettled(self, state: State) -> str:
        homes = {"active", "fenced"} if self._rules.reads_expired_fence_as_active else {"active"}
        home = next((one for one in state.shards if one.state in homes), None)
        if home is None:
            is_new = self._setting.home == "none" and state.shards[A].state in {"none", "incoming"}
            return "" if is_new else f"unsettled: no home, {state.shards}"
        if home.rows.effects != self._readers.all & ~state.undone:
            return f"lost: the effects are {home.rows.effects:b}, undone were {state.undone:b}"
        return "unsettled: a message" if state.left.messages else ""

    def _broken_at_home(self, state: State, one: Shard) -> str:
        rows = one.rows
        if not rows.is_whole:
            return "lost: the old rows"
        if state.is_renamed and not rows.is_renamed:
            return "lost: the rename"
        if state.orders & ~rows.orders:
            return f"lost: order {state.orders & ~rows.orders}"
        if one.old & ~rows.orders:
            return f"lost: change {one.old & ~rows.orders:b} of the other program"
        if self._setting.has_positions and not self._budget.restores:
            unapplied = ((1 << max(0, one.position)) - 1) & ~rows.log
            return f"claims: everything before {one.position}, and the log is {rows.log:b}" if unapplied else ""
        unapplied = 0 if self._setting.has_positions else ((1 << state.checkpoint) - 1) & ~rows.effects
        return f"lost: operations {unapplied:b}" if unapplied else ""

    # What happens by itself

    def _works(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._readers.reads(state)
        for shard in range(len(state.shards)):
            yield from self._end_of_lag(state, shard)
        for place, engine in enumerate(state.engines):
            following = self._steps[engine.phase](state, engine)
            label = f"{_name(engine)}: {engine.phase}"
            if following is None:
                yield f"{label}: refused", with_engine(state, place, None)
            else:
                after = with_engine(following[1], place, following[0])
                yield label, renamed(after) if self._setting.has_positions else after
        yield from self._settle(state)

    def _settle(self, state: State) -> Iterator[tuple[str, State]]:
        """Return what workers do with moves, and a person with one whose target has lost its rows."""
        for number, one in enumerate(state.shards):
            if one.state == "fenced" and one.step in {"none", "leaving"}:
                if not self._rules.reads_expired_fence_as_active:
                    yield f"the fence on {SHARD_NAMES[number]} expires", put(state, number, self._without_fence(one))
            elif one.state == "moved" and self._may_activate(state, number, one.token):
                after = self._activated(state, 1 - number)
                after = renamed(after) if self._setting.has_positions else after
                yield f"a worker activates {SHARD_NAMES[1 - number]}", after
        if self._setting.has_positions and not state.engines and not self._rules.never_copies_again:
            is_left = state.shards[A].state == "moved" and state.shards[B].state in {"none", "incoming", "ready"}
            if is_left and not self._is_ready(state):
                yield "run the move again", with_engine(state, None, Engine("move"))

    def _end_of_lag(self, state: State, shard: int) -> Iterator[tuple[str, State]]:
        replica, name = state.replicas[shard], SHARD_NAMES[shard]
        if replica is None:
            return
        caught_up = replace(state, replicas=put_at(state.replicas, shard, None))
        yield f"the replica of {name} has everything", renamed(caught_up)
        if replica != state.shards[shard]:
            engines = state.engines
            if not self._rules.trusts_own_progress:
                engines = tuple(
                    one if shard == one.source and one.phase == "write last" else replace(one, is_verified=False)
                    for one in engines
                )
            yield f"failover of {name}", renamed(replace(put(caught_up, shard, replica), engines=engines))

    def _messages(self, state: State) -> Iterator[tuple[str, State]]:
        bit = state.orders + 1  # the next one
        done = replace(spend(state, "messages"), orders=state.orders | bit)
        for number, one in enumerate(state.shards):
            if one.state != "active":
                continue
            replica, name = state.replicas[number], SHARD_NAMES[number]
            is_safe = replica is None or replica.rows.orders & bit or self._rules.deletes_messages_early
            if one.rows.orders & bit:
                if is_safe:
                    yield f"delete message {bit}", done
                continue
            rows = replace(one.rows, orders=one.rows.orders | bit, order_row=bit)
            yield f"apply message {bit} on {name}", put(done if is_safe else state, number, replace(one, rows=rows))

    def _without_fence(self, one: Shard) -> Shard:
        is_kept = self._rules.expiry_keeps_token or self._rules.has_no_token
        return replace(one, state="active", token=one.token + (not is_kept))

    # Troubles

    def _started(self, state: State, budget: str) -> State:
        kind, source, phase = STARTS[budget]
        if kind == "rollback" and self._rules.drops_without_token:
            phase = "drop"
        run = 0
        if kind in {"restore", "import", "follow", "discard"}:
            taken = {one.run for one in (*state.shards, *state.replicas, *state.engines) if one is not None}
            run = next(number for number in range(1, len(taken) + 2) if number not in taken)
        return with_engine(state, None, Engine(kind, source, phase, run=run))

    def _deaths(self, state: State) -> Iterator[tuple[str, State]]:
        for place, engine in enumerate(state.engines):
            kind = WANTED.get(engine.kind, "moves" if self._setting.has_positions else "")
            if not kind or getattr(state.left, kind):  # without a successor it may just take its time
                died = with_engine(state, place, None)
                is_for_all = engine.kind in WANTED or engine.is_committed
                yield f"the {_name(engine)} dies", spend(died, kind) if is_for_all else died

    def _troubles(self, state: State) -> Iterator[tuple[str, State]]:
        left = state.left
        if left.crashes:
            yield "crash", replace(spend(state, "crashes"), owner=self._readers.new_reader(state.checkpoint))
        if left.takes:
            reader = self._readers.new_reader(state.checkpoint)
            yield "lease taken", replace(spend(state, "takes"), owner=reader, zombie=state.owner)
        for shard, kind in ((A, "failovers"), (B, "failovers_of_target")):
            if getattr(left, kind) and state.replicas[shard] is None:
                lagging = put_at(state.replicas, shard, state.shards[shard])
                yield f"the replica of {SHARD_NAMES[shard]} gets no more", replace(spend(state, kind), replicas=lagging)

    def _late_commits(self, state: State) -> Iterator[tuple[str, State]]:
        if state.left.late_commits:
            for place, engine in enumerate(state.engines):
                if engine.phase == "commit":
                    phase: Phase = "fence" if self._rules.expiry_keeps_token else "take"
                    begun = with_engine(spend(state, "late_commits"), place, replace(engine, phase=phase))
                    yield "the commit has no answer", replace(begun, late_commit=(engine.source, engine.token))
        if state.late_commit is not None:
            shard, token = state.late_commit
            arrived = replace(state, late_commit=None)
            if self._may_commit(state.shards[shard], token):
                arrived = put(arrived, shard, self._moved(state.shards[shard]))
            yield "the commit arrives late", arrived

    def _rename(self, state: State, number: int) -> tuple[str, State]:
        home = state.shards[number]
        renamed_row = replace(home, rows=replace(home.rows, is_renamed=True))
        following = replace(spend(state, "renames"), is_renamed=True)
        return f"rename on {SHARD_NAMES[number]}", put(following, number, renamed_row)

    def _clean_up(self, state: State) -> Iterator[tuple[str, State]]:
        if state.cleaner is not None:
            number, token = state.cleaner
            one = state.shards[number]
            ended = replace(state, cleaner=None)
            if (one.state == "moved" and one.token == token) or self._rules.cleans_up_unchecked:
                ended = put(ended, number, replace(one, rows=Rows(log=one.rows.log)))
            yield f"cleanup on {SHARD_NAMES[number]}", ended
            return
        for number, one in enumerate(state.shards):
            if one.state == "moved" and state.shards[1 - number].state == "active":
                begun = replace(one, token=one.token + 1, is_cleaned=True)
                following = replace(spend(state, "cleanups"), cleaner=(number, begun.token))
                yield f"begin a cleanup on {SHARD_NAMES[number]}", put(following, number, begun)

    # Moves

    def _take(self, state: State, mover: Engine) -> Taken:
        rules = self._rules
        source, target = state.shards[mover.source], state.shards[1 - mover.source]
        token = 0 if rules.has_no_token else max(source.token, target.token) + 1
        if mover.kind == "rollback":
            if source.state == "moved" and rules.rolls_back_in_place:
                back = put(state, mover.source, replace(source, state="active"))
                return None, put(back, 1 - mover.source, replace(target, state="moved"))
            mover = replace(mover, phase="drop", token=token)
        elif source.state == "moved":
            if self._is_ready(state, mover.source):
                return replace(mover, phase="activate", token=source.token), state
            if target.state == "active" or not self._setting.has_positions or rules.never_copies_again:
                return None
            # The target has lost the copy. The source's rows are exact as of its fence.
            carried = {"carried": source.carried, "carried_token": source.carried_token}
            mover = replace(mover, phase="prepare", token=token, is_committed=True, **carried)
            return mover, put(state, mover.source, replace(source, token=token))
        else:
            mover = replace(mover, phase="prepare", token=token, is_committed=False, carried=NO_ROW, carried_token=0)
        if source.state not in {"active", "fenced"} or source.step not in {"none", "leaving"}:
            return None
        if rules.takes_token_at_fence:
            return mover, state
        step = "leaving" if self._budget.erasures else source.step
        return mover, put(state, mover.source, replace(source, state="active", token=token, step=step))

    def _prepare(self, state: State, mover: Engine) -> Taken:
        rules, source, target = self._rules, state.shards[mover.source], state.shards[1 - mover.source]
        if target.state not in {"none", "incoming", "ready", "moved"}:
            return None
        if target.token >= mover.token and not rules.has_no_token:
            return None
        phase: Phase = "last delta" if mover.is_committed else "fence"
        if self._setting.keeps_copies and target.state in {"incoming", "ready"} and target.copied_log is not None:
            covered = source.rows.log if rules.continues_from_own_start else target.copied_log
            prepared = replace(target, state="incoming", token=mover.token, copied_log=covered)
        elif target.state == "moved" and (not target.is_cleaned or rules.trusts_cleaned_rows):
            covered = source.rows.log if rules.rolls_back_by_old_copy else target.rows.log
            prepared = Shard("incoming", mover.token, target.rows, covered)
        else:
            phase = "copy"
            prepared = Shard("incoming", mover.token)
        if self._setting.has_positions:
            kept = {"row_token": target.row_token, "position": target.position, "merge": target.merge}
            prepared = replace(prepared, arrivals=self._arrived(target), **kept)
        mover = replace(mover, phase=phase, is_verified=self._setting.has_positions)
        return mover, put(state, 1 - mover.source, prepared)

    def _copy(self, state: State, mover: Engine) -> Taken:
        read = replace(mover, phase="write", rows=state.shards[mover.source].rows)
        return (read, state) if self._setting.is_split else self._write(state, read)

    def _write(self, state: State, mover: Engine) -> Taken:
        rules, rows, target = self._rules, mover.rows, state.shards[1 - mover.source]
        is_own = self._is_own(target, mover) and self._has_server(mover)
        if not is_own and not rules.writes_without_token:
            return None
        covered = rows.log
        if rules.misses_batches_in_flight:
            for reader in (state.owner, state.zombie):
                if reader is not None and reader.shard == mover.source:
                    covered |= 1 << reader.next
        copy = replace(target, rows=replace(rows, log=0) if rules.leaves_log else rows, copied_log=covered)
        phase: Phase = "last delta" if mover.is_committed else "fence"
        return replace(mover, phase=phase, rows=NO_ROWS), put(state, 1 - mover.source, copy)

    def _fence(self, state: State, mover: Engine) -> Taken:
        rules, source = self._rules, state.shards[mover.source]
        if rules.skips_last_delta:  # in one step with the commit
            moved = put(state, mover.source, replace(source, state="moved", token=mover.token))
            return replace(mover, phase="activate"), moved
        if is_locked(state, mover.source) and not rules.fences_beside_batches:
            return mover, state  # it waits
        is_own = source.token == mover.token or rules.takes_token_at_fence or rules.has_no_token
        if source.state != "active" or not is_own or not (self._has_server(mover) or rules.trusts_own_progress):
            return None
        fenced = put(state, mover.source, replace(source, state="fenced", token=mover.token))
        carried = {"carried": source.position, "carried_token": source.row_token}
        return replace(mover, phase="write last", rows=source.rows, **carried), fenced

    def _last_delta(self, state: State, mover: Engine) -> Taken:
        """Read it again from a source that the tenant has left: its rows are as of the fence."""
        read = replace(mover, phase="write last", rows=state.shards[mover.source].rows)
        return (read, state) if self._setting.is_split else self._write_last(state, read)

    def _write_last(self, state: State, mover: Engine) -> Taken:
        rules, rows, target = self._rules, mover.rows, state.shards[1 - mover.source]
        has_copy = target.copied_log is not None and self._has_server(mover)
        if not self._is_own(target, mover) or not (has_copy or rules.trusts_own_progress):
            return None
        delta = rows.log & ~(target.copied_log or 0)
        named = _named_since(target.rows, rows, by_newest=rules.ignores_older_rows)
        written = replace(
            target.rows,
            effects=rows.effects if delta else target.rows.effects,
            log=target.rows.log | (0 if rules.leaves_log else delta),
            is_renamed=target.rows.is_renamed if rules.ignores_renames else rows.is_renamed,
            orders=target.rows.orders | rows.orders & named,
            order_row=rows.order_row,
        )
        copied_log = rows.log if self._setting.keeps_copies else None
        ready = replace(target, state="ready", rows=written, copied_log=copied_log)
        if self._setting.has_positions:
            ready = replace(ready, carried=mover.carried, carried_token=mover.carried_token)
            ready = self._merged(ready) if rules.merges_before_commit else ready
        phase: Phase = "activate" if mover.is_committed else "commit"
        mover = replace(mover, phase=phase, rows=NO_ROWS, is_verified=False)
        return mover, put(state, 1 - mover.source, ready)

    def _commit(self, state: State, mover: Engine) -> Taken:
        source, target, mark = state.shards[mover.source], state.shards[1 - mover.source], ("ready", mover.token)
        if self._setting.has_positions:
            replica = state.replicas[1 - mover.source]
            if (target.state, target.token) != mark:
                return None
            if replica is not None and (replica.state, replica.token) != mark and not self._rules.skips_target_wait:
                return mover, state  # it waits
        if not self._may_commit(source, mover.token):
            return None
        moved = self._moved(source)
        if self._setting.has_positions:
            moved = replace(moved, carried=mover.carried, carried_token=mover.carried_token)
        return replace(mover, phase="activate", carried=NO_ROW, carried_token=NO_TOKEN), put(state, mover.source, moved)

    def _activate(self, state: State, mover: Engine) -> Taken:
        source, target = state.shards[mover.source], state.shards[1 - mover.source]
        token = source.token if self._rules.activates_by_present_token else mover.token
        if self._may_activate(state, mover.source, token):
            return None, self._activated(state, 1 - mover.source)
        if self._setting.has_positions and target.token == token and target.state == "ready":
            return mover, state  # it waits for the source's replica
        return None

    def _drop(self, state: State, mover: Engine) -> Taken:
        target = state.shards[1 - mover.source]
        is_older = target.token < mover.token or self._rules.drops_without_token
        if target.state not in {"incoming", "ready"} or not is_older:
            return None
        source = state.shards[mover.source]
        stays = put(state, mover.source, replace(source, step="none")) if source.step == "leaving" else state
        return None, put(stays, 1 - mover.source, Shard())

    def _is_own(self, target: Shard, mover: Engine) -> bool:
        return target.state == "incoming" and (target.token == mover.token or self._rules.has_no_token)

    def _has_server(self, mover: Engine) -> bool:
        return mover.is_verified or not self._setting.has_positions

    def _may_commit(self, source: Shard, token: int) -> bool:
        is_fenced = source.state == "fenced" or (self._rules.commits_without_fence and source.state == "active")
        return is_fenced and (source.token == token or self._rules.has_no_token)

    def _moved(self, source: Shard) -> Shard:
        return replace(source, state="moved", is_cleaned=False, step="none")

    def _is_ready(self, state: State, source: int = A, token: int | None = None) -> bool:
        rules, target = self._rules, state.shards[1 - source]
        if target.state == "incoming":
            return rules.activates_any_incoming or rules.skips_last_delta
        token = state.shards[source].token if token is None else token
        return target.state == "ready" and (target.token == token or rules.has_no_token or rules.ready_without_token)

    def _may_activate(self, state: State, source: int, token: int) -> bool:
        if self._setting.has_positions:
            one, replica = state.shards[source], state.replicas[source]
            is_safe = replica is None or replica.state == "moved" or self._rules.skips_source_wait
            if one.state != "moved" or not is_safe:
                return False
        return self._is_ready(state, source, token)

    def _activated(self, state: State, number: int) -> State:
        target = replace(state.shards[number], state="active", copied_log=None)
        if not self._setting.has_positions:
            return put(state, number, target)
        target = replace(target, arrivals=self._arrived(target))
        target = target if self._rules.merges_before_commit else self._merged(target)
        return put(state, number, replace(target, carried=NO_ROW, carried_token=NO_TOKEN))

    def _arrived(self, target: Shard) -> int:
        return target.arrivals if self._setting.rows == SHARD_NAMES else target.arrivals + 1

    def _merged(self, target: Shard) -> Shard:
        rules = self._rules
        if rules.carries_no_position or (target.carried == NO_ROW and rules.keeps_row_if_source_has_none):
            return target
        if NO_ROW in {target.carried, target.position}:
            return replace(target, row_token=NO_TOKEN, position=NO_ROW)
        merge = Merge(TO_COME, target.row_token, target.carried_token)
        return replace(target, row_token=TO_COME, position=min(target.carried, target.position), merge=merge)


def _named_since(before: Rows, now: Rows, *, by_newest: bool) -> int:
    if not by_newest:
        return now.orders & ~before.orders
    return now.order_row if now.order_row != before.order_row else 0


def _name(engine: Engine) -> str:
    return f"{engine.kind} {SHARD_NAMES[engine.source]}{engine.token or engine.run}"
