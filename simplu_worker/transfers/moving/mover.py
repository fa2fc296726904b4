"""Move one tenant from a shard to another while workers apply its operations (docs/adr/0007-moving-tenants.md).

All state is in rows, and each step is a transaction on one shard that checks the mover's token. A mover that is killed,
or loses a shard for a moment, begins again by the rows of both shards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server, server_of
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import BulkChange, mark_bulk_change
from simplu_worker.shards.postgres.errors import LostRaceError, ValueRefusedError
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.settling import (
    FIRST,
    MoveRefusedError,
    MoveSettler,
    MovingTenant,
    Progress,
    RowKey,
    activate_in,
    read_positions,
    read_tenant,
    read_transfer,
    take_token,
    tenant_of,
)
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import (
    REST_SHARE,
    Chunk,
    Walker,
    is_last_round,
    run_patiently,
    run_until_won,
)
from simplu_worker.transfers.journal import NOTE_INTERVAL_S, Journal, noted_as_running
from simplu_worker.transfers.moving.changes import (
    CLOCK_MARGIN,
    NOTHING_KNOWN,
    Changes,
    LogKey,
    keys_of,
    read_changes,
    read_last_changes,
    read_notes,
    write_changes,
)
from simplu_worker.transfers.moving.checksums import compare_shards, describe_difference
from simplu_worker.transfers.moving.copying import (
    TABLES,
    CopiedTable,
    copy_chunk,
    find_end,
)
from simplu_worker.transfers.moving.readiness import time_standbys
from simplu_worker.transfers.moving.types import (
    LEAVING,
    Certificate,
    Move,
    MoveOptions,
    MoveStatus,
    PauseTooLongError,
    Situation,
    SupersededError,
    continued_progress,
    describe_state,
    situation_of,
    warm_progress,
)
from simplu_worker.transfers.moving.undoing import drop_rows
from simplu_worker.vocabulary import MovePhase, TenantState, TransferKind, TransferStep

NOTES: Final = "notes"  # in the cursors: what is beside the log
FENCE_S: Final = 2.0  # until any worker may end it
FENCE_TRIES: Final = 10
ROUNDS_MAX: Final = 20
REHEARSALS_MAX: Final = 3
NO_TOKEN: Final = -1  # a statement with it finds no row
CLOCK_STEP_MAX_S: Final = 1.0  # below the margin of the changes that are read again
CLEANUP_STEPS: Final = frozenset({TransferStep.CLEANING, TransferStep.CLEANED})  # rows of the tenant are deleted
PAUSE: Final = frozenset({MovePhase.FENCE, MovePhase.LAST_DELTA, MovePhase.COMMIT, MovePhase.ACTIVATE})
LOG_KEPT_SHARE: Final = 0.5  # of the retention: a move that stood still for longer copies everything again

log = structlog.get_logger(__name__)


class Mover:
    """Moves one tenant; *show* is called as it goes on."""

    def __init__(
        self,
        pools: Pools,
        commits: ReplicationWaiter,
        move: Move,
        options: MoveOptions,
        *,
        show: Callable[[MoveStatus], None],
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._move = move
        self._options = options
        self._show = show
        self._clock = clock
        self._commits = commits
        self._pools = pools
        self._settler = MoveSettler(pools, commits)
        self._source = pools.pool_of(move.source_id)
        self._target = pools.pool_of(move.target_id)
        self._token = 0
        self._epoch = 0
        self._source_epoch = 0
        self._step = TransferStep.OPEN  # in the journal
        self._walker = Walker(max_rows_per_s=options.max_rows_per_s, clock=clock)
        self._noted_at = float("-inf")
        self._last_barrier: tuple[float, datetime] | None = None  # by our clock, and by the source's
        self._target_server: Server | None = None  # that has all that this mover has written there
        # Rows of the log that the target has, from just before the last barrier on.
        self._known: AbstractSet[LogKey] = NOTHING_KNOWN
        self._pause_s: float | None = None
        self._phase = MovePhase.PREPARE
        self._status = MoveStatus(self._phase)
        self._entered_at = clock()
        self._phases_s: dict[str, float] = {}

    async def run(self) -> Certificate:
        """Move the tenant, or go on with its move; return the certificate.

        Raises `MoveRefusedError`, or `RetryableError` if a shard did not answer for a minute, with the state of the
        tenant.
        """
        async with noted_as_running(self._source, lambda: self._departure, is_pause=lambda: self._phase in PAUSE):
            return await self._run_on()

    async def _run_on(self) -> Certificate:
        began_at = self._clock()
        try:
            return await run_patiently(
                partial(self._run_once, began_at),
                progress=lambda: (self._phase, self._status.row_count if self._phase is MovePhase.COPY else 0),
                on_failure=self._log_failure,
                clock=self._clock,
            )
        except (PermanentError, ValueRefusedError) as exc:
            stated = exc if isinstance(exc, MoveRefusedError) else MoveRefusedError(f"{exc}; {self.describe_state()}")
            await self._departure.note_failure(self._source, self._status, str(stated))
            raise stated from (None if stated is exc else exc)
        except (LostRaceError, RetryableError) as exc:
            await self._departure.note_failure(self._source, self._status, str(exc))
            raise RetryableError(f"{self._move.tenant_id}: {exc}; {self.describe_state()}") from exc

    @property
    def _departure(self) -> Journal:
        return Journal(self._move.tenant_id, TransferKind.DEPARTURE, str(self._token))

    @property
    def _arrival(self) -> Journal:
        return Journal(self._move.tenant_id, TransferKind.ARRIVAL, str(self._token))

    async def _log_failure(self, error: Exception) -> None:
        log.info("move.again", tenant_id=self._move.tenant_id, phase=self._phase, error=str(error))

    def describe_state(self) -> str:
        """Return in which state the tenant is, and which command comes next."""
        return describe_state(self._move, self._phase, has_left=self._step == TransferStep.COMMITTED)

    async def _run_once(self, began_at: float) -> Certificate:
        self._known = NOTHING_KNOWN  # either shard may have another server now
        source, target = await self._read(self._source), await self._read(self._target)
        self._step = _step_of(source)
        match situation_of(source, target, target_shard_id=self._move.target_id):
            case Situation.MOVE:
                progress = await self._prepare(LEAVING)
                progress = await self._copy(progress)
                progress = await self._catch_up(progress)
                await self._verify_live(progress)
                progress = await self._rehearse(progress)
                await self._switch(progress)
            case Situation.COPY_AGAIN:
                await self._copy_rest(await self._copy(await self._prepare({TenantState.MOVED})))
                await self._activate(None)
            case Situation.ACTIVATE:
                await self._activate(None)
            case Situation.ARRIVED:
                pass
            case Situation.GONE:
                raise MoveRefusedError(
                    f"{self._move.tenant_id}: the tenant is destroyed; "
                    "run: simplu-worker tenants rollback --apply, to delete its copy"
                )
            case Situation.ELSEWHERE:
                raise MoveRefusedError(
                    f"{self._move.tenant_id}: its home is neither shard {self._move.source_id} nor shard "
                    f"{self._move.target_id}; run: simplu-worker tenants show"
                )
        return await self._certify(began_at)

    # Prepare

    async def _read(self, shard: ShardPool) -> MovingTenant | None:
        async with shard.connection() as connection:
            return await read_tenant(connection, self._move.tenant_id)

    async def _prepare(self, states: AbstractSet[TenantState]) -> Progress:
        """Take a token on the source, so that no earlier mover can commit, and then the row on the target."""
        self._enter(MovePhase.PREPARE)
        # One that is lost from now on is awaited: promoted, it would still have the tenant as it was before the switch.
        await time_standbys(self._pools, self._commits, self._move)
        target = await self._read(self._target)
        source = await self._take_token(states, 0 if target is None else target.move_token)
        return await self._prepare_target(source)

    async def _take_token(self, states: AbstractSet[TenantState], token_of_target: int) -> MovingTenant:
        tenant_id = self._move.tenant_id
        async with self._source.transaction() as connection:
            source = await read_tenant(connection, tenant_id, locked=True)
            if source is None or source.state not in states:
                raise RetryableError(f"the tenant is {'not here' if source is None else source.state} now")
            departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
            if source.state is TenantState.MOVED and departure is not None and departure.step in CLEANUP_STEPS:
                raise MoveRefusedError(
                    f"{tenant_id}: shard {self._move.target_id} has lost the tenant, after a cleanup of its former "
                    f"rows on shard {self._move.source_id}; restore shard {self._move.target_id} from a newer backup"
                )
            self._token = max(source.move_token, token_of_target) + 1
            await take_token(connection, tenant_id, self._token)
            self._step = _step_of(source)
            detail: Any = None if self._step is TransferStep.COMMITTED else {}
            await self._departure.open(connection, self._step, place=self._move.target_id, detail=detail)
        self._last_barrier = (self._clock(), source.read_at)
        self._source_epoch = source.epoch
        return source

    async def _prepare_target(self, source: MovingTenant) -> Progress:
        tenant_id, keeps = self._move.tenant_id, self._options.log_kept * LOG_KEPT_SHARE
        async with self._source.connection() as connection:
            arrival_on_source = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
        async with self._target.transaction() as connection:
            target = await read_tenant(connection, tenant_id, locked=True)
            if target is not None and (target.business_id, target.location_id) != (
                source.business_id,
                source.location_id,
            ):
                raise MoveRefusedError(
                    f"{tenant_id}: shard {self._move.target_id} has this id for business {target.business_id} at "
                    f"location {target.location_id}; the tenant stays on shard "
                    f"{self._move.source_id}; run: simplu-worker tenants move, to another shard"
                )
            arrival = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
            departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
            kept = continued_progress(source, self._move.source_id, target, arrival, keeps) or warm_progress(
                source, target, departure, arrival_on_source, keeps
            )
            # Without a chunk in it: an earlier mover may have been killed before it had emptied the target.
            progress = kept or Progress(source.server, source.epoch, source.read_at)
            self._epoch = _epoch_of(source, target)
            status = await connection.execute(
                QUERIES["make_incoming"],
                tenant_id,
                source.business_id,
                source.location_id,
                source.business_type,
                self._epoch,
                self._token,
                source.control_at,
                source.created_at,
            )
            if affected_count(status) != 1:
                raise self._superseded_error()
            await self._arrival.open(connection, TransferStep.OPEN, place=self._move.source_id, detail=progress)
            self._target_server = await note_server(connection)
        if not progress.cursors and await drop_rows(self._target, tenant_id, self._token, TenantState.INCOMING) is None:
            raise self._superseded_error()
        return progress

    async def _check_token(self, connection: Connection) -> None:
        self._check_target(
            await connection.fetchrow(
                QUERIES["lock_tenant_for"], self._move.tenant_id, TenantState.INCOMING, self._token
            )
        )

    def _check_target(self, row: Any) -> Server:
        """Return the target's server: another one than before may lack rows that this mover has written."""
        if row is None:
            raise self._superseded_error()
        server = server_of(row)
        if server != self._target_server:
            raise RetryableError(f"shard {self._move.target_id} has another server now, or was restarted")
        return server

    # Copy, catch up

    async def _copy(self, progress: Progress) -> Progress:
        self._enter(MovePhase.COPY)
        if any(progress.cursors.get(table.name, FIRST) is not None for table in TABLES):
            self._status = msgspec.structs.replace(self._status, row_total=await self._count_rows())
        for table in TABLES:

            async def copy(after: RowKey, row_count: int, table: CopiedTable = table) -> Chunk:
                nonlocal progress
                progress, chunk = await self._copy_chunk(progress, table, after, row_count)
                await self._show_progress(progress)
                return chunk

            await self._walker.walk(copy, progress.cursors.get(table.name, FIRST))
        return progress if NOTES in progress.cursors else await self._copy_notes(progress)

    async def _copy_notes(self, progress: Progress) -> Progress:
        async with self._source.connection() as connection:
            async for notes in read_notes(connection, self._move.tenant_id):
                await self._write(notes)
        progress = msgspec.structs.replace(progress, cursors={**progress.cursors, NOTES: None})
        async with self._target.transaction() as connection:
            await self._check_token(connection)
            await self._note_progress(connection, progress)
        return progress

    async def _copy_chunk(
        self, progress: Progress, table: CopiedTable, after: RowKey, row_count: int
    ) -> tuple[Progress, Chunk]:
        began_at = self._clock()
        async with self._source.transaction(budget=StatementBudget.KEY_RANGE) as connection:
            await read_tenant(connection, self._move.tenant_id)
            answered_at = self._clock()
            end = await find_end(connection, table, self._move.tenant_id, after, row_count)
        found_at = self._clock()
        async with self._target.transaction() as connection:
            await self._check_token(connection)
            answer_s = max(answered_at - began_at, self._clock() - found_at)
            chunk = await copy_chunk(self._source, connection, table, self._move.tenant_id, after, end)
            copied = msgspec.structs.replace(
                progress,
                cursors=progress.cursors | {table.name: end},
                row_count=progress.row_count + chunk.row_count,
                byte_count=progress.byte_count + chunk.byte_count,
            )
            await self._note_progress(connection, copied)
        return copied, Chunk(end, chunk.row_count, answer_s)

    async def _count_rows(self) -> int:
        counts = await self._source.count(QUERIES["count_tenant_rows"], self._move.tenant_id)
        return 0 if counts is None else int(sum(counts[0]))

    async def _catch_up(self, progress: Progress) -> Progress:
        """Copy what changed since the barrier, until a round is small."""
        self._enter(MovePhase.CATCH_UP)
        for _ in range(ROUNDS_MAX):
            began_at = page_began_at = self._clock()
            barrier = await self._set_barrier(progress)
            known, count, rested_s = set[LogKey](), 0, 0.0
            async with self._source.connection() as connection:
                async for changes in read_changes(connection, self._move.tenant_id, progress.barrier, self._known):
                    count += changes.count
                    await self._write(changes)
                    known |= keys_of(changes.log)
                    rest_s = (self._clock() - page_began_at) * REST_SHARE
                    await asyncio.sleep(rest_s)
                    rested_s += rest_s
                    page_began_at = self._clock()
            async with self._target.transaction() as connection:
                await self._check_token(connection)
                progress = msgspec.structs.replace(
                    progress, barrier=barrier.read_at, row_count=progress.row_count + count
                )
                await self._note_progress(connection, progress)
            known |= self._known
            self._known = {key for key in known if key[1] >= barrier.read_at - CLOCK_MARGIN}
            await self._show_progress(progress)
            took_s = self._clock() - began_at - rested_s
            if is_last_round(count, took_s, self._options.max_pause_s):
                break
        if took_s > self._options.max_pause_s:
            raise self._pause_error(f"a last round that takes {took_s:.2f} s")
        return progress

    async def _set_barrier(self, progress: Progress) -> MovingTenant:
        """Wait for all batches in flight: their rows of the log are from before `read_at`."""
        async with self._source.transaction() as connection:
            source = await read_tenant(connection, self._move.tenant_id, locked=True)
        if source is None or source.state not in {TenantState.ACTIVE, TenantState.MOVED}:
            raise RetryableError(f"the tenant is {None if source is None else source.state}")
        if source.move_token != self._token:
            raise self._superseded_error()
        self._check_source(source, progress)
        return source

    def _check_source(self, source: MovingTenant, progress: Progress) -> None:
        """Raise if another server answers: it may lack operations that were copied, and connects as if it had them."""
        if source.server != progress.server:
            raise RetryableError(f"shard {self._move.source_id} has another server now, or was restarted")
        self._check_clock(source.read_at)

    def _check_clock(self, read_at: datetime) -> None:
        """Raise if the source's clock was set back: later rows may have times before the barrier."""
        now = self._clock()
        if self._last_barrier is not None:
            at, before = self._last_barrier
            if (now - at) - (read_at - before).total_seconds() > CLOCK_STEP_MAX_S:
                self._last_barrier = None
                raise MoveRefusedError(
                    f"{self._move.tenant_id}: the clock of shard {self._move.source_id} was set back, and the move "
                    f"was stopped; the tenant goes on on shard {self._move.source_id}; "
                    "run: simplu-worker tenants rollback --stay --apply, and then move the tenant again"
                )
        self._last_barrier = (now, read_at)

    async def _write(self, changes: Changes) -> None:
        async with self._target.transaction() as connection:
            await self._check_token(connection)
            if changes.resources or changes.gone:
                await mark_bulk_change(connection, BulkChange.COPIED, self._move.tenant_id)
            await write_changes(connection, self._move.tenant_id, changes)

    async def _verify_live(self, progress: Progress) -> None:
        self._enter(MovePhase.VERIFY)
        comparison = await compare_shards(
            self._source,
            self._target,
            self._move.tenant_id,
            progress.barrier,
            live_on_source=True,
            log_kept=self._options.log_kept * LOG_KEPT_SHARE,
        )
        if not comparison.is_equal:
            raise MoveRefusedError(
                f"{self._move.tenant_id}: the rows on both shards differ: "
                f"{describe_difference(comparison)}; the tenant goes on on shard {self._move.source_id}; "
                "run: simplu-worker tenants rollback --stay --apply"
            )

    # Switch

    async def _switch(self, progress: Progress) -> None:
        """Fence the tenant, copy the last changes, commit, and activate: the pause."""
        self._enter(MovePhase.FENCE)
        await self._note_status()
        began_at, source, progress, changes = await self._fence(progress)
        try:
            self._enter(MovePhase.LAST_DELTA)
            ready = await self._finish_copy(source, progress, changes)
            await self._commits.wait_for_transaction(self._move.target_id, ready)
            self._enter(MovePhase.COMMIT)
            committed = await self._commit(progress)
        except BaseException:
            with contextlib.suppress(RetryableError, PermanentError):
                await asyncio.shield(self._end_fence())
            raise
        await self._activate(committed)
        self._pause_s = self._clock() - began_at

    async def _rehearse(self, progress: Progress) -> Progress:
        """Predict the pause, right before the fence; if it is too long, again, as that may have been a slow moment."""
        max_pause_s = self._options.max_pause_s
        for _ in range(REHEARSALS_MAX):
            self._enter(MovePhase.REHEARSE)
            standby_s = await time_standbys(self._pools, self._commits, self._move)
            progress = await self._catch_up(progress)
            self._enter(MovePhase.REHEARSE)
            began_at = self._clock()
            await self._send_statements(progress)
            statement_s = self._clock() - began_at
            if standby_s + statement_s <= max_pause_s:
                return progress
        raise self._pause_error(
            f"one of about {standby_s + statement_s:.2f} s: {standby_s:.2f} s until the standbys of shards "
            f"{self._move.source_id} and {self._move.target_id} follow, and {statement_s:.2f} s of statements"
        )

    async def _send_statements(self, progress: Progress) -> None:
        """Send the statements of the pause once without any effect: each is parsed and planned the first time."""
        tenant_id = self._move.tenant_id
        async with self._source.transaction(is_rehearsal=True) as connection:
            await connection.fetchrow(QUERIES["fence_tenant"], tenant_id, NO_TOKEN, FENCE_S)
            source = await read_tenant(connection, tenant_id)
            if source is None:
                raise RetryableError("the tenant's row has gone from its shard")
            progress = msgspec.structs.replace(progress, positions=await read_positions(connection))
            await read_last_changes(connection, tenant_id, progress.barrier, self._known)
            await self._commit_in(connection, NO_TOKEN, progress)
        with contextlib.suppress(LostRaceError):  # a batch that takes long: the fence will wait for another moment
            async with self._target.transaction(is_rehearsal=True, budget=StatementBudget.PAUSE) as connection:
                await self._make_ready(connection, source, progress, ())
                await activate_in(connection, tenant_id, self._token)

    async def _fence(self, progress: Progress) -> tuple[float, MovingTenant, Progress, Sequence[Changes]]:
        """Fence the tenant; return when, its row, and the remaining changes, all of one transaction."""
        try:
            return await run_until_won(partial(self._fence_once, progress), tries=FENCE_TRIES)
        except LostRaceError as exc:  # a batch takes longer than others may wait for it
            raise PauseTooLongError(
                f"{self._move.tenant_id}: in {FENCE_TRIES} tries a batch kept the fence waiting for too long; "
                f"{self.describe_state()}"
            ) from exc

    async def _fence_once(self, progress: Progress) -> tuple[float, MovingTenant, Progress, Sequence[Changes]]:
        tenant_id = self._move.tenant_id
        async with self._source.transaction(budget=StatementBudget.PAUSE) as connection:
            row = await connection.fetchrow(QUERIES["fence_tenant"], tenant_id, self._token, FENCE_S)
            began_at = self._clock()
            if row is None:
                raise self._superseded_error()
            source = tenant_of(row)
            if source.epoch != self._source_epoch:  # the copy is of the tenant before that
                raise RetryableError("the tenant was destroyed, and made again")
            self._check_source(source, progress)
            positions = await read_positions(connection)
            changes = await read_last_changes(connection, tenant_id, progress.barrier, self._known)
        fenced = msgspec.structs.replace(
            progress, barrier=source.read_at, fenced_at=source.read_at, positions=positions
        )
        return began_at, source, fenced, changes

    async def _copy_rest(self, progress: Progress) -> None:
        """Make the tenant ready again, from a source that it has left: its rows are as of the fence."""
        async with self._source.connection() as connection:
            source = await read_tenant(connection, self._move.tenant_id)
            departure = await read_transfer(connection, self._move.tenant_id, TransferKind.DEPARTURE)
            if source is None or departure is None:
                raise RetryableError("the tenant's row has gone from its shard")
            self._check_source(source, progress)
            changes = await read_last_changes(connection, self._move.tenant_id, progress.barrier)
        progress = msgspec.structs.replace(progress, positions=departure.positions)
        ready = await self._finish_copy(source, progress, changes)
        await self._commits.wait_for_transaction(self._move.target_id, ready)

    async def _finish_copy(self, source: MovingTenant, progress: Progress, changes: Sequence[Changes]) -> Server:
        async with self._target.transaction() as connection:
            return await self._make_ready(connection, source, progress, changes)

    async def _make_ready(
        self, connection: Connection, source: MovingTenant, progress: Progress, changes: Sequence[Changes]
    ) -> Server:
        tenant_id, token = self._move.tenant_id, self._token
        row = await connection.fetchrow(
            QUERIES["make_ready"],
            tenant_id,
            token,
            source.business_type,
            source.control_at,
            source.created_at,
            source.paused_until,
            source.weight,
        )
        server = self._check_target(row)
        if changes:
            await mark_bulk_change(connection, BulkChange.COPIED, tenant_id)
        for one in changes:
            await write_changes(connection, tenant_id, one)
        progress = msgspec.structs.replace(progress, target_server=server)
        await self._arrival.note(connection, TransferStep.READY, progress)
        return server

    async def _commit(self, progress: Progress) -> Server:
        """Commit the move; return the server of the source. Raises `LostRaceError` after the end of the fence.

        The positions as of the fence stay here: if the target loses the copy, later ones count for nothing.
        """
        async with self._source.transaction() as connection:
            committed = await self._commit_in(connection, self._token, progress)
        if committed is None:
            raise LostRaceError("a worker has ended the fence")
        return committed

    async def _commit_in(self, connection: Connection, token: int, progress: Progress) -> Server | None:
        detail = msgspec.json.encode({"positions": progress.positions, "epochBefore": self._source_epoch}).decode()
        row = await connection.fetchrow(
            QUERIES["commit_move"], self._move.tenant_id, token, self._move.target_id, self._epoch, detail
        )
        return None if row is None else server_of(row)

    async def _end_fence(self) -> None:
        async with self._source.transaction() as connection:
            await connection.execute(QUERIES["end_own_fence"], self._move.tenant_id, self._token)

    async def _activate(self, committed: Server | None) -> None:
        self._enter(MovePhase.ACTIVATE)
        move = self._move
        if committed is None:
            await self._settler.activate(move.source_id, move.target_id, move.tenant_id)
        else:
            await self._settler.activate_after(move.source_id, committed, move.target_id, move.tenant_id, self._token)
        target = await self._read(self._target)
        if target is None or target.state is not TenantState.ACTIVE:
            raise RetryableError(f"the tenant is {None if target is None else target.state} on shard {move.target_id}")

    # The end

    async def _certify(self, began_at: float) -> Certificate:
        move = self._move
        self._enter(MovePhase.CERTIFY)
        async with self._target.connection() as connection:
            target = await read_tenant(connection, move.tenant_id)
            arrival = await read_transfer(connection, move.tenant_id, TransferKind.ARRIVAL)
        async with self._source.connection() as connection:
            departure = await read_transfer(connection, move.tenant_id, TransferKind.DEPARTURE)
        # In these steps no cleanup has begun.
        has_rows = departure is not None and departure.step in {TransferStep.COMMITTED, TransferStep.DONE}
        if target is None or arrival is None or arrival.ready_at is None or departure is None or not has_rows:
            raise MoveRefusedError(
                f"{move.tenant_id}: its home is shard {move.target_id} already, and shard {move.source_id} has no rows "
                "to compare any more; run: simplu-worker tenants show"
            )
        comparison = await compare_shards(
            self._source,
            self._target,
            move.tenant_id,
            arrival.ready_at,
            live_on_source=False,
            log_kept=self._options.log_kept * LOG_KEPT_SHARE,
        )
        self._enter(MovePhase.PUBLISH)
        certificate = Certificate(
            tenant=move.tenant_id,
            source_shard=move.source_id,
            target_shard=move.target_id,
            epoch_before=departure.epoch_before,
            epoch=target.epoch,
            pause_s=self._pause_s,
            duration_s=self._clock() - began_at,
            rows_copied=arrival.progress.row_count,
            bytes_copied=arrival.progress.byte_count,
            phases_s={phase: round(took_s, 6) for phase, took_s in self._phases_s.items()},
            comparison=comparison,
            at=datetime.now(UTC),
        )
        if departure.step != TransferStep.DONE or not departure.is_equal:  # it is kept as it was given
            ended = Journal(move.tenant_id, TransferKind.DEPARTURE, departure.token)
            detail = {"verdict": certificate.verdict, "certificate": certificate, "positions": departure.positions}
            async with self._source.transaction() as connection:
                await ended.note(connection, TransferStep.DONE, detail)
        return certificate

    async def _note_status(self) -> None:
        self._noted_at = self._clock()
        detail = self._status if self._step is TransferStep.OPEN else None  # one that has committed keeps its positions
        async with self._source.transaction() as connection:
            await self._departure.note(connection, self._step, detail)

    async def _note_progress(self, connection: Connection, progress: Progress) -> None:
        await self._arrival.note(connection, TransferStep.OPEN, progress)

    async def _show_progress(self, progress: Progress) -> None:
        self._status = msgspec.structs.replace(
            self._status, row_count=progress.row_count, byte_count=progress.byte_count
        )
        self._show(self._status)
        if self._clock() - self._noted_at > NOTE_INTERVAL_S:
            await self._note_status()

    def _superseded_error(self) -> SupersededError:
        return SupersededError(f"{self._move.tenant_id}: another mover has begun since; {self.describe_state()}")

    def _pause_error(self, got: str) -> PauseTooLongError:
        return PauseTooLongError(
            f"{self._move.tenant_id}: expected a pause of at most {self._options.max_pause_s:g} s, got {got}; try "
            f"again with less load, or give a longer --max-pause; {self.describe_state()}"
        )

    def _enter(self, phase: MovePhase) -> None:
        now = self._clock()
        self._phases_s[self._phase] = self._phases_s.get(self._phase, 0.0) + now - self._entered_at
        self._phase, self._entered_at = phase, now
        self._status = msgspec.structs.replace(self._status, phase=phase)
        self._show(self._status)


def _step_of(source: MovingTenant | None) -> TransferStep:
    return TransferStep.COMMITTED if source is not None and source.state is TenantState.MOVED else TransferStep.OPEN


def _epoch_of(source: MovingTenant, target: MovingTenant | None) -> int:
    """Return an epoch above all that the tenant had on either shard before this move."""
    if source.state is TenantState.MOVED:  # its commit has raised it
        return source.epoch
    return max(source.epoch, 0 if target is None else target.epoch) + 1
