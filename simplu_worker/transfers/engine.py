"""The one way in which transfers run: noted in the journal, again after failures that pass, at a pace.

Again: while a shard is silent, after a lost race, and with fewer rows after a timeout. At a pace: a chunk of rows is a
transaction of about the same time, whatever the rows are, with a rest behind it, so that both shards have time for
others. The journal has the step of a transfer, how far it is, and that its command runs. It is no lock of a session, as
that would end with each transaction behind a pooler.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog

from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.shards.postgres.errors import LostRaceError, StatementFailedError, ValueRefusedError, fewer_after
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.postgres.queries import affected_count
from simplu_worker.shards.settling import FIRST, RowKey, Transfer, TransferRefusedError, transfer_of
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.clock import loop_time
from simplu_worker.transfers import QUERIES
from simplu_worker.vocabulary import TransferKind, TransferStep

T = TypeVar("T")

PATIENCE_S: Final = 60.0  # in which a shard that does not answer may come back
PAUSE_S: Final = 0.5  # before each new try
NOTE_INTERVAL_S: Final = 2.0
STOPPED_WITHIN_S: Final = 2.0

log = structlog.get_logger(__name__)


class Journal(msgspec.Struct, frozen=True):
    """The row of a transfer in the journal of one shard; a command without its *token* notes nothing."""

    tenant_id: str
    kind: TransferKind
    token: str
    home: str | None = None  # the schema with the journal during an adoption, while another program has the shard's

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

    async def take(self, connection: Connection, step: TransferStep) -> Transfer | None:
        """Give the row this token and *step*; None for a transfer that is done, unless for a cleanup."""
        row = await connection.fetchrow(QUERIES["take_transfer"], self.tenant_id, self.kind, self.token, step)
        return None if row is None else transfer_of(row)

    async def note_command(self, shard: ShardPool, *, has_gone_on: bool = False, **facts: Any) -> None:
        """Note that the command runs, and goes on, with *facts* about it. What the shard answers changes nothing."""
        with contextlib.suppress(WorkerError):
            async with shard.transaction() as connection:
                with connection.working_in(self.home or connection.home):
                    await connection.execute(
                        QUERIES["note_command"], self.tenant_id, self.kind, self.token, _encoded(facts), has_gone_on
                    )


def _encoded(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


class TransferStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How far a transfer is; *row_total* is the number of rows to copy, 0 while it is unknown."""

    phase: str = ""
    row_count: int = 0
    byte_count: int = 0
    row_total: int = 0


class TransferEngine(ABC, Generic[T]):
    """Runs one transfer of a tenant to its end, however often it begins again.

    A kind says how to `go_on`: read the rows of both sides, ask a pure function for the next step, and take it and the
    ones behind it. Each is a transaction that checks the token and notes the step: a killed engine leaves nothing else.
    """

    def __init__(
        self,
        shard: ShardPool,
        tenant_id: str,
        show: Callable[[TransferStatus], None],
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._shard = shard  # with the journal
        self._tenant_id = tenant_id
        self._show = show
        self._clock = clock
        self.status = TransferStatus()

    @property
    @abstractmethod
    def journal(self) -> Journal:
        """The row of this engine."""

    @property
    @abstractmethod
    def progress(self) -> object:
        """A value that changes while the transfer goes on."""

    @property
    def has_pause(self) -> bool:
        """Whether the tenant waits right now, for milliseconds: nothing is noted then."""
        return False

    @abstractmethod
    def describe_state(self) -> str:
        """Return in which state the tenant is, and which command comes next."""

    @abstractmethod
    async def go_on(self) -> T:
        """Go on by the rows of both sides; return the certificate."""

    async def prepare_again(self) -> None:
        """Do what has to come before another try."""

    def _tell(self, phase: str, row_count: int, row_total: int = 0) -> None:
        self.status = TransferStatus(phase, row_count, row_total=row_total)
        self._show(self.status)

    async def run(self) -> T:
        """Transfer the tenant, or go on with its transfer; return the certificate.

        Raises `PermanentError` if that is not possible, and `RetryableError` after a minute without progress, with the
        state of the tenant.
        """
        noting = asyncio.create_task(self._keep_noting(), name=f"note-running:{self._tenant_id}")
        try:
            return await self._run_patiently()
        except BaseException:
            noting.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOPPED_WITHIN_S):
                    await asyncio.shield(self.journal.note_command(self._shard, stopped=True))
            raise
        finally:
            noting.cancel()
            await asyncio.gather(noting, return_exceptions=True)

    async def _keep_noting(self) -> None:
        noted = self.status
        while True:
            await asyncio.sleep(NOTE_INTERVAL_S)
            if not self.has_pause:
                before, noted = noted, self.status
                facts = msgspec.to_builtins(noted)
                await self.journal.note_command(self._shard, has_gone_on=noted != before, **facts)

    async def _run_patiently(self) -> T:
        seen, since = self.progress, self._clock()
        while True:
            try:
                return await self.go_on()
            except (PermanentError, ValueRefusedError) as exc:
                is_stated = isinstance(exc, TransferRefusedError)
                stated = exc if is_stated else TransferRefusedError(f"{exc}; {self.describe_state()}")
                await self._note_failure(str(stated))
                raise stated from (None if is_stated else exc)
            except (LostRaceError, RetryableError) as exc:
                if (now_seen := self.progress) != seen:
                    seen, since = now_seen, self._clock()
                if self._clock() - since > PATIENCE_S:
                    await self._note_failure(str(exc))
                    raise RetryableError(f"{self._tenant_id}: {exc}; {self.describe_state()}") from exc
                await asyncio.sleep(PAUSE_S)
                phase = self.status.phase
                log.info("transfer.again", tenant_id=self._tenant_id, phase=phase, error=str(exc))
                await self.prepare_again()

    async def _note_failure(self, error: str) -> None:
        await self.journal.note_command(self._shard, **msgspec.to_builtins(self.status), error=scrub_text(error))


