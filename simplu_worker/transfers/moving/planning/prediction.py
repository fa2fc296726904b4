"""How long a tenant will wait for its switch, measured before it is fenced."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.settling.rows import read_tenant
from simplu_worker.shards.settling.settler import read_positions
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers.moving.changes import read_last_changes
from simplu_worker.transfers.moving.types import Move

COMMITS_IN_PAUSE: Final = 4  # fence, ready, commit, activation
LAST_ROUND: Final = timedelta(seconds=0.1)  # about the changes of the last round of a move, which there is not yet


class PredictedPause(msgspec.Struct, frozen=True):
    """The two parts of a pause: until the standbys of both shards have the commits, and the statements themselves."""

    standby_s: float
    statement_s: float

    @property
    def total_s(self) -> float:
        """The whole pause."""
        return self.standby_s + self.statement_s

    def describe(self, move: Move) -> str:
        """Return the pause with its parts, for people."""
        return (
            f"one of about {self.total_s:.2f} s: {self.standby_s:.2f} s until the standbys of shards {move.source_id} "
            f"and {move.target_id} follow, and {self.statement_s:.2f} s of statements"
        )


async def time_standbys(pools: Pools, commits: ReplicationWaiter, move: Move) -> float:
    """Wait for the standbys of both shards, as the switch will; return how long that took.

    A standby that has stopped to keep up is awaited for a while, and then no more: so a second call may be quick.
    Raises `RetryableError` if a shard does not answer.
    """
    began_at = loop_time()
    for shard_id in (move.target_id, move.source_id):
        async with pools.pool_of(shard_id).transaction() as connection:
            server = await note_server(connection)
        await commits.wait_for_transaction(shard_id, server)
    return loop_time() - began_at


async def predict_pause(pools: Pools, commits: ReplicationWaiter, move: Move) -> PredictedPause:
    """Return how long the tenant would wait; before a move, so that nothing of its own statements can be sent.

    Raises `RetryableError` if a shard does not answer.
    """
    source, target = pools.pool_of(move.source_id), pools.pool_of(move.target_id)
    async with source.transaction() as connection:
        tenant = await read_tenant(connection, move.tenant_id)
        if tenant is None:
            raise RetryableError("the tenant's row has gone from its shard")
        began_at = loop_time()
        await read_positions(connection)
        await read_last_changes(connection, move.tenant_id, tenant.read_at - LAST_ROUND)
        reading_s = loop_time() - began_at
    commit_s = max([await _time_commit(source), await _time_commit(target)])
    standby_s = await time_standbys(pools, commits, move)
    # The changes are read on the source and written on the target, which takes about as long.
    return PredictedPause(standby_s, 2 * reading_s + COMMITS_IN_PAUSE * commit_s)


async def _time_commit(pool: ShardPool) -> float:
    began_at = loop_time()
    async with pool.transaction() as connection:
        await note_server(connection)
    return loop_time() - began_at
