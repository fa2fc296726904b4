"""The two shards of a move: what a mover, a rollback and a cleanup write there.

Each transaction checks the token, and a mover the server's run: another run may lack what it has read or written, and
connects as if it had it. Rollbacks and cleanups have tokens of their own, so that a mover that wakes up late finds
another one (ADR 0007).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server, server_of
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import BulkChange, BulkOrigin, key_of_id, mark_bulk_change
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.settling import (
    MovingTenant,
    Progress,
    SupersededError,
    TransferRefusedError,
    read_positions,
    read_tenant,
    read_transfer,
    take_token,
    tenant_of,
)
from simplu_worker.shards.usage import carry_usage
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import Journal, TransferEngine, run_in_pages
from simplu_worker.transfers.moving.copying import (
    Changes,
    LogKey,
    copy_newer_versions,
    read_last_changes,
    write_changes,
)
from simplu_worker.transfers.moving.places import check_histories, sum_counts
from simplu_worker.transfers.moving.types import GONE, LEAVING, ON_THE_WAY, Move, continued_progress, warm_progress
from simplu_worker.vocabulary import TenantState, TransferKind, TransferStep

FENCE_S: Final = 2.0  # until any worker may end it
NO_TOKEN: Final = -1  # a statement with it finds no row
CLOCK_STEP_MAX_S: Final = 1.0  # below the margin of the changes that are read again
CLEANUP_STEPS: Final = frozenset({TransferStep.CLEANING, TransferStep.CLEANED})  # rows of the tenant are deleted


class Fenced(msgspec.Struct, frozen=True):
    """What a mover has found in the transaction of its fence, at *began_at* by its own clock."""

    began_at: float
    source: MovingTenant
    progress: Progress
    changes: Sequence[Changes]


class MoveSource:
    """The shard that the tenant leaves; *token* is that of this mover."""

    def __init__(self, shard: ShardPool, move: Move, clock: Callable[[], float]) -> None:
        self.shard = shard
        self.token = 0
        self.epoch = 0
        self.step = TransferStep.OPEN  # in the journal
        self._move = move
        self._clock = clock
        self._last_barrier: tuple[float, datetime] | None = None  # by our clock, and by the shard's

    @property
    def journal(self) -> Journal:
        """The row of this mover."""
        return Journal(self._move.tenant_id, TransferKind.DEPARTURE, str(self.token))

    async def read(self) -> MovingTenant | None:
        """Return the tenant's row; its state tells whether the move has committed."""
        async with self.shard.connection() as connection:
            source = await read_tenant(connection, self._move.tenant_id)
        self.step = _step_of(source)
        return source

    async def take_token(self, states: AbstractSet[TenantState], token_of_target: int) -> MovingTenant:
        """Take a token above both shards', so that no earlier mover can commit."""
        tenant_id = self._move.tenant_id
        async with self.shard.transaction() as connection:
            source = await read_tenant(connection, tenant_id, locked=True)
            if source is None or source.state not in states:
                raise RetryableError(f"the tenant is {'not here' if source is None else source.state} now")
            departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
            if source.state is TenantState.MOVED and departure is not None and departure.step in CLEANUP_STEPS:
                raise TransferRefusedError(
                    f"{tenant_id}: shard {self._move.target_id} has lost the tenant, after a cleanup of its former "
                    f"rows on shard {self._move.source_id}; restore shard {self._move.target_id} from a newer backup"
                )
            self.token = max(source.move_token, token_of_target) + 1
            await take_token(connection, tenant_id, self.token)
            self.step = _step_of(source)
            detail: Any = None if self.step is TransferStep.COMMITTED else {}
            await self.journal.open(connection, self.step, place=self._move.target_id, detail=detail)
        self._last_barrier = (self._clock(), source.read_at)
        self.epoch = source.epoch
        return source

    async def set_barrier(self, progress: Progress) -> MovingTenant:
        """Wait for all batches in flight: their rows of the log are from before `read_at`."""
        async with self.shard.transaction() as connection:
            source = await read_tenant(connection, self._move.tenant_id, locked=True)
        if source is None or source.state not in {TenantState.ACTIVE, TenantState.MOVED}:
            raise RetryableError(f"the tenant is {None if source is None else source.state}")
        if source.move_token != self.token:
            raise _superseded(self._move)
        self.check(source, progress)
        return source

    def check(self, source: MovingTenant, progress: Progress) -> None:
        """Raise if another server answers, or the clock was set back: later rows may be from before the barrier."""
        if source.server != progress.server:
            raise RetryableError(f"shard {self._move.source_id} has another server now, or was restarted")
        now, before = self._clock(), self._last_barrier
        self._last_barrier = (now, source.read_at)
        if before is None or (now - before[0]) - (source.read_at - before[1]).total_seconds() <= CLOCK_STEP_MAX_S:
            return
        self._last_barrier = None
        raise TransferRefusedError(
            f"{self._move.tenant_id}: the clock of shard {self._move.source_id} was set back, and the move "
            f"was stopped; the tenant stays on shard {self._move.source_id}; "
            "run: simplu-worker tenants rollback --stay --apply, and then move the tenant again"
        )

    async def fence(self, progress: Progress, known: AbstractSet[LogKey]) -> Fenced:
        """Fence the tenant, and read the remaining changes, all in one transaction."""
        tenant_id = self._move.tenant_id
        async with self.shard.transaction(budget=StatementBudget.PAUSE) as connection:
            row = await connection.fetchrow(QUERIES["fence_tenant"], tenant_id, self.token, FENCE_S)
            began_at = self._clock()
            if row is None:
                raise _superseded(self._move)
            source = tenant_of(row)
            if source.epoch != self.epoch:  # the copy is of the tenant before that
                raise RetryableError("the tenant was destroyed, and made again")
            self.check(source, progress)
            positions = await read_positions(connection)
            changes = await read_last_changes(connection, tenant_id, progress.barrier, known)
        fenced = msgspec.structs.replace(
            progress, barrier=source.read_at, fenced_at=source.read_at, positions=positions
        )
        return Fenced(began_at, source, fenced, changes)

    async def rehearse(self, progress: Progress, known: AbstractSet[LogKey], epoch: int) -> Fenced:
        """Send the statements of `fence` and `commit_in` without any effect: each is planned the first time."""
        tenant_id = self._move.tenant_id
        async with self.shard.transaction(is_rehearsal=True) as connection:
            await connection.fetchrow(QUERIES["fence_tenant"], tenant_id, NO_TOKEN, FENCE_S)
            source = await read_tenant(connection, tenant_id)
            if source is None:
                raise RetryableError("the tenant's row has gone from its shard")
            progress = msgspec.structs.replace(progress, positions=await read_positions(connection))
            await read_last_changes(connection, tenant_id, progress.barrier, known)
            await self.commit_in(connection, NO_TOKEN, progress, epoch)
        return Fenced(self._clock(), source, progress, ())

    async def commit_in(self, connection: Connection, token: int, progress: Progress, epoch: int) -> Server | None:
        """Commit the move; return the server, None if a worker has ended the fence.

        The positions as of the fence stay here: if the target loses the copy, later ones count for nothing.
        """
        row = await connection.fetchrow(
            QUERIES["commit_move"], self._move.tenant_id, token, self._move.target_id, epoch
        )
        if row is None:
            return None
        detail = {"positions": progress.positions, "epochBefore": self.epoch}
        await self.journal.note(connection, TransferStep.COMMITTED, detail)
        return server_of(row)

    async def end_fence(self) -> None:
        """Make the tenant active again, with the next token."""
        async with self.shard.transaction() as connection:
            await connection.execute(QUERIES["end_own_fence"], self._move.tenant_id, self.token)


