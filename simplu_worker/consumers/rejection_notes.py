"""Note rejected records on the shards of their tenants, so that their request ids answer `rejected`.

Those of a tenant without a home are noted on one of a few shards, a bounded number. A record that names no tenant is
noted by its request id alone, a message by its own id, a control message by a key of its tenant.

A note delays nothing, and may be dropped: its request id then answers `unknown`, with a `readUpTo` (docs/outcomes.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

import structlog

from simplu_worker.consumers.operation_taps import TAPS
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import RejectedRecord, control_request_id, is_storable, tenant_id_of
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import HOMELESS, Rejection
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import wait_any
from simplu_worker.vocabulary import Absence, DeadLetterReason, Source

NOTES_MAX: Final = 2_000  # that wait: about 1 KB each
BATCH_MAX_COUNT: Final = 500
KEY_MAX: Final = 2600  # bytes of the ids of a row: the most that the key of an index takes is 2704
KEPT_S: Final = 30.0  # a note waits no longer: it is written, or dropped
LOOK_UP_S: Final = 2.0  # for the shards of one batch
WRITE_S: Final = 5.0  # for one batch
AT_ONCE: Final = 8  # lookups, and writes
ABSENCE_MAX_AGE_S: Final = 60.0
ERROR_MAX: Final = 2_000  # characters
# The request ids of these operations have rows in the log.
NOTED_ELSEWHERE: Final = frozenset({DeadLetterReason.RETRIES_EXHAUSTED, DeadLetterReason.REQUEST_ID_REUSED})
UNPLACED: Final = ""  # in place of a shard, and of a tenant that is not named

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


class DeadLetterStore(Protocol):
    """Stores the dead letters of readers and receivers."""

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        """Return when all *letters* are stored; raise RetryableError when *stopping* is set before."""


class RejectionNotes:
    """The dead letters of *queue*, with a note of each rejected record."""

    def __init__(self, queue: DeadLetterStore, queue_name: str, gateway: ShardGateway) -> None:
        self._queue = queue
        self._queue_name = queue_name
        self._gateway = gateway
        self._waiting: deque[Rejection] = deque()
        self._has_work = asyncio.Event()
        self._is_written = asyncio.Event()
        self._is_written.set()

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        """Note the rejections of *letters*, and store these. Raises as the queue does."""
        self._add(rejections_of(letters))
        await self._queue.store(letters, stopping=stopping)
        if TAPS.open:
            TAPS.publish_letters(letters)

    def _add(self, rejections: Sequence[Rejection]) -> None:
        room = max(0, NOTES_MAX - len(self._waiting))
        self._waiting.extend(rejections[:room])
        _report_dropped(len(rejections) - room)
        if rejections:
            self._has_work.set()
            self._is_written.clear()

    async def run(self) -> None:
        """Write the notes until cancelled, each in one try."""
        while True:
            await self._has_work.wait()
            await self._write_batch()
            if not self._waiting:
                self._has_work.clear()
                self._is_written.set()

    async def flush(self, within_s: float) -> None:
        """Wait until all notes are written or dropped, at most *within_s*."""
        await wait_any(self._is_written, within_s=within_s)
        _report_dropped(len(self._waiting))

    async def _write_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX_COUNT, len(self._waiting)))]
        by_tenant = _grouped((one.tenant_id, one) for one in batch)
        shard_ids = await _try_each(by_tenant, self._find, within_s=LOOK_UP_S)
        by_shard = _grouped(
            (shard_id, one) for tenant_id, shard_id in shard_ids.items() for one in by_tenant[tenant_id]
        )
        written = await _try_each(
            by_shard, lambda shard_id: self._write(shard_id, by_shard[shard_id]), within_s=WRITE_S
        )
        _report_dropped(len(batch) - sum(written.values()))

    async def _find(self, tenant_id: str) -> str:
        if not tenant_id:
            return UNPLACED
        found = await self._gateway.find(tenant_id, absence_max_age_s=ABSENCE_MAX_AGE_S)
        if not isinstance(found, Absence):
            return found
        if found not in HOMELESS:
            raise RetryableError(f"tenant {tenant_id} is {found}")
        return UNPLACED

    async def _write(self, shard_id: str, rejections: Sequence[Rejection]) -> int:
        """Return how many of *rejections* are noted."""
        lookups = self._gateway.lookups
        if shard_id == UNPLACED:
            return len(rejections) * await lookups.note_unplaced_rejections(self._queue_name, rejections)
        homes = await lookups.note_rejections(shard_id, self._queue_name, rejections)
        here = [one for one in rejections if one.tenant_id in homes]  # others live elsewhere by now
        # Of another business than the tenant with the same id: without a home.
        unplaced = [one for one in here if homes[one.tenant_id] not in {"", one.business_id}]
        return len(here) - len(unplaced) + (await self._write(UNPLACED, unplaced) if unplaced else 0)


def _grouped(pairs: Iterable[tuple[str, Rejection]]) -> dict[str, list[Rejection]]:
    groups: defaultdict[str, list[Rejection]] = defaultdict(list)
    for key, rejection in pairs:
        groups[key].append(rejection)
    return groups


async def _try_each(
    keys: Iterable[str], work: Callable[[str], Awaitable[Result]], *, within_s: float
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    slots = asyncio.Semaphore(AT_ONCE)
    ends_at = loop_time() + within_s

    async def try_one(key: str) -> None:
        with contextlib.suppress(WorkerError, TimeoutError):
            async with asyncio.timeout_at(ends_at), slots:
                results[key] = await work(key)

    async with asyncio.TaskGroup() as tasks:
        for key in keys:
            tasks.create_task(try_one(key))
    return results


def _report_dropped(count: int) -> None:
    if count > 0:
        log.warning("rejection.unnoted", count=count)


def rejections_of(letters: Iterable[DeadLetter]) -> list[Rejection]:
    """Return the notes of *letters* by which a sender can ask."""
    noted: list[Rejection] = []
    for letter in letters:
        rejected: Sequence[DeadLetter | RejectedRecord]
        rejected = (letter,) if letter.parts is None else letter.parts.first_parts
        for one in rejected:
            key = _key_of(one)
            if key is not None and all(map(is_storable, key)) and sum(len(part.encode()) for part in key) <= KEY_MAX:
                error = one.error[:ERROR_MAX] if is_storable(one.error) else one.reason
                noted.append(Rejection(*key, one.reason, error, one.origin))
    return noted


def _key_of(one: DeadLetter | RejectedRecord) -> tuple[str, str, str] | None:
    """Return tenant, business and request to note; None for what nobody can ask for, or the log answers."""
    is_control = one.origin.source is Source.SQS and one.request_id is None
    if one.reason in NOTED_ELSEWHERE and not is_control:
        return None
    if one.business_id is None or one.location_id is None:
        unnamed_id = one.origin.message_id or one.request_id
        return None if unnamed_id is None else (UNPLACED, UNPLACED, unnamed_id)
    request_id = control_request_id(one.business_id, one.location_id) if is_control else one.request_id
    if request_id is None:
        return None
    return tenant_id_of(one.business_id, one.location_id), one.business_id, request_id