async def run_until_won(run: Callable[[], Awaitable[T]], *, tries: int) -> T:
    """Run *run*, which waits for a moment without others' batches; the last try raises `LostRaceError`."""
    for _ in range(tries - 1):
        with contextlib.suppress(LostRaceError):
            return await run()
        await asyncio.sleep(PAUSE_S)
    return await run()


async def run_in_pages(run: Callable[[int], Awaitable[int]], *, limit: int) -> int:
    """Run *run*, of at most *limit* rows, until it handles fewer; return the sum. After a timeout with fewer."""
    total = 0
    while True:
        try:
            count = await run(limit)
        except StatementFailedError as exc:
            limit = fewer_after(exc, limit)
            continue
        total += count
        if count < limit:
            return total


ROWS_FIRST: Final = 200  # they may be of some MB each
ROWS_MIN: Final = 200  # unless so many have taken too long
ROWS_MAX: Final = 100_000
CHUNK_S: Final = 0.1  # a chunk is a transaction on the target
REST_SHARE: Final = 0.5  # of the time that a chunk took: others find both shards at rest then
GROWTH: Final = 4
SLOW_RATIO: Final = 4.0  # an answer that takes so many times the usual time shows that a shard is busy
SLOW_MIN_S: Final = 0.05
REST_MAX_S: Final = 2.0
SMALL_ROUND: Final = 100  # rows: a round of so many or fewer leaves nothing to win by another one
SHORT_ROUND_SHARE: Final = 0.25  # of the longest pause: a round that takes no longer is short


class ChunkPace(msgspec.Struct, frozen=True):
    """The size of the next chunk, which is to take *chunk_s*, and the rest before it; *most* is the largest for now."""

    row_count: int = ROWS_FIRST
    rest_s: float = 0.0
    usual_answer_s: float = 0.0  # of the smallest statement on either shard, the best so far
    most: int = ROWS_MAX
    chunk_s: float = CHUNK_S
    rest_share: float = REST_SHARE


def next_pace(pace: ChunkPace, *, row_count: int, took_s: float, answer_s: float) -> ChunkPace:
    """Return the pace after a chunk of *row_count* rows that took *took_s*.

    While *answer_s*, of a tiny statement on the slower shard, is high, chunks get smaller and rests longer.
    """
    usual_s = min(pace.usual_answer_s or answer_s, answer_s)
    most = pace.most if took_s > pace.chunk_s else min(ROWS_MAX, pace.most * GROWTH)
    is_slow = answer_s > max(SLOW_MIN_S, SLOW_RATIO * usual_s)
    if is_slow:
        size, rest_s = pace.row_count // 2, max(pace.rest_s * 2, took_s)
    else:
        fitting = round(min(ROWS_MAX, row_count * pace.chunk_s / took_s)) if took_s > 0 and row_count else ROWS_MAX
        size, rest_s = min(pace.row_count * GROWTH, fitting), pace.rest_share * took_s
    size, rest_s = min(most, max(ROWS_MIN, size)), min(REST_MAX_S, rest_s)
    return msgspec.structs.replace(pace, row_count=size, rest_s=rest_s, usual_answer_s=usual_s, most=most)


def is_last_round(row_count: int, took_s: float, max_pause_s: float) -> bool:
    """Return whether a tenant can be fenced after a round of *row_count* rows that took *took_s*."""
    return took_s <= max_pause_s * SHORT_ROUND_SHARE or (row_count <= SMALL_ROUND and took_s <= max_pause_s)


def slower_after(error: StatementFailedError, pace: ChunkPace) -> ChunkPace:
    """Return the pace after a chunk that failed. Raises *error* unless fewer rows may avoid it."""
    size = fewer_after(error, min(pace.row_count, pace.most))
    return msgspec.structs.replace(pace, row_count=size, most=size)


class Chunk(msgspec.Struct, frozen=True):
    """What was done about a chunk of rows: *end* is the key of the last one, None if it has all that was left.

    *answer_s* is the time of a tiny statement on the slower shard.
    """

    end: RowKey | None
    row_count: int
    answer_s: float


class Walker:
    """Goes through rows in the order of their keys, in chunks at a pace that it keeps from one walk to the next."""

    def __init__(self, pace: ChunkPace | None = None, *, clock: Callable[[], float] = loop_time) -> None:
        self._pace = pace or ChunkPace()
        self._clock = clock

    async def walk(
        self,
        handle: Callable[[RowKey, int], Awaitable[Chunk]],
        after: RowKey | None = FIRST,
        *,
        within_transaction: bool = False,
    ) -> None:
        """Call *handle* with the key before a chunk and the most rows of it, until a chunk has no end.

        After a timeout again with fewer rows, unless all is *within_transaction*, which has to be begun again.
        """
        while after is not None:
            await asyncio.sleep(self._pace.rest_s)
            began_at = self._clock()
            try:
                chunk = await handle(after, self._pace.row_count)
            except StatementFailedError as exc:
                self._pace = slower_after(exc, self._pace)
                if within_transaction:
                    raise
                continue
            after = chunk.end
            took_s = self._clock() - began_at
            self._pace = next_pace(self._pace, row_count=chunk.row_count, took_s=took_s, answer_s=chunk.answer_s)
