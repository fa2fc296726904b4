"""What a model of transfers consists of: rules, troubles, and the parts of its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from model.failover_rows import NEW, NO_TOKEN
from model.search import StatePart, put_at
from msgspec.structs import replace

A, B = 0, 1
SHARD_NAMES: Final = "AB"
NO_ROW: Final = -1  # in place of a position
NO_TRIGGERS: Final = -1  # in place of bits

TenantState: TypeAlias = Literal["none", "incoming", "ready", "active", "fenced", "moved"]
Kind: TypeAlias = Literal["move", "rollback", "restore", "import", "follow", "discard", "adopt", "erase"]
Step: TypeAlias = Literal["none", "leaving", "exporting", "replacing", "copied", "following", "done"]
Phase: TypeAlias = Literal[
    "take", "prepare", "copy", "write", "fence", "last delta", "write last", "commit", "activate", "drop",
    "fence tenant", "export", "begin", "delete", "put back", "release", "confirm",
    "snapshot", "make", "clear", "copy rows", "compare", "activate import", "follow", "adopt", "note changes", "swap",
    "find", "erase row", "erase results", "erased",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """How engines and workers go about it; each switch but `skips_target_wait` and `never_follows` breaks a promise."""

    # Of every kind
    has_no_token: bool = False
    writes_without_token: bool = False  # to the target
    fences_beside_batches: bool = False  # does not wait for those that have begun
    trusts_own_progress: bool = False  # of the copy, and not what the target has of it
    reports_early: bool = False  # before the replica has the end
    # Of moves
    reads_expired_fence_as_active: bool = False  # a worker applies on, and nobody writes that the fence is over
    commits_without_fence: bool = False  # the commit looks at the token, and not at the state
    takes_token_at_fence: bool = False  # and not before the target is touched
    expiry_keeps_token: bool = False  # and the mover fences again with it
    misses_batches_in_flight: bool = False  # the delta begins behind operations that were not committed at the copy
    leaves_log: bool = False  # does not copy the rows of the log
    ignores_renames: bool = False  # the last delta has the operations of the log alone
    ignores_older_rows: bool = False  # the last delta has of each id of order events the newest row alone
    skips_last_delta: bool = False
    activates_by_present_token: bool = False  # of the source, and not by the one read with `moved`
    drops_without_token: bool = False  # a rollback before the commit
    continues_from_own_start: bool = False  # a copy that an earlier mover has left: the delta begins with this mover
    rolls_back_in_place: bool = False  # after the commit, by making the source active again
    rolls_back_by_old_copy: bool = False  # the delta of the walk back begins with the walk
    trusts_cleaned_rows: bool = False  # the walk back takes rows for whole that a cleanup has deleted
    cleans_up_unchecked: bool = False  # deletes rows of a tenant that has come back
    # Of moves between shards that lose commits
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
    deletes_messages_early: bool = False  # before the replica has their commit
    never_follows: bool = False  # but reads again after every move: as right, and slow
    follows_from_any_token: bool = False  # whatever the reader knew of the target's row
    follows_without_carried: bool = False  # whenever A's row is as the reader left it
    follows_without_source: bool = False  # without a look at A's row
    follows_adopted_token: bool = False  # a token of A's row that the reader has found there, and not written
    keeps_written_if_source_lost: bool = False  # the tokens written before it adopted A's row
    keeps_written_if_target_lost: bool = False  # those written before it adopted B's row
    # Of restores
    keeps_live_log: bool = False  # to catch up
    replaces_log_of_shard: bool = False  # of the other tenants as well
    lowers_nothing: bool = False  # the position, to catch up
    keeps_token: bool = False  # of the row with the lower position
    lowers_apart: bool = False  # the position, in a transaction after the release
    takes_log_of_backup: bool = False  # as of the backup
    empties_log: bool = False
    leaves_out_log_of_backup: bool = False
    has_no_fence: bool = False
    ends_every_fence: bool = False  # after its deadline, whatever the restorer has done
    counts_runs: bool = False  # by the token alone, which a shard that has lost commits gives twice
    exports_again: bool = False  # when an earlier restorer has begun to delete
    # Of imports
    trusts_change_columns: bool = False  # they do not name what was deleted
    discards_activated: bool = False
    activates_unsafe_rows: bool = False  # that the replica does not have yet
    reads_nothing_for_incoming: bool = False  # when a shard has lost commits, which may be those of an activation
    # Of adoptions
    copies_before_triggers: bool = False
    swaps_without_lock: bool = False  # the last changes in a transaction before the swap
    notes_changes_first: bool = False  # as done, in a transaction before they are
    # Of erasures
    erases_beside_movers: bool = False
    erases_results_first: bool = False
    erases_at_home_alone: bool = False  # and not on a shard that the tenant has left


AGREED: Final = Rules()


class Budget(StatePart, frozen=True):
    """How often each engine is started, and each kind of trouble comes."""

    moves: int = 0
    moves_back: int = 0
    rollbacks: int = 0  # before the commit
    restores: int = 0
    imports: int = 0
    follows: int = 0  # of a source that goes on
    discards: int = 0
    adoptions: int = 0
    erasures: int = 0
    cleanups: int = 0
    renames: int = 0
    messages: int = 0  # order events: the first, and the second with the same id
    changes: int = 0  # of the rows of another program
    losses: int = 0  # of the last change, by another program's database
    crashes: int = 0  # of the worker
    takes: int = 0  # of its lease: the old one goes on as a zombie
    late_commits: int = 0  # without an answer, so that the mover begins again before they arrive
    expiries: int = 0  # of the fence of a restore
    failovers: int = 0  # of shard A
    failovers_of_target: int = 0  # of shard B


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is. *is_split*: a batch, and a copy between shards, are two steps, and something may come between.

    *has_positions*: readers leave the position of the stream shard on each shard, which may then fail over.
    """

    count: int = 1  # operations of the stream
    home: TenantState = "active"  # of the tenant, on shard A
    shard_count: int = 2
    is_split: bool = True
    has_positions: bool = False
    rows: str = SHARD_NAMES  # the shards that have a row with the position
    at_once: int = 2  # engines
    keeps_copies: bool = False  # a mover goes on with an earlier one's
    has_neighbour: bool = False  # every odd operation is for another tenant of the shard
    catches_up: bool = True  # a restore; else the tenant stays as of the backup


