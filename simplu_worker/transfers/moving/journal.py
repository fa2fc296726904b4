"""What a mover writes into the journal of the source beside its steps, for people and for metrics."""

from __future__ import annotations

import contextlib

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.settling.rows import Departure
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.transfers.moving.types import Certificate, MoveStatus
from simplu_worker.transfers.sql_files import QUERIES
from simplu_worker.vocabulary import MoveStep


class MoveJournal:
    """The row of a tenant in the journal of the shard that it leaves. A write with an older token changes nothing."""

    def __init__(self, source: ShardPool, tenant_id: str) -> None:
        self._source = source
        self._tenant_id = tenant_id

    def __repr__(self) -> str:
        return f"MoveJournal({self._tenant_id})"

    async def note_status(self, token: int, step: MoveStep, status: MoveStatus) -> None:
        """Write how far the move is, which also shows that its mover runs. One that has committed keeps its positions.

        Raises `RetryableError` if the shard does not answer.
        """
        await self._note(token, step, _encoded(status) if step == MoveStep.OPEN else None)

    async def note_end(self, departure: Departure, certificate: Certificate) -> None:
        """Write the certificate of a move that has ended. Raises as `note_status`."""
        detail = {"verdict": certificate.verdict, "certificate": certificate, "positions": departure.positions}
        await self._note(departure.move_token, MoveStep.DONE, _encoded(detail))

    async def note_failure(self, token: int, status: MoveStatus, error: str) -> None:
        """Write how far the mover got, and why it gives up, if the shard answers and the move has not ended."""
        detail = _encoded(msgspec.to_builtins(status) | {"error": scrub_text(error)})
        with contextlib.suppress(RetryableError, PermanentError):
            async with self._source.transaction() as connection:
                await connection.execute(QUERIES["note_failed_move"], self._tenant_id, token, detail)

    async def _note(self, token: int, step: MoveStep, detail: str | None) -> None:
        async with self._source.transaction() as connection:
            await connection.execute(QUERIES["note_move"], self._tenant_id, token, step, detail)


def _encoded(value: object) -> str:
    return msgspec.json.encode(value).decode()