class MoveTarget:
    """The shard that the tenant comes to, *epoch* the tenant's there."""

    def __init__(self, shard: ShardPool, move: Move, source: MoveSource) -> None:
        self.shard = shard
        self.epoch = 0
        self._move = move
        self._source = source
        self._server: Server | None = None  # that has all that this mover has written
        self._kept: AbstractSet[str] = frozenset()  # resource types with a history

    @property
    def journal(self) -> Journal:
        """The row of this mover."""
        return Journal(self._move.tenant_id, TransferKind.ARRIVAL, str(self._source.token))

    async def read(self) -> MovingTenant | None:
        """Return the tenant's row."""
        async with self.shard.connection() as connection:
            return await read_tenant(connection, self._move.tenant_id)

    async def make_incoming(self, source: MovingTenant, keeps: timedelta) -> Progress:
        """Make the tenant `incoming`; return how far an earlier mover has copied it, less than *keeps* ago."""
        tenant_id, token = self._move.tenant_id, self._source.token
        async with self._source.shard.connection() as connection:
            arrival_on_source = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
        async with self.shard.transaction() as connection:
            self._kept = await check_histories(self._source.shard, connection, tenant_id, source.business_type)
            target = await read_tenant(connection, tenant_id, locked=True)
            _check_names(self._move, source, target)
            arrival = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
            departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
            kept = continued_progress(source, self._move.source_id, target, arrival, keeps) or warm_progress(
                source, target, departure, arrival_on_source, keeps
            )
            # Without a chunk in it: an earlier mover may have been killed before it had emptied the target.
            progress = kept or Progress(source.server, source.epoch, source.read_at)
            self.epoch = _epoch_of(source, target)
            columns = (source.business_id, source.location_id, source.business_type)
            times = (source.control_at, source.created_at)
            status = await connection.execute(QUERIES["make_incoming"], tenant_id, *columns, self.epoch, token, *times)
            if affected_count(status) != 1:
                raise _superseded(self._move)
            await self.journal.open(connection, TransferStep.OPEN, place=self._move.source_id, detail=progress)
            self._server = await note_server(connection)
        if not progress.cursors and await drop_rows(self.shard, tenant_id, token, TenantState.INCOMING) is None:
            raise _superseded(self._move)
        return progress

    async def check_token(self, connection: Connection) -> None:
        """Begin a transaction that writes: raise if another mover has come, or the server is another one."""
        self._check(
            await connection.fetchrow(
                QUERIES["lock_tenant_for"], self._move.tenant_id, TenantState.INCOMING, self._source.token
            )
        )

    def _check(self, row: Any) -> Server:
        if row is None:
            raise _superseded(self._move)
        server = server_of(row)
        if server != self._server:
            raise RetryableError(f"shard {self._move.target_id} has another server now, or was restarted")
        return server

    async def write(self, changes: Changes) -> None:
        """Write what has changed on the source."""
        async with self.shard.transaction() as connection:
            await self.check_token(connection)
            if changes.resources or changes.gone:
                await mark_bulk_change(connection, BulkChange.COPIED, self._move.tenant_id)
            await self._write(connection, changes)

    async def _write(self, connection: Connection, changes: Changes) -> None:
        tenant_id = self._move.tenant_id
        await write_changes(connection, tenant_id, changes)
        keys = [(name, key_of_id(resource_id)) for name, resource_id in changes.keys if name in self._kept]
        await copy_newer_versions(self._source.shard, connection, tenant_id, keys)

    async def note(self, progress: Progress) -> None:
        """Note how far the copy is."""
        async with self.shard.transaction() as connection:
            await self.check_token(connection)
            await self.journal.note(connection, TransferStep.OPEN, progress)

    async def make_ready(self, connection: Connection, fenced: Fenced) -> Server:
        """Write the last changes, and make the tenant ready; return the server."""
        tenant_id, source = self._move.tenant_id, fenced.source
        times = (source.control_at, source.created_at, source.paused_until)
        limits = (source.operations_per_s, source.bytes_per_s, source.business_controls, source.buckets)
        row = await connection.fetchrow(
            QUERIES["make_ready"], tenant_id, self._source.token, source.business_type, *times, source.weight, *limits
        )
        server = self._check(row)
        if fenced.changes:
            await mark_bulk_change(connection, BulkChange.COPIED, tenant_id)
        for one in fenced.changes:
            await self._write(connection, one)
        if await check_histories(self._source.shard, connection, tenant_id, source.business_type) != self._kept:
            raise RetryableError("a history has begun since the rows were copied")
        marks = [(name, "") for name in self._kept]
        await copy_newer_versions(self._source.shard, connection, tenant_id, marks)
        progress = msgspec.structs.replace(fenced.progress, target_server=server)
        await self.journal.note(connection, TransferStep.READY, progress)
        return server


