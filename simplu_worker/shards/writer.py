"""Apply a batch of operations to the shard their tenants live on, exactly once, in one transaction.

Why it is exactly once: the log rows are written before any effect, in the same transaction, and only operations whose
row this transaction wrote are applied. A batch that is tried again, by whomever, finds the rows of what was committed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple

import msgspec
import structlog

from simplu_worker.operations.operation import (
    DeadLetterReason,
    Disposition,
    Failure,
    Operation,
    Outcome,
)
from simplu_worker.operations.waves import plan_waves
from simplu_worker.shards.admission import HOLD, TenantRow, TenantState, admit, is_too_late
from simplu_worker.shards.claims import Claim, PositionChangedError, Standing
from simplu_worker.shards.operation_log import known_in_log, texts_of_times, write_log
from simplu_worker.shards.packing import packed
from simplu_worker.shards.pools import Connection, ShardPool
from simplu_worker.shards.queries import QUERIES
from simplu_worker.shards.redelivery import Encounter
from simplu_worker.shards.schema import SchemaState, check_schema
from simplu_worker.shards.shard_errors import (
    InvalidDataError,
    LostRaceError,
    ShardUnavailableError,
    StatementFailedError,
)
from simplu_worker.shards.shared_look import SharedLook
from simplu_worker.shards.stream_positions import mark_position, read_standing, write_position

RESULT_MAX_BYTES = 1024 * 1024  # contract §3: a list over 1 MiB is result_too_large
RACES_MAX = 5
RACE_PAUSE_MAX_S = 0.1

SUCCEEDED = Outcome(disposition=Disposition.APPLIED)
DUPLICATE = Outcome(disposition=Disposition.DUPLICATE)
INVALID_DATA = Outcome(disposition=Disposition.APPLIED, failure=Failure.INVALID_DATA)
GIVEN_UP = Outcome(disposition=Disposition.APPLIED, failure=Failure.RETRIES_EXHAUSTED)
REUSED = Outcome(
    disposition=Disposition.DEAD_LETTER,
    reason=DeadLetterReason.REQUEST_ID_REUSED,
    error="requestId: expected one not used before by a different operation; send it again under a new one",
)

KNOWN = {Encounter.REDELIVERY: DUPLICATE, Encounter.REUSE: REUSED}  # what the log had is not applied
STOPPING = frozenset({Disposition.HOLD, Disposition.UNEXPECTED})  # no later one of the tenant may be applied

log = structlog.get_logger(__name__)


class Sent(NamedTuple):
    """One operation of a batch, with what is known of it before the next try."""

    operation: Operation
    verdict: Outcome | None = None


class ShardWriter:
    """Applies batches to one shard."""

    def __init__(self, pool: ShardPool, *, tenant_wait: timedelta, draw: Callable[[], float] = random.random) -> None:
        self._pool = pool
        self._tenant_wait = tenant_wait
        self._draw = draw
        self._is_checked_for: object = None
        self._shared_look = SharedLook(self._look)

    async def apply(self, operations: Sequence[Operation], claim: Claim | None = None) -> list[Outcome]:
        """Apply *operations*, in effect one by one in their order, and return what became of each.

        With *claim*, every transaction also writes that into the reader's row, and is rolled back with
        `PositionChangedError` where that is not as the reader left it.

        Operations that Postgres refuses are found among the others. Those whose data it refuses fail alone, and the
        tenant's later ones are applied; one that fails for a reason nobody foresaw is UNEXPECTED, and its tenant's
        later ones are held.
        Raises `ShardUnavailableError`: then nothing is known of what was committed, and the same batch may be tried
        again.
        """
        await self._check(self._pool.connection)
        return await self._apply([Sent(operation) for operation in operations], claim)

    async def give_up(self, operation: Operation, claim: Claim | None = None) -> Outcome:
        """Write the row of an operation that will not be tried again; idempotent.

        Returns what its tenant's row or the log says instead, where they do. Raises as `apply`.
        """
        await self._check(self._pool.connection)
        try:
            (outcome,) = await self._committed(self._attempt([Sent(operation, GIVEN_UP)], claim))
        except InvalidDataError as exc:
            raise self._unwritable(exc) from exc
        return outcome

    async def probe(self) -> None:
        """Make sure that the shard can take operations now; many who ask at once share one look.

        Raises `TryAgainLaterError` when not.
        """
        await self._shared_look()

    async def _look(self) -> None:
        await self._pool.probe()
        await self._check(self._pool.fresh_connection)

    async def standing(self, stream: str, stream_shard_ids: Sequence[str]) -> Standing | None:
        """Return what the shard knows of stream shards; None where it has no schema, and so no tenant, yet.

        Raises `ShardUnavailableError`, also where another shard answers.
        """
        async with self._pool.connection() as connection:
            if not await self._has_schema(connection):
                return None
            return await read_standing(connection, stream, stream_shard_ids)

    async def adopt(self, claim: Claim, ancestors: Sequence[str]) -> Standing | None:
        """Return what the shard knows of a claim's stream shard and its ancestors, and leave a new token in its row.

        In one transaction: otherwise what an ancestor's row said might be lost, and nothing would tell the reader of
        the stream shard. Raises and returns None as `standing` does.
        """
        async with self._pool.transaction() as connection:
            if not await self._has_schema(connection):
                return None
            is_as_left = await mark_position(connection, claim)
            standing = await read_standing(connection, claim.stream, [claim.stream_shard_id, *ancestors])
            return msgspec.structs.replace(standing, is_as_left=is_as_left)

    async def touch(self, claims: Sequence[Claim]) -> list[Claim]:
        """Write *claims* beside no effect; return those whose rows are not as their readers left them.

        Not waited for on the disk: what is lost of it is claimed again. Raises `ShardUnavailableError`.
        """
        changed: list[Claim] = []
        with ExitStack() as attempts:
            tokens = [attempts.enter_context(claim.attempt()) for claim in claims]
            async with self._pool.transaction() as connection:
                await connection.execute(QUERIES["need_not_be_on_disk"])
                for claim, token in sorted(zip(claims, tokens, strict=True), key=lambda pair: pair[0].stream_shard_id):
                    try:
                        await write_position(connection, claim, token)
                    except PositionChangedError:
                        changed.append(claim)
        return changed

    async def forget_positions(self, stream: str, stream_shard_ids: Sequence[str]) -> None:
        """Delete the rows of stream shards past their retention. Raises `ShardUnavailableError`."""
        async with self._pool.connection() as connection:
            if await self._has_schema(connection):
                await connection.execute(QUERIES["forget_positions"], stream, list(stream_shard_ids))

    async def _apply(self, batch: Sequence[Sent], claim: Claim | None) -> list[Outcome]:
        """Apply *batch*, again and again with what was found of the operations that made it fail."""
        while True:
            attempt = self._attempt(batch, claim)
            try:
                return await self._committed(attempt)
            except InvalidDataError as exc:
                verdicts = await self._refused(attempt, exc)
                is_timeout = False
            except StatementFailedError as exc:
                verdicts = await self._failed(attempt, exc)
                is_timeout = exc.is_timeout
            if not verdicts:
                return await self._apply_parts(batch, cuts(attempt.suspects, is_timeout=is_timeout), claim)
            batch = [Sent(sent.operation, verdicts.get(place, sent.verdict)) for place, sent in enumerate(batch)]

    async def _apply_parts(self, batch: Sequence[Sent], places: Sequence[int], claim: Claim | None) -> list[Outcome]:
        """Apply *batch*, cut at *places*, part by part.

        What stops a tenant in one part holds it in the next ones, or a tenant that comes back between two transactions
        would have its operations out of order.
        """
        outcomes: list[Outcome] = []
        stopped: set[str] = set()
        for start, end in pairwise([0, *places, len(batch)]):
            part = batch[start:end]
            rest = [sent for sent in part if sent.operation.tenant_id not in stopped]
            applied = iter(await self._apply(rest, claim) if rest else ())
            outcomes += [HOLD if sent.operation.tenant_id in stopped else next(applied) for sent in part]
            stopped.update(
                sent.operation.tenant_id
                for sent, outcome in zip(part, outcomes[start:], strict=True)
                if outcome.disposition in STOPPING
            )
        return outcomes

    async def _refused(self, attempt: Attempt, exc: InvalidDataError) -> dict[int, Outcome]:
        """Return the places of the operations whose data Postgres refuses, or nothing when that is yet to be found.

        Those that it cannot even parse are found by asking for all at once.
        """
        undecided = {place for place, sent in enumerate(attempt.batch) if sent.verdict is None}
        found = undecided.intersection(await self._unstorable(attempt.batch))
        if not found and len(attempt.suspects) < 2:
            found = undecided.intersection(attempt.suspects)
            if not found:  # not even begun, or a row of the log itself
                raise self._unwritable(exc) from exc
        for place in sorted(found):
            ids = _ids(attempt.batch[place].operation)
            log.info("operation.refused", shard_id=self._pool.address.shard_id, error=str(exc), **ids)
        return dict.fromkeys(found, INVALID_DATA)

    async def _failed(self, attempt: Attempt, exc: StatementFailedError) -> dict[int, Outcome]:
        """Return the place of the operation that fails by itself, or nothing when that is yet to be found.

        Raises *exc* when no operation can be at fault, and `ShardUnavailableError` when the shard does not work.
        """
        if not attempt.suspects:
            raise exc
        if len(attempt.suspects) > 1:
            return {}
        await self._pool.probe()
        return {attempt.suspects[0]: Outcome(disposition=Disposition.UNEXPECTED, error=exc.error)}

    async def _unstorable(self, batch: Sequence[Sent]) -> list[int]:
        """Return the places of the operations whose text is JSON that Postgres does not take."""
        operations = [sent.operation for sent in batch]
        texts = [operation.data if operation.query is None else operation.query.members for operation in operations]
        async with self._pool.connection() as connection:
            rows = await connection.fetch(QUERIES["find_unstorable"], texts)
        return [row["position"] for row in rows]

    async def _check(self, connect: Callable[[], AbstractAsyncContextManager[Connection]]) -> None:
        """Check identity and schema at the first contact and after every change of address."""
        if self._is_checked_for is self._pool.address:
            return
        async with connect() as connection:
            if not await self._has_schema(connection):
                shard_id = self._pool.address.shard_id
                raise ShardUnavailableError(f"shard {shard_id}: its database is empty; no tenant is provisioned yet")

    async def _has_schema(self, connection: Connection) -> bool:
        """Tell whether the shard has our schema; looked at until it has, once for each address.

        Raises `ShardUnavailableError` when it is not to be touched. Whose database it is every new connection asks.
        """
        address = self._pool.address
        if self._is_checked_for is not address:
            if await check_schema(connection, address.shard_id) is SchemaState.EMPTY:
                return False
            self._is_checked_for = address
        return True

    def _attempt(self, batch: Sequence[Sent], claim: Claim | None) -> Attempt:
        return Attempt(batch, claim, tenant_wait=self._tenant_wait)

    async def _committed(self, attempt: Attempt) -> list[Outcome]:
        for _ in range(RACES_MAX):
            attempt.suspects = ()
            try:
                with attempt.claim.attempt() if attempt.claim else nullcontext() as token:
                    async with self._pool.transaction() as connection:
                        return await attempt.apply(connection, token)
            except LostRaceError:
                await asyncio.sleep(self._draw() * RACE_PAUSE_MAX_S)
        raise ShardUnavailableError(f"shard {self._pool.address.shard_id}: a batch lost {RACES_MAX} races in a row")

    def _unwritable(self, exc: InvalidDataError) -> ShardUnavailableError:
        return ShardUnavailableError(f"shard {self._pool.address.shard_id}: refuses a row of the log: {exc}")


def cuts(suspects: Sequence[int], *, is_timeout: bool) -> list[int]:
    """Return where to cut a batch, to find the one of several *suspects* that makes it fail.

    In two, each with half of the suspects. But a part with the culprit of a timeout takes as long as the whole did, so
    there each suspect is a part of its own: they need little more time than together, and the wait is had once.
    """
    if is_timeout:
        return sorted({place + offset for place in suspects for offset in (0, 1)})
    return [suspects[len(suspects) // 2]]


class Attempt:
    """One try at a batch; may be made again after a lost race.

    `suspects` are, after an error, the places of the operations that it can be due to: those of the statement that
    failed. None when it cannot be due to any.
    """

    def __init__(self, batch: Sequence[Sent], claim: Claim | None = None, *, tenant_wait: timedelta) -> None:
        self.batch = batch
        self.claim = claim
        self.suspects: Sequence[int] = ()
        self._operations = [sent.operation for sent in batch]
        self._tenant_wait = tenant_wait

    def __repr__(self) -> str:
        return f"Attempt({len(self.batch)} operations, {len(self.suspects)} suspects)"

    async def apply(self, connection: Connection, token: str | None = None) -> list[Outcome]:
        """Apply the batch within the transaction of *connection*; its claim, if any, under *token*."""
        if self.claim is not None and token is not None:
            await write_position(connection, self.claim, token)
        tenants = await _lock_tenants(connection, {operation.tenant_id for operation in self._operations})
        outcomes = self._admitted(tenants)
        await self._pass_over_known(connection, tenants, outcomes)
        logged = [
            place
            for place, outcome in enumerate(outcomes)
            if outcome is None or outcome.disposition is Disposition.APPLIED
        ]
        self.suspects = logged
        times = texts_of_times(self._operations)
        entries = [(self._operations[place], failure_of(outcomes[place])) for place in logged]
        met = await write_log(connection, entries, [times[place] for place in logged])
        for place, encounter in zip(logged, met, strict=True):
            if encounter in KNOWN:
                outcomes[place] = KNOWN[encounter]
        applied = [place for place, outcome in enumerate(outcomes) if outcome is None]
        self.suspects = applied
        for place, failure in await self._apply_waves(connection, applied, times):
            outcomes[place] = Outcome(disposition=Disposition.APPLIED, failure=failure)
        self.suspects = logged  # a deferred trigger speaks at the commit
        return [outcome or SUCCEEDED for outcome in outcomes]

    def _admitted(self, tenants: Mapping[str, TenantRow]) -> list[Outcome | None]:
        """Return what becomes of each operation without its being applied, or None; what stops a tenant holds it."""
        outcomes: list[Outcome | None] = []
        stopped: set[str] = set()
        for operation, verdict in self.batch:
            tenant_id = operation.tenant_id
            outcome = admit(operation, tenants.get(tenant_id), tenant_wait=self._tenant_wait) or verdict
            outcomes.append(HOLD if tenant_id in stopped else outcome)
            if outcome is not None and outcome.disposition in STOPPING:
                stopped.add(tenant_id)
        return outcomes

    async def _pass_over_known(
        self, connection: Connection, tenants: Mapping[str, TenantRow], outcomes: list[Outcome | None]
    ) -> None:
        """Make duplicates of those that came too late for their tenant and are in the log all the same.

        They were decided before the tenant was made anew, or were sent again from their dead letter.
        """
        late = [
            place
            for place, outcome in enumerate(outcomes)
            if outcome is not None
            and outcome.reason is DeadLetterReason.UNKNOWN_TENANT
            and self._is_too_late(self._operations[place], tenants)
        ]
        known = await known_in_log(connection, [self._operations[place] for place in late])
        for place, is_known in zip(late, known, strict=True):
            if is_known:
                outcomes[place] = DUPLICATE

    def _is_too_late(self, operation: Operation, tenants: Mapping[str, TenantRow]) -> bool:
        return is_too_late(operation, tenants.get(operation.tenant_id), tenant_wait=self._tenant_wait)

    async def _apply_waves(
        self, connection: Connection, applied: Sequence[int], times: Sequence[str]
    ) -> list[tuple[int, Failure]]:
        """Apply the operations *applied*, wave after wave in one go; return which could not take effect, and why."""
        operations = self._operations
        waves = [
            _columns([applied[place] for place in (*wave.reads, *wave.writes)], operations, times)
            for wave in plan_waves([operations[place] for place in applied])
        ]
        if not waves:
            return []
        rows = await connection.fetchmany(QUERIES["apply_wave"], waves)
        return [(row["place"], Failure(row["error"])) for row in rows]


async def _lock_tenants(connection: Connection, tenant_ids: Iterable[str]) -> dict[str, TenantRow]:
    rows = await connection.fetch(QUERIES["lock_tenants"], list(tenant_ids))
    return {
        row["id"]: TenantRow(
            business_id=row["business_id"],
            location_id=row["location_id"],
            state=TenantState(row["state"]),
            created_at=row["created_at"],
            moved_to=row["moved_to"],
        )
        for row in rows
    }


def _columns(places: Sequence[int], operations: Sequence[Operation], times: Sequence[str]) -> tuple[object, ...]:
    """Return the arguments of `apply_wave` for one wave: those of *operations*, and their *times*, at *places*."""
    wave = [operations[place] for place in places]
    queries = [operation.query for operation in wave]
    separator, *columns = packed(
        list(map(str, places)),
        [operation.tenant_id for operation in wave],
        [operation.request_id for operation in wave],
        [operation.kind for operation in wave],
        [operation.resource_type for operation in wave],
        [operation.resource_id or "" for operation in wave],
        [operation.data or (operation.query.members if operation.query else "") for operation in wave],
        [times[place] for place in places],
        [query.days.first.isoformat() if query and query.days.first else "" for query in queries],
        [query.days.last.isoformat() if query and query.days.last else "" for query in queries],
        [str(query.page) if query else "" for query in queries],
        [str(query.limit) if query else "" for query in queries],
    )
    return separator, RESULT_MAX_BYTES, *columns


def failure_of(outcome: Outcome | None) -> Failure | None:
    """Return the error that an operation goes into the log with."""
    return None if outcome is None else outcome.failure


def _ids(operation: Operation) -> dict[str, str]:
    return {
        "business_id": operation.business_id,
        "location_id": operation.location_id,
        "request_id": operation.request_id,
    }
