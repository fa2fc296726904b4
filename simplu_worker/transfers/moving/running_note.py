"""The notes of a command that works on a move, by which others see that it runs.

They are in the journal: a lock of a session would end with each transaction behind a pooler.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.transfers.sql_files import QUERIES

NOTE_INTERVAL_S: Final = 2.0
STOPPED_WITHIN_S: Final = 2.0


@contextlib.asynccontextmanager
async def noted_as_running(
    source: ShardPool, tenant_id: str, token: Callable[[], int], *, is_pause: Callable[[], bool] = lambda: False
) -> AsyncIterator[None]:
    """Note every NOTE_INTERVAL_S on *source* that the command with the token *token()* runs, and at an error its end.

    Nothing is noted in the pause of a move, which would wait for it. A shard that does not answer ends nothing here.
    """
    noting = asyncio.create_task(_keep_noting(source, tenant_id, token, is_pause), name=f"note-running:{tenant_id}")
    try:
        yield
    except BaseException:
        noting.cancel()
        with contextlib.suppress(WorkerError, TimeoutError):
            async with asyncio.timeout(STOPPED_WITHIN_S):
                await asyncio.shield(_note(source, "note_stopped_mover", tenant_id, token()))
        raise
    finally:
        noting.cancel()
        await asyncio.gather(noting, return_exceptions=True)


async def _keep_noting(
    source: ShardPool, tenant_id: str, token: Callable[[], int], is_pause: Callable[[], bool]
) -> None:
    while True:
        await asyncio.sleep(NOTE_INTERVAL_S)
        if not is_pause():
            with contextlib.suppress(WorkerError):
                await _note(source, "note_mover", tenant_id, token())


async def _note(source: ShardPool, query: str, tenant_id: str, token: int) -> None:
    async with source.transaction() as connection:
        await connection.execute(QUERIES[query], tenant_id, token)
