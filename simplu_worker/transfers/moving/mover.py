"""Move one tenant from a shard to another while workers apply its operations (docs/adr/0007-moving-tenants.md).

All state is in rows, and each step is a transaction on one shard that checks the mover's token. A mover that is killed,
or loses a shard for a moment, begins again by the rows of both shards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from functools import partial
from typing import Final

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.errors import LostRaceError
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.settling import (
    FIRST,
    MoveSettler,
    Progress,
    RowKey,
    TransferRefusedError,
    activate_in,
    read_tenant,
    read_transfer,
)
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers.engine import (
    REST_SHARE,
    Chunk,
    Journal,
    TransferEngine,
    TransferStatus,
    Walker,
    is_last_round,
    run_until_won,
)
from simplu_worker.transfers.moving.checksums import Comparison, compare_shards, describe_difference
from simplu_worker.transfers.moving.copying import (
    CLOCK_MARGIN,
    NOTHING_KNOWN,
    TABLES,
    CopiedTable,
    LogKey,
    copy_chunk,
    find_end,
    keys_of,
    read_changes,
    read_last_changes,
    read_notes,
)
from simplu_worker.transfers.moving.places import count_rows, time_standbys
from simplu_worker.transfers.moving.sides import Fenced, MoveSource, MoveTarget
from simplu_worker.transfers.moving.types import (
    LEAVING,
    Certificate,
    Move,
    MoveOptions,
    PauseTooLongError,
    Situation,
    describe_state,
    situation_of,
)
from simplu_worker.vocabulary import MovePhase, TenantState, TransferKind, TransferStep

NOTES: Final = "notes"  # in the cursors: what is beside the log
FENCE_TRIES: Final = 10
ROUNDS_MAX: Final = 20
REHEARSALS_MAX: Final = 3
PAUSE: Final = frozenset({MovePhase.FENCE, MovePhase.LAST_DELTA, MovePhase.COMMIT, MovePhase.ACTIVATE})
LOG_KEPT_SHARE: Final = 0.5  # of the retention: a move that stood still for longer copies everything again


class Mover(TransferEngine[Certificate]):
    """Moves one tenant; *show* is called as it goes on."""

    def __init__(
        self,
        pools: Pools,
        commits: ReplicationWaiter,
        move: Move,
        options: MoveOptions,
        *,
        show: Callable[[TransferStatus], None],
        clock: Callable[[], float] = loop_time,
    ) -> None:
        super().__init__(pools.pool_of(move.source_id), move.tenant_id, show, clock)
        self._move = move
        self._options = options
        self._commits = commits
        self._pools = pools
        self._settler = MoveSettler(pools, commits)
        self._source = MoveSource(self._shard, move, clock)
        self._target = MoveTarget(pools.pool_of(move.target_id), move, self._source)
        self._walker = Walker(clock=clock)
        # Rows of the log that the target has, from just before the last barrier on.
        self._known: AbstractSet[LogKey] = NOTHING_KNOWN
        self._pause_s: float | None = None
        self.status = TransferStatus(MovePhase.PREPARE)
        self._began_at = self._entered_at = clock()
        self._phases_s: dict[str, float] = {}

    @property
    def journal(self) -> Journal:
        """The row of this mover, on the source."""
        return self._source.journal

    @property
    def progress(self) -> object:
        """The phase, and the rows that are copied."""
        return self.status.phase, self.status.row_count if self.status.phase == MovePhase.COPY else 0

    @property
    def has_pause(self) -> bool:
        """Whether the tenant is fenced."""
        return self.status.phase in PAUSE

    def describe_state(self) -> str:
        """Return in which state the tenant is, and which command comes next."""
        phase, has_left = MovePhase(self.status.phase), self._source.step is TransferStep.COMMITTED
        return describe_state(self._move, phase, has_left=has_left)

    async def go_on(self) -> Certificate:
        """Go on by the tenant's rows on both shards."""
        self._known = NOTHING_KNOWN  # either shard may have another server now
        source, target = await self._source.read(), await self._target.read()
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
                raise TransferRefusedError(
                    f"{self._tenant_id}: the tenant is destroyed; "
                    "run: simplu-worker tenants rollback --apply, to delete its copy"
                )
            case Situation.ELSEWHERE:
                raise TransferRefusedError(
                    f"{self._tenant_id}: its home is neither shard {self._move.source_id} nor shard "
                    f"{self._move.target_id}; run: simplu-worker tenants show"
                )
        return await self._certify()

    # Prepare, copy, catch up

    async def _prepare(self, states: AbstractSet[TenantState]) -> Progress:
        """Take a token on the source, so that no earlier mover can commit, and then the row on the target."""
        self._enter(MovePhase.PREPARE)
        # One that is lost from now on is awaited: promoted, it would still have the tenant as it was before the switch.
        await time_standbys(self._pools, self._commits, self._move)
        target = await self._target.read()
        source = await self._source.take_token(states, 0 if target is None else target.move_token)
        return await self._target.make_incoming(source, self._options.log_kept * LOG_KEPT_SHARE)

    async def _copy(self, progress: Progress) -> Progress:
        self._enter(MovePhase.COPY)
        tenant_id = self._tenant_id
        if any(progress.cursors.get(table.name, FIRST) is not None for table in TABLES):
            size = await count_rows(self._shard, tenant_id)
            row_total = sum(size.get(table.name, 0) for table in TABLES)
            self.status = msgspec.structs.replace(self.status, row_total=row_total)
        for table in TABLES:

            async def copy(after: RowKey, row_count: int, table: CopiedTable = table) -> Chunk:
                nonlocal progress
                progress, chunk = await self._copy_chunk(progress, table, after, row_count)
                self._show_progress(progress)
                return chunk

            await self._walker.walk(copy, progress.cursors.get(table.name, FIRST))
        if NOTES in progress.cursors:
            return progress
        async with self._shard.connection() as connection:
            async for notes in read_notes(connection, tenant_id):
                await self._target.write(notes)
        progress = msgspec.structs.replace(progress, cursors={**progress.cursors, NOTES: None})
        await self._target.note(progress)
        return progress

    async def _copy_chunk(
        self, progress: Progress, table: CopiedTable, after: RowKey, row_count: int
    ) -> tuple[Progress, Chunk]:
        source, target, tenant_id, began_at = self._shard, self._target, self._tenant_id, self._clock()
        async with source.transaction(budget=StatementBudget.KEY_RANGE) as connection:
            await read_tenant(connection, tenant_id)
            answered_at = self._clock()
            end = await find_end(connection, table, tenant_id, after, row_count)
        found_at = self._clock()
        async with target.shard.transaction() as connection:
            await target.check_token(connection)
            answer_s = max(answered_at - began_at, self._clock() - found_at)
            chunk = await copy_chunk(source, connection, table, tenant_id, after, end)
            copied = msgspec.structs.replace(
                progress,
                cursors=progress.cursors | {table.name: end},
                row_count=progress.row_count + chunk.row_count,
                byte_count=progress.byte_count + chunk.byte_count,
            )
            await target.journal.note(connection, TransferStep.OPEN, copied)
        return copied, Chunk(end, chunk.row_count, answer_s)

    async def _catch_up(self, progress: Progress) -> Progress:
        """Copy what changed since the barrier, until a round is small."""
        self._enter(MovePhase.CATCH_UP)
        for _ in range(ROUNDS_MAX):
            began_at = page_began_at = self._clock()
            barrier = await self._source.set_barrier(progress)
            known, count, rested_s = set[LogKey](), 0, 0.0
            async with self._shard.connection() as connection:
                async for changes in read_changes(connection, self._tenant_id, progress.barrier, self._known):
                    count += changes.count
                    await self._target.write(changes)
                    known |= keys_of(changes.log)
                    rest_s = (self._clock() - page_began_at) * REST_SHARE
                    await asyncio.sleep(rest_s)
                    rested_s += rest_s
                    page_began_at = self._clock()
            progress = msgspec.structs.replace(progress, barrier=barrier.read_at, row_count=progress.row_count + count)
            await self._target.note(progress)
            known |= self._known
            self._known = {key for key in known if key[1] >= barrier.read_at - CLOCK_MARGIN}
            self._show_progress(progress)
            took_s = self._clock() - began_at - rested_s
            if is_last_round(count, took_s, self._options.max_pause_s):
                break
        if took_s > self._options.max_pause_s:
            raise self._pause_error(f"a last round that takes {took_s:.2f} s")
        return progress

    async def _verify_live(self, progress: Progress) -> None:
        self._enter(MovePhase.VERIFY)
        comparison = await self._compare(progress.barrier, live_on_source=True)
        if not comparison.is_equal:
            raise TransferRefusedError(
                f"{self._tenant_id}: the rows on both shards differ: "
                f"{describe_difference(comparison)}; the tenant stays on shard {self._move.source_id}; "
                "run: simplu-worker tenants rollback --stay --apply"
            )

    async def _compare(self, since: datetime, *, live_on_source: bool) -> Comparison:
        shards = (self._shard, self._target.shard)
        log_kept = self._options.log_kept * LOG_KEPT_SHARE
        return await compare_shards(*shards, self._tenant_id, since, live_on_source=live_on_source, log_kept=log_kept)

    # Switch

    async def _rehearse(self, progress: Progress) -> Progress:
        """Predict the pause, right before the fence; if it is too long, again, as that may have been a slow moment."""
        max_pause_s = self._options.max_pause_s
        for _ in range(REHEARSALS_MAX):
            self._enter(MovePhase.REHEARSE)
            standby_s = await time_standbys(self._pools, self._commits, self._move)
            progress = await self._catch_up(progress)
            self._enter(MovePhase.REHEARSE)
            began_at = self._clock()
            fenced = await self._source.rehearse(progress, self._known, self._target.epoch)
            with contextlib.suppress(LostRaceError):  # a batch that takes long: the fence will wait for another moment
                shard = self._target.shard
                async with shard.transaction(is_rehearsal=True, budget=StatementBudget.PAUSE) as connection:
                    await self._target.make_ready(connection, fenced)
                    await activate_in(connection, self._tenant_id, self._source.token)
            statement_s = self._clock() - began_at
            if standby_s + statement_s <= max_pause_s:
                return progress
        raise self._pause_error(
            f"one of about {standby_s + statement_s:.2f} s: {standby_s:.2f} s until the standbys of shards "
            f"{self._move.source_id} and {self._move.target_id} follow, and {statement_s:.2f} s of statements"
        )

    async def _switch(self, progress: Progress) -> None:
        """Fence the tenant, copy the last changes, commit, and activate: the pause."""
        self._enter(MovePhase.FENCE)
        fenced = await self._fence(progress)
        try:
            self._enter(MovePhase.LAST_DELTA)
            ready = await self._finish_copy(fenced)
            await self._commits.wait_for_transaction(self._move.target_id, ready)
            self._enter(MovePhase.COMMIT)
            committed = await self._commit(fenced.progress)
        except BaseException:
            with contextlib.suppress(RetryableError, PermanentError):
                await asyncio.shield(self._source.end_fence())
            raise
        await self._activate(committed)
        self._pause_s = self._clock() - fenced.began_at

    async def _fence(self, progress: Progress) -> Fenced:
        try:
            return await run_until_won(partial(self._source.fence, progress, self._known), tries=FENCE_TRIES)
        except LostRaceError as exc:  # a batch takes longer than others may wait for it
            raise PauseTooLongError(
                f"{self._tenant_id}: in {FENCE_TRIES} tries a batch kept the fence waiting for too long; "
                f"{self.describe_state()}"
            ) from exc

    async def _copy_rest(self, progress: Progress) -> None:
        """Make the tenant ready again, from a source that it has left: its rows are as of the fence."""
        async with self._shard.connection() as connection:
            source = await read_tenant(connection, self._tenant_id)
            departure = await read_transfer(connection, self._tenant_id, TransferKind.DEPARTURE)
            if source is None or departure is None:
                raise RetryableError("the tenant's row has gone from its shard")
            self._source.check(source, progress)
            changes = await read_last_changes(connection, self._tenant_id, progress.barrier)
        progress = msgspec.structs.replace(progress, positions=departure.positions)
        ready = await self._finish_copy(Fenced(self._clock(), source, progress, changes))
        await self._commits.wait_for_transaction(self._move.target_id, ready)

    async def _finish_copy(self, fenced: Fenced) -> Server:
        async with self._target.shard.transaction() as connection:
            return await self._target.make_ready(connection, fenced)

    async def _commit(self, progress: Progress) -> Server:
        """Commit the move; return the server of the source. Raises `LostRaceError` after the end of the fence."""
        source = self._source
        async with source.shard.transaction() as connection:
            committed = await source.commit_in(connection, source.token, progress, self._target.epoch)
        if committed is None:
            raise LostRaceError("a worker has ended the fence")
        return committed

    async def _activate(self, committed: Server | None) -> None:
        self._enter(MovePhase.ACTIVATE)
        source_id, target_id, tenant_id = self._move.source_id, self._move.target_id, self._tenant_id
        if committed is None:
            await self._settler.activate(source_id, target_id, tenant_id)
        else:
            await self._settler.activate_after(source_id, committed, target_id, tenant_id, self._source.token)
        target = await self._target.read()
        if target is None or target.state is not TenantState.ACTIVE:
            raise RetryableError(f"the tenant is {None if target is None else target.state} on shard {target_id}")

    # The end

    async def _certify(self) -> Certificate:
        move = self._move
        self._enter(MovePhase.CERTIFY)
        async with self._target.shard.connection() as connection:
            target = await read_tenant(connection, move.tenant_id)
            arrival = await read_transfer(connection, move.tenant_id, TransferKind.ARRIVAL)
        async with self._shard.connection() as connection:
            departure = await read_transfer(connection, move.tenant_id, TransferKind.DEPARTURE)
        # In these steps no cleanup has begun.
        has_rows = departure is not None and departure.step in {TransferStep.COMMITTED, TransferStep.DONE}
        if target is None or arrival is None or arrival.ready_at is None or departure is None or not has_rows:
            raise TransferRefusedError(
                f"{move.tenant_id}: its home is shard {move.target_id} already, and shard {move.source_id} has no rows "
                "to compare any more; run: simplu-worker tenants show"
            )
        comparison = await self._compare(arrival.ready_at, live_on_source=False)
        self._enter(MovePhase.PUBLISH)
        certificate = Certificate(
            tenant=move.tenant_id,
            source_shard=move.source_id,
            target_shard=move.target_id,
            epoch_before=departure.epoch_before,
            epoch=target.epoch,
            pause_s=self._pause_s,
            duration_s=self._clock() - self._began_at,
            rows_copied=arrival.progress.row_count,
            bytes_copied=arrival.progress.byte_count,
            phases_s={phase: round(took_s, 6) for phase, took_s in self._phases_s.items()},
            comparison=comparison,
            at=datetime.now(UTC),
        )
        if departure.step != TransferStep.DONE or not departure.is_equal:  # it is kept as it was given
            ended = Journal(move.tenant_id, TransferKind.DEPARTURE, departure.token)
            detail = {"verdict": comparison.verdict, "certificate": certificate, "positions": departure.positions}
            async with self._shard.transaction() as connection:
                await ended.note(connection, TransferStep.DONE, detail)
        return certificate

    def _show_progress(self, progress: Progress) -> None:
        self.status = msgspec.structs.replace(self.status, row_count=progress.row_count, byte_count=progress.byte_count)
        self._show(self.status)

    def _pause_error(self, got: str) -> PauseTooLongError:
        return PauseTooLongError(
            f"{self._tenant_id}: expected a pause of at most {self._options.max_pause_s:g} s, got {got}; try "
            f"again with less load, or give a longer --max-pause; {self.describe_state()}"
        )

    def _enter(self, phase: MovePhase) -> None:
        now, before = self._clock(), self.status.phase
        self._phases_s[before] = self._phases_s.get(before, 0.0) + now - self._entered_at
        self._entered_at = now
        self.status = msgspec.structs.replace(self.status, phase=phase)
        self._show(self.status)
