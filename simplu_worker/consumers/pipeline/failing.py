"""Find out what becomes of the operations of a batch that failed by themselves, or met a lock, for every source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.consumers.operation_taps import count_outcomes
from simplu_worker.consumers.pipeline.results import Entry, NextTries
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Disposition, Operation, Outcome
from simplu_worker.operations.tries import (
    Attempts,
    Failed,
    GiveUp,
    HoldFor,
    Locked,
    RetryAfter,
    RetryRules,
    next_try,
)
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import DeadLetterReason, HoldReason, Retry, Source

TRIAL_COUNTS_S: Final = 5.0  # of a trial write
COUNTED: Final = frozenset({Disposition.FAILING, Disposition.LOCKED})

log = structlog.get_logger(__name__)


class FailingOperations:
    """The failing operations of one source on all shards."""

    def __init__(self, source: Source, gateway: ShardGateway, rules: RetryRules, draw: Callable[[], float]) -> None:
        self._source = source
        self._gateway = gateway
        self._rules = rules
        self._draw = draw
        self._attempts = Attempts()
        self._letters = Attempts()  # dead letters of operations whose shard has not taken their row yet
        self._trials: dict[str, tuple[float, bool]] = {}  # by shard: when it was last tried, and whether it refused

    async def find_next_tries(
        self, shard_id: str, batch: Sequence[Entry], outcomes: Sequence[Outcome], kinds: Iterable[Outcome]
    ) -> NextTries:
        """Count the failures of a batch, and its locked tenants; *kinds* are the different ones of *outcomes*."""
        tries = NextTries({}, {})
        if not any(outcome.disposition in COUNTED for outcome in kinds):
            return tries
        for entry, outcome in zip(batch, outcomes, strict=True):
            operation, why = entry.operation, outcome.disposition
            if why not in COUNTED or operation.tenant_id in tries.locked:
                continue
            if outcome.over_limit_s is not None:
                tries.locked[operation.tenant_id] = HoldFor(outcome.over_limit_s, HoldReason.OVER_LIMIT)
                instruments.RETRIES.labels(self._source, Retry.OVER_LIMIT).inc()
                log.info(
                    "tenant.over_limit", retry_in_s=round(outcome.over_limit_s, 2), **_facts_of(operation, shard_id)
                )
                continue
            attempts = self._attempts.count((why, *_key_of(operation)))
            facts = _facts_of(operation, shard_id, attempts)
            if why is Disposition.LOCKED:
                locked = next_try(Locked(), attempts, rules=self._rules, draw=self._draw())
                tries.locked[operation.tenant_id] = locked
                instruments.RETRIES.labels(self._source, Retry.LOCKED).inc()
                log.warning("tenant.locked", retry_in_s=round(locked.delay_s, 2), **facts)
                continue
            following = tries.failing[id(entry)] = await self._next_try(shard_id, outcome, attempts)
            if isinstance(following, RetryAfter):
                instruments.RETRIES.labels(self._source, Retry.FAILING).inc()
                log.warning("operation.failing", error=outcome.error, **facts)
        return tries

    def has_letter(self, operation: Operation) -> bool:
        """Return whether an operation that is given up needs no other dead letter, only its row."""
        return _key_of(operation) in self._letters

    def note_letter(self, operation: Operation) -> None:
        """Note that an operation that is given up has its dead letter, and no row yet."""
        self._letters.count(_key_of(operation))

    def note_given_up(
        self, operation: Operation, outcome: Outcome, given_up: GiveUp, *, shard_id: str, now: datetime
    ) -> None:
        """Count and log an operation that is given up, and has its row; one that is sent again begins anew."""
        self._letters.forget(_key_of(operation))
        self._attempts.forget((Disposition.FAILING, *_key_of(operation)))
        count_outcomes([operation], [outcome], now=now)
        log.error("operation.given_up", error=given_up.error, **_facts_of(operation, shard_id, given_up.attempts))

    async def _next_try(self, shard_id: str, outcome: Outcome, attempts: int) -> RetryAfter | GiveUp:
        failed = Failed(outcome.error or "", outcome.reason or DeadLetterReason.RETRIES_EXHAUSTED)
        following = next_try(failed, attempts, rules=self._rules)
        is_exhausted = isinstance(following, GiveUp) and following.reason is DeadLetterReason.RETRIES_EXHAUSTED
        if is_exhausted and await self._refuses_all(shard_id):
            return next_try(msgspec.structs.replace(failed, refuses_all=True), attempts, rules=self._rules)
        return following

    async def _refuses_all(self, shard_id: str) -> bool:
        tried_at, is_refusing = self._trials.get(shard_id, (float("-inf"), False))
        if loop_time() - tried_at > TRIAL_COUNTS_S:
            try:
                await self._gateway.try_write(shard_id)
            except (RetryableError, PermanentError) as exc:
                log.error("shard.refusing", shard_id=shard_id, error=str(exc))  # noqa: TRY400  (the shard's)
                is_refusing = True
            else:
                is_refusing = False
            self._trials[shard_id] = loop_time(), is_refusing
        return is_refusing


def _key_of(operation: Operation) -> tuple[str, str]:
    return operation.tenant_id, operation.request_id


def _facts_of(operation: Operation, shard_id: str, attempts: int | None = None) -> dict[str, object]:
    return {
        "queue": operation.origin.name if operation.origin.source is Source.SQS else None,
        "shard_id": shard_id,
        "attempts": attempts,
        "business_id": operation.business_id,
        "location_id": operation.location_id,
    }
