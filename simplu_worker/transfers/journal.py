"""What the command of a transfer writes into the journal of a shard: its step, how far it is, and that it runs.

This is no lock of a session, as that would end with each transaction behind a pooler.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from simplu_worker.errors import WorkerError
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.settling import Transfer, transfer_of
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.transfers import QUERIES
from simplu_worker.vocabulary import TransferKind, TransferStep

NOTE_INTERVAL_S: Final = 2.0
STOPPED_WITHIN_S: Final = 2.0


class Journal(msgspec.Struct, frozen=True):
    """The row of a transfer in the journal of one shard; a command without its *token* notes nothing."""

    tenant_id: str
    kind: TransferKind
    token: str

    async def open(self, connection: Connection, step: TransferStep, *, place: str, detail: object = None) -> None:
        """Begin the transfer, or begin it again; without *detail* that of before stays."""
        await connection.execute(
            QUERIES["open_transfer"], self.tenant_id, self.kind, place, self.token, step, _encoded(detail)
        )

    async def note(
        self, connection: Connection, step: TransferStep, detail: object = None, *, writes: int | None = None
    ) -> bool:
        """Write the step, and the detail if given; return whether the row had the token, and after *writes* notes."""
        status = await connection.execute(
            QUERIES["note_transfer"], self.tenant_id, self.kind, self.token, step, _encoded(detail), writes
        )
        return affected_count(status) == 1

    async def take(self, connection: Connection, step: TransferStep | None = None) -> Transfer | None:
        """Give the row this token, with *step*; without a step, None for a transfer that is done."""
        row = await connection.fetchrow(QUERIES["take_transfer"], self.tenant_id, self.kind, self.token, step)
        return None if row is None else transfer_of(row)

    async def note_command(self, shard: ShardPool, **facts: Any) -> None:
        """Note that the command runs, with *facts* about it. What the shard answers changes nothing."""
        with contextlib.suppress(WorkerError):
            async with shard.transaction() as connection:
                await connection.execute(
                    QUERIES["note_command"], self.tenant_id, self.kind, self.token, _encoded(facts)
                )

    async def note_failure(self, shard: ShardPool, status: object, error: str) -> None:
        """Write how far the command got, and why it gives up, if the transfer has not ended."""
        await self.note_command(shard, **msgspec.to_builtins(status), error=scrub_text(error))


def _encoded(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


@contextlib.asynccontextmanager
async def noted_as_running(
    shard: ShardPool, journal: Callable[[], Journal], *, is_pause: Callable[[], bool] = lambda: False
) -> AsyncIterator[None]:
    """Note every NOTE_INTERVAL_S that the command of *journal()* runs, and at an error its end.

    Not in the pause of a move, which would wait for it. A silent shard ends nothing here.
    """

    async def keep_noting() -> None:
        while True:
            await asyncio.sleep(NOTE_INTERVAL_S)
            if not is_pause():
                await journal().note_command(shard)

    noting = asyncio.create_task(keep_noting(), name=f"note-running:{journal().tenant_id}")
    try:
        yield
    except BaseException:
        noting.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOPPED_WITHIN_S):
                await asyncio.shield(journal().note_command(shard, stopped=True))
        raise
    finally:
        noting.cancel()
        await asyncio.gather(noting, return_exceptions=True)