def _superseded(move: Move) -> SupersededError:
    return SupersededError(f"{move.tenant_id}: another mover has started since; run: simplu-worker tenants show")


def _check_names(move: Move, source: MovingTenant, target: MovingTenant | None) -> None:
    if target is None or (target.business_id, target.location_id) == (source.business_id, source.location_id):
        return
    raise TransferRefusedError(
        f"{move.tenant_id}: shard {move.target_id} has this id for business {target.business_id} at location "
        f"{target.location_id}; the tenant stays on shard {move.source_id}; run: simplu-worker tenants move, to "
        "another shard"
    )


def _step_of(source: MovingTenant | None) -> TransferStep:
    return TransferStep.COMMITTED if source is not None and source.state is TenantState.MOVED else TransferStep.OPEN


def _epoch_of(source: MovingTenant, target: MovingTenant | None) -> int:
    """Return an epoch above all that the tenant had on either shard before this move."""
    if source.state is TenantState.MOVED:  # its commit has raised it
        return source.epoch
    return max(source.epoch, 0 if target is None else target.epoch) + 1


DROP_ROWS: Final = 5_000  # deleted by one statement
UNREAD_S: Final = 10.0  # for a destination of the feed that is not down
UNREAD_POLL_S: Final = 0.2
DROPS: Final = ("drop_resources", "drop_operations", "drop_batches", "drop_rejections", "drop_versions")

