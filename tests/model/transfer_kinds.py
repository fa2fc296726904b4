"""What is particular to restores, imports, adoptions and erasures; moves are in `transfer_model.py`.

A *restore* has a backup of the shard, made at any time, as its source: the tenant is fenced, exported, emptied and
copied from it, released with a lower position, or, as of the backup, without the operations since then. An *import* has
the snapshot of another program's database, which goes on; rounds follow it by change columns, which name no row that
was deleted. An *adoption* has another program's table on the same shard, which triggers watch: every even change is of
its first row, every odd one of its second. An *erasure* has none: a person's row, and what results in the log have of
it, go from every shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from model.failover_rows import TO_COME
from model.transfer_reader import Readers, is_locked
from model.transfer_state import (
    IN_RESULTS,
    IN_ROW,
    NO_ROWS,
    NO_TRIGGERS,
    A,
    Budget,
    Engine,
    Kind,
    Phase,
    Rules,
    Setting,
    Shard,
    State,
    TenantState,
    put,
    spend,
)
from msgspec.structs import replace

Taken: TypeAlias = tuple[Engine | None, State] | None
"""What a transaction leads to: the engine, None if it has ended, and all else. None if it was refused."""

WANTED: Final[dict[Kind, str]] = {"restore": "restores", "import": "imports", "adopt": "adoptions"}
SEEN: Final = 0b0101_0101  # bits: changes of rows that change columns name; the others delete
FIRST_ROW: Final = 0b0101_0101  # bits: changes of the first row of an old table
ALL_ROWS: Final = 0b1111_1111
OLD_ROWS: Final = (FIRST_ROW, ALL_ROWS & ~FIRST_ROW)
AT_REST: Final = frozenset[TenantState]({"none", "active", "moved"})


def wanted_kinds(budget: Budget, state: State) -> list[str]:
    """Return what a person has begun, and that has not ended."""
    if state.shards[A].step in {"replacing", "copied"}:
        return ["restores"]
    if state.is_reported:
        return []
    return [kind for kind in WANTED.values() if getattr(state.left, kind) < getattr(budget, kind)]


class Kinds:
    def __init__(self, setting: Setting, budget: Budget, rules: Rules, readers: Readers) -> None:
        self._setting = setting
        self._budget = budget
        self._rules = rules
        self._own = readers.own
        self.steps: dict[Phase, Callable[[State, Engine], Taken]] = {
            "fence tenant": self._fence,
            "export": self._export,
            "begin": self._begin,
            "delete": self._delete,
            "put back": self._put_back,
            "release": self._release,
            "confirm": self._confirm,
            "snapshot": self._snapshot,
            "make": self._make,
            "clear": self._clear,
            "copy rows": self._copy_rows,
            "compare": self._compare,
            "activate import": self._activate,
            "follow": self._follow,
            "adopt": self._adopt,
            "note changes": self._write_noted,
            "swap": self._swap,
            "find": self._find,
            "erase row": self._erase_row,
            "erase results": self._erase_results,
            "erased": self._erased,
        }

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        """Return ends of the fences of restores, and what other programs do."""
        one, left = state.shards[A], state.left
        if left.expiries and one.state == "fenced" and (one.step == "exporting" or self._rules.ends_every_fence):
            yield "a worker ends the fence", self.without_fence(spend(state, "expiries"))
        if left.changes and self._budget.imports:
            change = 1 << (self._budget.changes - left.changes)
            yield "the source changes", replace(spend(state, "changes"), origin=state.origin | change)
        if left.losses and state.origin:
            yield "the source loses a change", replace(spend(state, "losses"), origin=state.origin & (state.origin - 1))
        if left.changes and self._budget.adoptions and one.state == "none":
            change = 1 << (self._budget.changes - left.changes)
            noted = one.noted if one.noted == NO_TRIGGERS else one.noted | change
            changed = put(spend(state, "changes"), A, replace(one, old=one.old | change, noted=noted))
            yield "the other program writes", changed

    def broken(self, state: State) -> str:
        one = state.shards[A]
        if state.undone & one.rows.effects:
            return f"came back: {state.undone & one.rows.effects:b}"
        if not state.is_reported:
            return ""
        if self._budget.erasures and (found := [shard.rows.named for shard in state.shards if shard.rows.named]):
            return f"came back: {found}"
        if self._budget.imports and one.state != "active":
            return f"lost: an import that was reported, {one.state}"
        if one.step == "done" and one.exported != one.before:
            return f"export: {one.before:b} were there, and the file has {one.exported:b}"
        return ""

    def without_fence(self, state: State) -> State:
        one = state.shards[A]
        return put(state, A, replace(one, state="active", token=one.token + 1, step="none"))

    # Restores

    def _fence(self, state: State, restorer: Engine) -> Taken:
        one = state.shards[A]
        token = one.token + 1
        if one.step in {"replacing", "copied"}:
            phase: Phase = "export" if self._rules.exports_again else "delete"
            one = replace(one, token=token, run=restorer.run, step="replacing")
        elif is_locked(state, A) and not self._rules.fences_beside_batches:
            return restorer, state  # it waits
        else:
            phase = "export"
            fenced: TenantState = "active" if self._rules.has_no_fence else "fenced"
            before = one.rows.effects & self._own
            one = replace(one, state=fenced, token=token, run=restorer.run, step="exporting", before=before)
        return replace(restorer, phase=phase, token=token), put(state, A, one)

    def _export(self, state: State, restorer: Engine) -> Taken:
        one = state.shards[A]
        if not self._is_current(one, restorer):
            return None
        if one.step == "exporting":
            return replace(restorer, phase="begin", rows=replace(NO_ROWS, effects=one.rows.effects & self._own)), state
        return replace(restorer, phase="delete"), put(state, A, replace(one, exported=one.rows.effects & self._own))

    def _begin(self, state: State, restorer: Engine) -> Taken:
        one = state.shards[A]
        if not self._is_current(one, restorer) or one.step != "exporting":
            return None
        begun = put(state, A, replace(one, step="replacing", exported=restorer.rows.effects))
        return replace(restorer, phase="delete", rows=NO_ROWS), begun

    def _delete(self, state: State, restorer: Engine) -> Taken:
        one = state.shards[A]
        if not self._is_current(one, restorer) or one.step != "replacing":
            return None
        emptied = replace(one.rows, effects=one.rows.effects & ~self._own, is_whole=False)
        return replace(restorer, phase="put back"), put(state, A, replace(one, rows=emptied))

    def _put_back(self, state: State, restorer: Engine) -> Taken:
        rules, one, backup, own = self._rules, state.shards[A], state.backup, self._own
        assert backup is not None
        if not self._is_current(one, restorer) or (one.step != "replacing" and not rules.writes_without_token):
            return None
        log, in_backup = one.rows.log, backup.rows.log & own
        if (self._setting.catches_up and not rules.keeps_live_log) or rules.takes_log_of_backup:
            log = backup.rows.log if rules.replaces_log_of_shard else log & ~own | in_backup
        elif rules.empties_log:
            log &= ~own
        elif not rules.leaves_out_log_of_backup and not self._setting.catches_up:
            log |= in_backup
        undone = 0 if self._setting.catches_up else one.rows.log & own & ~backup.rows.log
        effects = one.rows.effects & ~own | backup.rows.effects & own
        rows = replace(one.rows, effects=effects, log=log, is_whole=True)
        return replace(restorer, phase="release"), put(state, A, replace(one, rows=rows, step="copied", undone=undone))

    def _release(self, state: State, restorer: Engine) -> Taken:
        rules, one = self._rules, state.shards[A]
        if not self._is_current(one, restorer) or (one.step != "copied" and not rules.trusts_own_progress):
            return None
        one = replace(one, state="active", step="done")
        if not rules.lowers_apart:
            one = self._lowered(one, state.backup)
        return replace(restorer, phase="confirm"), put(state, A, one)

    def _lowered(self, one: Shard, backup: Shard | None) -> Shard:
        assert backup is not None
        if not self._setting.catches_up or self._rules.lowers_nothing:
            return one
        token = one.row_token if self._rules.keeps_token else TO_COME
        return replace(one, position=min(one.position, backup.position), row_token=token)

    def _is_current(self, one: Shard, restorer: Engine) -> bool:
        if self._rules.writes_without_token:
            return True
        return self._is_of(one, restorer) and (one.state == "fenced" or self._rules.has_no_fence)

    def _is_of(self, one: Shard, engine: Engine) -> bool:
        return one.token == engine.token and (one.run == engine.run or self._rules.counts_runs)

    def _confirm(self, state: State, engine: Engine) -> Taken:
        """Report the end, once the replica has it."""
        one, replica = state.shards[A], state.replicas[A]
        if one.step != "done" or not self._is_of(one, engine):
            return None
        is_safe = replica is None or (replica.step == "done" and self._is_of(replica, engine))
        if not is_safe and not self._rules.reports_early:
            return engine, state  # it waits
        if engine.kind == "restore" and self._rules.lowers_apart:
            state = put(state, A, self._lowered(one, state.backup))
        return None, replace(state, is_reported=True, undone=one.undone)

    # Imports

    def _snapshot(self, state: State, importer: Engine) -> Taken:
        rows = replace(NO_ROWS, is_whole=True, orders=state.origin)
        return replace(importer, phase="make", rows=rows), state

    def _make(self, state: State, importer: Engine) -> Taken:
        """Make the tenant, or take an import over."""
        one = state.shards[A]
        is_left = importer.kind == "discard" and self._rules.discards_activated
        if one.state not in {"none", "incoming"} and not is_left:
            return None
        if one.state == "none":
            if importer.kind == "discard":
                return None
            one = replace(one, state="incoming")
        phase: Phase = "compare" if one.step == "following" and importer.kind == "import" else "clear"
        return replace(importer, phase=phase), put(state, A, replace(one, run=importer.run))

    def _clear(self, state: State, importer: Engine) -> Taken:
        one = state.shards[A]
        if not self._is_importing(one, importer):
            return None
        if importer.kind == "discard":
            return None, put(state, A, replace(one, state="none", rows=NO_ROWS, step="none", run=0))
        cleared = replace(one, rows=replace(one.rows, is_whole=False, orders=0), step="none")
        return replace(importer, phase="copy rows"), put(state, A, cleared)

    def _copy_rows(self, state: State, importer: Engine) -> Taken:
        one = state.shards[A]
        if not self._is_importing(one, importer):
            return None
        rows = replace(one.rows, is_whole=True, orders=one.rows.orders | importer.rows.orders)
        return replace(importer, phase="compare"), put(state, A, replace(one, rows=rows))

    def _compare(self, state: State, importer: Engine) -> Taken:
        """Compare all rows; those of a tenant that followed after its last changes."""
        one = state.shards[A]
        if not self._is_importing(one, importer):
            return None
        rows = one.rows
        if one.step == "following":
            rows = replace(rows, orders=rows.orders | importer.rows.orders & SEEN)
        is_equal = (rows.is_whole, rows.orders) == (True, importer.rows.orders)
        if not is_equal and not self._rules.trusts_change_columns:
            return replace(importer, phase="clear"), state
        phase: Phase = "follow" if importer.kind == "follow" else "activate import"
        return replace(importer, phase=phase, is_verified=True), put(state, A, replace(one, rows=rows))

    def _follow(self, state: State, importer: Engine) -> Taken:
        """Note that the tenant follows, or write what change columns name since then."""
        one = state.shards[A]
        if not self._is_importing(one, importer) or (one.step == "none" and not importer.is_verified):
            return None
        rows = replace(one.rows, orders=one.rows.orders | (state.origin & SEEN if one.step == "following" else 0))
        return replace(importer, is_verified=False), put(state, A, replace(one, rows=rows, step="following"))

    def _activate(self, state: State, importer: Engine) -> Taken:
        one = state.shards[A]
        if not self._is_importing(one, importer) or not importer.is_verified:
            return None
        replica = state.replicas[A]
        if replica is not None and replica.state != "incoming" and not self._rules.activates_unsafe_rows:
            return importer, state  # it waits
        got, expected = one.rows.orders, importer.rows.orders
        promise = "" if got == expected else f"differs: the source has {expected:b}, and the tenant {got:b}"
        active = put(state, A, replace(one, state="active", step="done"))
        return replace(importer, phase="confirm"), replace(active, promise=promise)

    def _is_importing(self, one: Shard, importer: Engine) -> bool:
        if self._rules.writes_without_token:
            return True
        return one.run == importer.run and (one.state == "incoming" or self._rules.discards_activated)

    # Adoptions

    def _adopt(self, state: State, adopter: Engine) -> Taken:
        """Take the next step, by the row of the adoption alone."""
        rules, one = self._rules, state.shards[A]
        if one.state == "active":
            return None, replace(state, is_reported=True)
        cursor = adopter.token if rules.trusts_own_progress else one.cursor
        if one.noted == NO_TRIGGERS and (not rules.copies_before_triggers or cursor == len(OLD_ROWS)):
            return adopter, put(state, A, replace(one, noted=0))
        if cursor < len(OLD_ROWS):
            rows = replace(one.rows, orders=one.rows.orders | one.old & OLD_ROWS[cursor])
            copied = put(state, A, replace(one, rows=rows, cursor=cursor + 1))
            return (replace(adopter, token=cursor + 1) if rules.trusts_own_progress else adopter), copied
        if rules.notes_changes_first and one.noted:
            read = replace(adopter, phase="note changes", rows=replace(NO_ROWS, orders=one.old & one.noted))
            return read, put(state, A, replace(one, noted=0))
        rows = replace(one.rows, orders=one.rows.orders | one.old & one.noted)
        one = replace(one, rows=rows, noted=0)
        if rules.swaps_without_lock:
            return replace(adopter, phase="swap"), put(state, A, one)
        return self._swap(put(state, A, one), adopter)

    def _write_noted(self, state: State, adopter: Engine) -> Taken:
        one = state.shards[A]
        rows = replace(one.rows, orders=one.rows.orders | adopter.rows.orders)
        return replace(adopter, phase="adopt", rows=NO_ROWS), put(state, A, replace(one, rows=rows))

    def _swap(self, state: State, adopter: Engine) -> Taken:
        one = state.shards[A]
        swapped = replace(one, state="active", rows=replace(one.rows, is_whole=True))
        return replace(adopter, phase="adopt"), put(state, A, swapped)

    # Erasures

    def _find(self, state: State, eraser: Engine) -> Taken:
        is_alone = self._rules.erases_beside_movers
        if any(one.state not in AT_REST or one.step == "leaving" for one in state.shards) and not is_alone:
            return None
        found = tuple((one.state, one.token) for one in state.shards)
        phase: Phase = "erase results" if self._rules.erases_results_first else "erase row"
        return replace(eraser, phase=phase, found=found, is_verified=True), state

    def _erase_row(self, state: State, eraser: Engine) -> Taken:
        if is_locked(state, eraser.source) and not self._rules.fences_beside_batches:
            return eraser, state  # it waits
        return self._erase(state, eraser, IN_ROW)

    def _erase_results(self, state: State, eraser: Engine) -> Taken:
        return self._erase(state, eraser, IN_RESULTS)

    def _erase(self, state: State, eraser: Engine, what: int) -> Taken:
        rules, one, number = self._rules, state.shards[eraser.source], eraser.source
        is_skipped = rules.erases_at_home_alone and one.state != "active"
        if (one.state, one.token) != eraser.found[number] and not rules.writes_without_token:
            return None
        if not is_skipped:
            state = put(state, number, replace(one, rows=replace(one.rows, named=one.rows.named & ~what)))
        first: Phase = "erase results" if rules.erases_results_first else "erase row"
        second: Phase = "erase row" if rules.erases_results_first else "erase results"
        if eraser.phase == first:
            return replace(eraser, phase=second), state
        if number + 1 < len(state.shards):
            return replace(eraser, source=number + 1, phase=first), state
        return replace(eraser, phase="erased"), state

    def _erased(self, state: State, eraser: Engine) -> Taken:
        """Report the end, once the replicas have it."""
        if not self._rules.reports_early:
            if not eraser.is_verified:  # a shard has another server now
                return None
            if state.replicas != (None,) * len(state.shards):
                return eraser, state  # it waits
        return None, replace(state, is_reported=True)
