"""What a command that works on a move writes into the journal of the source: that it runs, and how far it is.

This is no lock of a session, as that would end with each transaction behind a pooler.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.settling import Departure
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.moving.types import Certificate, MoveStatus
from simplu_worker.vocabulary import MoveStep


class MoveJournal:
    """The row of a tenant in the journal of the shard that it leaves. An older token changes nothing."""

    def __init__(self, source: ShardPool, tenant_id: str) -> None:
        self._source = source
        self._tenant_id = tenant_id

    async def note_status(self, token: int, step: MoveStep, status: MoveStatus) -> None:
        """Write how far the move is. One that has committed keeps its positions. Raises `RetryableError`."""
        await self._note(token, step, _encoded(status) if step == MoveStep.OPEN else None)

    async def note_end(self, departure: Departure, certificate: Certificate) -> None:
        """Write the certificate of a move that has ended. Raises `RetryableError`."""
        detail = {"verdict": certificate.verdict, "certificate": certificate, "positions": departure.positions}
        await self._note(departure.move_token, MoveStep.DONE, _encoded(detail))

    async def note_failure(self, token: int, status: MoveStatus, error: str) -> None:
        """Write why the mover gives up, if the shard answers and the move has not ended."""
        detail = _encoded(msgspec.to_builtins(status) | {"error": scrub_text(error)})
        with contextlib.suppress(RetryableError, PermanentError):
            async with self._source.transaction() as connection:
                await connection.execute(QUERIES["note_failed_move"], self._tenant_id, token, detail)

    async def _note(self, token: int, step: MoveStep, detail: str | None) -> None:
        async with self._source.transaction() as connection:
            await connection.execute(QUERIES["note_move"], self._tenant_id, token, step, detail)


def _encoded(value: object) -> str:
    return msgspec.json.encode(value).decode()


NOTE_INTERVAL_S: Final = 2.0
STOPPED_WITHIN_S: Final = 2.0


@contextlib.asynccontextmanager
async def noted_as_running(
    source: ShardPool, tenant_id: str, token: Callable[[], int], *, is_pause: Callable[[], bool] = lambda: False
) -> AsyncIterator[None]:
    """Note every NOTE_INTERVAL_S that the command with the token *token()* runs, and at an error its end.

    Not in the pause of a move, which would wait for it. A silent shard ends nothing here.
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