log = structlog.get_logger(__name__)


async def drop_rows(shard: ShardPool, tenant_id: str, token: int, state: TenantState) -> int | None:
    """Delete the rows of a tenant; return how many resources and operations, None if its own has another *state*.

    The feed reads the changes in the log first, for `UNREAD_S` at most.
    """
    if await _has_unread(shard, tenant_id):
        async with shard.transaction() as connection:
            if not await connection.fetchval(QUERIES["lock_tenant_for"], tenant_id, state, token):
                return None
            await mark_bulk_change(connection, BulkChange.COPIED, tenant_id, BulkOrigin.UNREAD)
        log.warning("move.changes_unread", tenant_id=tenant_id, shard_id=shard.address.shard_id)
    is_ours = True

    async def drop(query: str, limit: int) -> int:
        nonlocal is_ours
        async with shard.transaction(budget=StatementBudget.KEY_RANGE) as connection:
            is_ours = is_ours and bool(await connection.fetchval(QUERIES["lock_tenant_for"], tenant_id, state, token))
            if not is_ours:
                return 0
            return affected_count(await connection.execute(QUERIES[query], tenant_id, limit))

    counts = [await run_in_pages(partial(drop, query), limit=DROP_ROWS) for query in DROPS]
    return sum(counts[:2]) if is_ours else None


async def _has_unread(shard: ShardPool, tenant_id: str) -> bool:
    """Return whether the feed has yet to read changes of the tenant, after `UNREAD_S` at most."""
    deadline = loop_time() + UNREAD_S
    while await _is_unread(shard, tenant_id, is_in_file=True):
        if loop_time() > deadline:
            return True
        await asyncio.sleep(UNREAD_POLL_S)
    return await _is_unread(shard, tenant_id, is_in_file=False)


async def _is_unread(shard: ShardPool, tenant_id: str, *, is_in_file: bool) -> bool:
    async with shard.connection() as connection:
        return bool(await connection.fetchval(QUERIES["has_unread_changes"], tenant_id, is_in_file))


class MoveUndo(TransferEngine[int]):
    """Deletes the copy of a tenant that has not left *source_id*, or was destroyed there; it returns a count."""

    def __init__(self, pools: Pools, tenant_id: str, source_id: str, target_id: str) -> None:
        super().__init__(pools.pool_of(source_id), tenant_id, lambda _: None)
        self._target = pools.pool_of(target_id)
        self._token = 0

    @property
    def journal(self) -> Journal:
        """The row of the move, on its source."""
        return Journal(self._tenant_id, TransferKind.DEPARTURE, str(self._token))

    @property
    def progress(self) -> object:
        """Nothing: it is over within a minute, or another try gets no further."""
        return None

    def describe_state(self) -> str:
        """Return the state, which is that of before."""
        return "the tenant stays on its shard; run the same command again to delete the rest of its copy"

    async def go_on(self) -> int:
        """Stop the mover, and delete what it has copied; return the rows deleted."""
        source_id, target_id = self._shard.address.shard_id, self._target.address.shard_id
        async with self._target.connection() as connection:
            copy = await read_tenant(connection, self._tenant_id)
        async with self._shard.transaction() as connection:
            tenant = await read_tenant(connection, self._tenant_id, locked=True)
            if tenant is None or tenant.state not in LEAVING | GONE:
                state = "none" if tenant is None else tenant.state
                raise TransferRefusedError(
                    f"{self._tenant_id}: its home is not on shard {source_id}, where its row is {state}"
                )
            self._token = max(tenant.move_token, 0 if copy is None else copy.move_token) + 1
            if tenant.state in LEAVING:  # no mover can do anything about a tenant that is destroyed
                await take_token(connection, self._tenant_id, self._token)
            await self.journal.open(connection, TransferStep.UNDOING, place=target_id, detail={})
        count = 0
        if copy is not None and copy.state in ON_THE_WAY:
            count = await _drop_copy(self._target, self._tenant_id, self._token)
        async with self._shard.transaction() as connection:
            await self.journal.note(connection, TransferStep.UNDONE)
        log.info("move.undone", tenant_id=self._tenant_id, source_id=source_id, target_id=target_id, rows=count)
        return count