class Rows(StatePart, frozen=True):
    """The tenant's rows on a shard, or as an engine has read them."""

    is_whole: bool = False  # whether there are those that nothing below has made
    effects: int = 0  # bits: the operations of the stream that they show
    log: int = 0  # bits
    is_renamed: bool = False
    orders: int = 0  # bits: the resources of order events, or the changes of another program
    order_row: int = 0  # bit: the one of the newest row with their id
    named: int = 0  # bits: a person in a row, and in results of the log


NO_ROWS: Final = Rows()
IN_ROW, IN_RESULTS = 1, 2


class Merge(StatePart, frozen=True):
    """An activation: the new token of the target's row, the one before, and that of the source's as of the fence."""

    token: int
    former: int
    carried: int


class Shard(StatePart, frozen=True):
    state: TenantState = "none"
    token: int = 0  # of the transfer
    rows: Rows = NO_ROWS
    copied_log: int | None = None  # the source's log as of the copy, when that is done
    is_cleaned: bool = False  # a cleanup has begun since the tenant left
    # The row with the position of the stream shard: for the tenants of the shard, everything before it is applied
    row_token: int = NO_TOKEN
    position: int = NO_ROW
    arrivals: int = 0  # changes whenever a tenant arrives
    carried: int = NO_ROW  # on the target: the source's position as of the fence
    carried_token: int = NO_TOKEN  # and the token of that row
    merge: Merge | None = None  # on the target: how its row got its token at the activation
    # The row of the transfer
    run: int = 0  # at random
    step: Step = "none"
    before: int = 0  # bits: the tenant's effects as of the fence of a restore
    exported: int = 0  # bits: its effects in the file that the row names
    undone: int = 0  # bits, since the last restore
    # The other program's table on this shard
    old: int = 0  # bits: its changes
    noted: int = NO_TRIGGERS  # bits: those that triggers have noted
    cursor: int = 0  # of the copy


class Engine(StatePart, frozen=True):
    """A process that transfers the tenant from the shard *source*, or takes such a transfer back."""

    kind: Kind
    source: int = A
    phase: Phase = "take"
    token: int = 0
    run: int = 0
    rows: Rows = NO_ROWS  # read at the source, and not yet written
    carried: int = NO_ROW
    carried_token: int = NO_TOKEN
    is_committed: bool = False
    is_verified: bool = False  # the target has the server on which it was prepared, compared, or looked at
    found: tuple[tuple[TenantState, int], ...] = ()  # the state and the token on each shard


class Reader(StatePart, frozen=True):
    """A reader of the stream: the next operation, and the shard where its batch has begun."""

    next: int = 0
    shard: int | None = None
    saw: bool = False  # its batch has read a person's row
    tokens: tuple[int, ...] = (NEW, NEW)  # that it knows of each shard's row
    arrivals: tuple[int, ...] = (0, 0)  # as of when it found no row
    written: tuple[int, ...] = ()  # the tokens that it has written into A's row since it adopted any row
    following: Merge | None = None  # it has yet to look at A's row


class State(StatePart, frozen=True):
    shards: tuple[Shard, ...]
    replicas: tuple[Shard | None, ...]  # one that gets nothing any more; None: it has everything
    engines: tuple[Engine, ...]
    owner: Reader
    left: Budget
    zombie: Reader | None = None
    checkpoint: int = 0
    cleaner: tuple[int, int] | None = None  # a cleanup that has begun: its shard, its token
    late_commit: tuple[int, int] | None = None  # shard and token
    backup: Shard | None = None
    origin: int = 0  # bits: the changes in another program's database
    is_renamed: bool = False
    orders: int = 0  # bits: the order events that were acknowledged
    undone: int = 0  # bits, of a restore that was reported
    is_reported: bool = False
    promise: str = ""  # broken on the way here


def put(state: State, number: int, shard: Shard) -> State:
    return replace(state, shards=put_at(state.shards, number, shard))


def spend(state: State, kind: str) -> State:
    return replace(state, left=replace(state.left, **{kind: getattr(state.left, kind) - 1}))


def with_engine(state: State, place: int | None, engine: Engine | None) -> State:
    """Return *state* with *engine* in place of the one at *place*; either may be none."""
    others = state.engines if place is None else (*state.engines[:place], *state.engines[place + 1 :])
    return replace(state, engines=others if engine is None else tuple(sorted((*others, engine))))