async def count_copied(pools: Pools, tenant_id: str, target_id: str) -> int:
    """Return how many resources and operations of a copy `MoveUndo` would delete. Raises `RetryableError`."""
    target = pools.pool_of(target_id)
    async with target.connection() as connection:
        copy = await read_tenant(connection, tenant_id)
    return 0 if copy is None or copy.state not in ON_THE_WAY else await sum_counts(target, tenant_id)


async def _drop_copy(target: ShardPool, tenant_id: str, token: int) -> int:
    """Delete the rows of a tenant on its way, if no mover with a higher token has come."""
    async with target.transaction() as connection:
        status = await connection.execute(QUERIES["take_incoming"], tenant_id, token)
        if affected_count(status) != 1:
            raise SupersededError(f"{tenant_id}: another mover has started since; run this again once it has ended")
        await connection.execute(
            QUERIES["drop_transfer"], tenant_id, TransferKind.ARRIVAL
        )  # no mover may go on from its rest
    count = await drop_rows(target, tenant_id, token, TenantState.INCOMING)
    if count is None:
        raise SupersededError(f"{tenant_id}: another mover has started since; run this again once it has ended")
    async with target.transaction() as connection:
        await connection.execute(QUERIES["drop_incoming"], tenant_id, token)
    return count


def _has_left_for(left: MovingTenant, home: MovingTenant, target_id: str) -> bool:
    return (
        (left.state, left.moved_to) == (TenantState.MOVED, target_id)
        and home.state not in ON_THE_WAY  # it has arrived; since then it may have gone on, or been destroyed
        and home.epoch >= left.epoch
    )


async def clean_up(
    pools: Pools,
    commits: ReplicationWaiter,
    tenant_id: str,
    source_id: str,
    target_id: str,
    *,
    home_id: str | None = None,
    apply: bool = True,
) -> int | None:
    """Delete the rows that a tenant left on *source_id*, without *apply* none, and return their number; its own stays.

    None if it has not arrived, or has come back. Only once the standbys of its home have it: one that has not would
    need these rows.
    """
    home_id = home_id or target_id
    source, target = pools.pool_of(source_id), pools.pool_of(home_id)
    async with target.transaction() as connection:
        home = await read_tenant(connection, tenant_id)
        server = await note_server(connection)
    await commits.wait_for_transaction(home_id, server)
    async with source.transaction() as connection:
        left = await read_tenant(connection, tenant_id, locked=apply)
        departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
        if left is None or home is None or departure is None or not _has_left_for(left, home, target_id):
            return None
        token = max(left.move_token, home.move_token) + 1
        journal = Journal(tenant_id, TransferKind.DEPARTURE, str(token))
        if apply:
            await take_token(connection, tenant_id, token)
            await journal.take(connection, TransferStep.CLEANING)
    if not apply:  # a count takes another connection, and may take long
        return await sum_counts(source, tenant_id)
    count = await drop_rows(source, tenant_id, token, TenantState.MOVED)
    if count is None:
        return None
    await carry_usage(source, target, left.business_id, left.location_id)
    async with source.transaction() as connection:
        await journal.note(connection, TransferStep.CLEANED)
    log.info("move.cleaned_up", tenant_id=tenant_id, source_id=source_id, rows=count)
    return count
