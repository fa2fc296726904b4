"""Apply order events (docs/interface.md): many in one transaction for each Postgres shard, in order within each group.

The messages of a call are split into chains, each a message group of a FIFO queue or one message of a standard queue,
where a group id promises no order. A chain goes on with its next operation only after the one before was applied or
given up for good, so that none is ever applied before an earlier one of its group, whatever their tenants and shards.
An operation is given up for its own failures alone: no wait of its message, behind another one or for a shard, counts.
Chains do not wait for each other: lanes gather their operations for a shard.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeAlias, assert_never

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.orders.decode import SOUND_EVENT, OrderRules, decode_order
from simplu_worker.consumers.sqs.orders.order_lane import FailedTry, LaneAnswer, OrderLane, SubmittedOrder
from simplu_worker.consumers.sqs.receive.failure_counts import FailureCounts
from simplu_worker.consumers.sqs.receive.verdicts import (
    Done,
    MessageIds,
    RetryHeld,
    RetryRules,
    ReturnToQueue,
    ToDeadLetter,
    Verdict,
    message_backoff_s,
    verdict_on_error,
    verdict_on_failure,
    verdict_on_rejected,
)
from simplu_worker.errors import PermanentError, RetryableError, places_of
from simplu_worker.metrics.instruments import RETRIES
from simplu_worker.operations.defects import decode_or_reject
from simplu_worker.operations.operation import Disposition, Operation, Outcome, RejectedRecord
from simplu_worker.operations.unknown_tenants import (
    UNKNOWN_TENANT_MARGIN,
    absence_max_age_s,
    is_overdue,
    unknown_tenant_error,
)
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import FailedOnShardError, TenantNotMadeError
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now
from simplu_worker.vocabulary import Absence, DeadLetterReason, QueueRetry, Source

CALL_MAX_S: Final = 2.0  # of one call: its undecided messages are held then, and delay no other message
LOOKUPS_AT_ONCE: Final = 64  # lookups of the shards of tenants
LOOKUPS_KEPT_MAX: Final = 4096
HOLD_BASE_S: Final = 0.25
HOLD_MAX_S: Final = 10.0  # a move pauses a tenant for far less
BEHIND_VERDICT: Final = ReturnToQueue(0)  # behind an undecided message of its group

log = structlog.get_logger(__name__)


class _Absent(msgspec.Struct, frozen=True):
    """A tenant without a shard, as of *asked_at*; *error* is why it was not provisioned at its first use."""

    why: Absence
    asked_at: datetime
    error: str | None = None

    def __str__(self) -> str:
        return f"its tenant is {self.why}" + (f": {self.error}" if self.error else "")


class _LookupCrash(msgspec.Struct, frozen=True):
    """Looking up the shard of a tenant ended with an unexpected error, of type *error*."""

    error: str


_LookupError: TypeAlias = RetryableError | PermanentError | _LookupCrash
_Home: TypeAlias = str | _Absent | _LookupError


class _Deferral(msgspec.Struct, frozen=True):
    """Why messages are deferred; with the tenant's ids when the tenant is the cause."""

    text: str
    business_id: str | None = None
    location_id: str | None = None

    @classmethod
    def of_tenant(cls, operation: Operation, text: str) -> _Deferral:
        """Return a deferral of the messages of one tenant."""
        return cls(text, operation.business_id, operation.location_id)


class _OrderMessage(msgspec.Struct, eq=False):
    """One message of a call with its decoded content, its verdict once it is decided, and why it is deferred."""

    message: Message
    decoded: Operation | RejectedRecord
    verdict: Verdict | None = None
    deferral: _Deferral | None = None

    @property
    def allows_next(self) -> bool:
        """Whether the next message of its chain may be applied in the same call.

        Not behind an operation that may yet be applied, if the worker dies before the dead letter is stored.
        """
        match self.verdict:
            case Done():
                return True
            case ToDeadLetter(before_delete=None, reason=reason):
                return reason is not DeadLetterReason.UNKNOWN_TENANT
            case _:
                return False


@asynccontextmanager
async def open_orders(
    gateway: ShardGateway,
    failures: FailureCounts,
    queue: Queue,
    *,
    rules: OrderRules,
    retries: RetryRules,
    draw: Callable[[], float] = random.random,
    utc: UtcClock = utc_now,
) -> AsyncIterator[OrderHandler]:
    """Open the handler of one order queue. Leaving cancels operations under way: leave it after its receiver ended."""
    async with asyncio.TaskGroup() as tasks:
        handler = OrderHandler(gateway, failures, queue, tasks, rules=rules, retries=retries, draw=draw, utc=utc)
        try:
            yield handler
        finally:
            handler.cancel()


class OrderHandler:
    """Handles the messages of one order queue."""

    def __init__(
        self,
        gateway: ShardGateway,
        failures: FailureCounts,
        queue: Queue,
        tasks: asyncio.TaskGroup,
        *,
        rules: OrderRules,
        retries: RetryRules,
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        self._gateway = gateway
        self._failures = failures
        self._queue = queue
        self._tasks = tasks
        self._rules = rules
        self._retries = retries
        self._draw = draw
        self._utc = utc
        self._lanes: dict[str, OrderLane] = {}
        self._lookups: dict[str, asyncio.Task[_Home]] = {}  # by tenant; one that no call waits for keeps its result
        self._slots = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    def __repr__(self) -> str:
        lanes, lookups = list(self._lanes.values()), sorted(self._lookups)
        return f"OrderHandler({self._queue.name!r}, lanes={lanes}, lookups={lookups})"

    def is_pending(self, request_id: str, tenant_id: str | None) -> bool:
        """Return whether an operation is on its way to a shard."""
        return any(
            operation.request_id == request_id and tenant_id in {None, operation.tenant_id}
            for lane in self._lanes.values()
            for operation in lane.operations()
        )

    def stats(self) -> dict[str, int]:
        """Return how many operations are on their way, by shard."""
        return {shard_id: len(lane) for shard_id, lane in self._lanes.items()}

    def cancel(self) -> None:
        """Cancel the lanes and the lookups."""
        for lane in self._lanes.values():
            lane.cancel()
        for task in self._lookups.values():
            task.cancel()

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Return the verdict on each message, in their order. Idempotent; raises nothing but a cancellation."""
        call = [_OrderMessage(message, self._decode(message)) for message in messages]
        chains: dict[str, list[_OrderMessage]] = {}
        for one in call:
            chains.setdefault(self._chain_of(one.message), []).append(one)
        deadline = loop_time() + CALL_MAX_S
        async with asyncio.TaskGroup() as tasks:
            for chain, members in chains.items():
                tasks.create_task(self._decide_chain(chain, members, deadline))
        self._log_deferred(call)
        return [BEHIND_VERDICT if one.verdict is None else one.verdict for one in call]

    def _log_deferred(self, call: Sequence[_OrderMessage]) -> None:
        """Log deferred messages: one line for each cause, not for each message."""
        by_cause: defaultdict[_Deferral, list[float]] = defaultdict(list)
        for one in call:
            if one.deferral is not None and isinstance(one.verdict, ReturnToQueue | RetryHeld):
                by_cause[one.deferral].append(one.verdict.delay_s)
        for deferral, delays_s in by_cause.items():
            RETRIES.labels(Source.SQS, QueueRetry.DEPENDENCY).inc(len(delays_s))
            log.warning(
                "orders.deferred",
                queue=self._queue.name,
                count=len(delays_s),
                retry_in_s=round(min(delays_s), 2),
                error=deferral.text,
                business_id=deferral.business_id,
                location_id=deferral.location_id,
            )

    def _decode(self, message: Message) -> Operation | RejectedRecord:
        origin, own_id = self._queue.origin_of(message), message.deduplication_id
        decode = partial(decode_order, message.body, message.attributes, origin, self._rules, deduplication_id=own_id)
        sound = partial(decode_order, SOUND_EVENT, {}, origin, self._rules, deduplication_id="a")
        return decode_or_reject(decode, origin, sound=sound)

    def _chain_of(self, message: Message) -> str:
        return message.group_id or message.message_id if self._queue.is_fifo else message.message_id

    async def _decide_chain(self, chain: str, members: Sequence[_OrderMessage], deadline: float) -> None:
        """Decide the messages of a chain in their order, until one of them is not decided for good."""
        position = 0
        while position < len(members):
            run = _run_from(members, position)
            await self._decide_run(chain, run, deadline)
            position += len(run)
            if not all(one.allows_next for one in run):
                _defer_behind(members)
                return

    async def _decide_run(self, chain: str, run: Sequence[_OrderMessage], deadline: float) -> None:
        """Decide the operations of one tenant and the rejected messages among them, while each allows the next."""
        pending = [(one, one.decoded) for one in run if isinstance(one.decoded, Operation)]
        for one in run:
            if isinstance(one.decoded, RejectedRecord):
                one.verdict = verdict_on_rejected(one.decoded)
        if not pending:
            return
        arrivals = [one.message.sent_at for one, _ in pending]
        max_age_s = absence_max_age_s(arrivals, now=self._utc(), tenant_wait=self._retries.tenant_wait)
        home = await self._find_home(pending[0][1], deadline, max_age_s)
        if isinstance(home, str):
            await self._apply(home, chain, pending, deadline)
            return
        for one, operation in pending:
            self._decide_homeless(one, operation, home)

    async def _apply(
        self, shard_id: str, chain: str, pending: Sequence[tuple[_OrderMessage, Operation]], deadline: float
    ) -> None:
        lane = self._lanes.get(shard_id)
        if lane is None:
            lane = self._lanes[shard_id] = OrderLane(
                shard_id, self._gateway, self._failures, self._tasks, queue_name=self._queue.name, utc=self._utc
            )
        entries = lane.submit(
            chain,
            [SubmittedOrder(one.message.message_id, operation, one.message.attributes) for one, operation in pending],
        )
        if not lane.is_stuck:
            await asyncio.wait([entry.answer for entry in entries], timeout=max(0.0, deadline - loop_time()))
        for (one, operation), entry in zip(pending, entries, strict=True):
            self._decide_answered(one, operation, shard_id, lane.collect(entry))
            if not one.allows_next:
                return

    async def _find_home(self, operation: Operation, deadline: float, max_age_s: float) -> _Home | None:
        """Return the shard of a tenant, or why there is none; None when that is not known before *deadline*.

        A result "not registered" may be *max_age_s* old.
        """
        tenant_id = operation.tenant_id
        if (shard_id := self._gateway.cached_shard_id(tenant_id)) is not None:
            return shard_id
        task = self._lookups.get(tenant_id)
        if task is None:
            self._forget_uncollected()
            task = self._lookups[tenant_id] = self._tasks.create_task(
                self._look_up(operation, max_age_s), name=f"ask:{tenant_id}"
            )
        await asyncio.wait([task], timeout=max(0.0, deadline - loop_time()))
        if not task.done():
            return None
        if self._lookups.get(tenant_id) is task:
            del self._lookups[tenant_id]
        return task.result()

    async def _look_up(self, operation: Operation, max_age_s: float) -> _Home:
        async with self._slots:
            asked_at = self._utc() - timedelta(seconds=max_age_s)
            try:
                found = await self._gateway.find(operation.tenant_id, absence_max_age_s=max_age_s)
                if found is Absence.NOT_HERE:
                    name = (operation.business_id, operation.location_id)
                    found = await self._gateway.provision_on_first_use(operation.tenant_id, [name])
            except TenantNotMadeError as exc:
                return _Absent(Absence.NOT_HERE, asked_at, str(exc))
            except (RetryableError, PermanentError) as exc:
                return exc
            except Exception as exc:  # noqa: BLE001  # a bug in the lookup of one tenant must not end the others
                error = exc.error if isinstance(exc, FailedOnShardError) else type(exc).__name__
                log.error(  # noqa: TRY400  # without the message of the exception: it may quote an event
                    "order.failed",
                    queue=self._queue.name,
                    shard_id=None,
                    message_id=None,
                    business_id=None,
                    location_id=None,
                    error=error,
                    traceback=places_of(exc),
                )
                return _LookupCrash(error)
        return _Absent(found, asked_at) if isinstance(found, Absence) else found

    def _forget_uncollected(self) -> None:
        if len(self._lookups) > LOOKUPS_KEPT_MAX:
            self._lookups = {key: task for key, task in self._lookups.items() if not task.done()}

    def _decide_homeless(self, one: _OrderMessage, operation: Operation, home: _Absent | _LookupError | None) -> None:
        """Decide a message of a tenant without a shard."""
        match home:
            case None:
                self._hold(one, _Deferral("no answer yet to where tenants live"))
            case RetryableError() | PermanentError():
                self._hold_for_outage(one, operation, home)
            case _LookupCrash():
                failed = FailedTry(home.error, self._failures.remember(one.message.message_id))
                one.verdict = self._verdict_on_failure(one, operation, None, failed)
            case _Absent(why=Absence.UNREGISTERED):
                self._decide_unregistered(one, operation, home.asked_at)
            case _Absent():
                self._hold(one, _Deferral.of_tenant(operation, str(home)))
            case _:
                assert_never(home)

    def _decide_answered(
        self, one: _OrderMessage, operation: Operation, shard_id: str, answer: LaneAnswer | None
    ) -> None:
        """Decide a message by the answer of its shard."""
        match answer:
            case None:
                self._hold(one, _Deferral(f"no answer yet from shard {shard_id}"))
            case RetryableError():
                self._hold_for_outage(one, operation, answer)
            case FailedTry():
                one.verdict = self._verdict_on_failure(one, operation, shard_id, answer)
            case Outcome():
                self._decide_outcome(one, operation, shard_id, answer)
            case _:
                assert_never(answer)

    def _decide_outcome(self, one: _OrderMessage, operation: Operation, shard_id: str, outcome: Outcome) -> None:
        match outcome.disposition:
            case Disposition.APPLIED | Disposition.DUPLICATE:
                one.verdict = Done()
            case Disposition.DEAD_LETTER:
                reason = outcome.reason or DeadLetterReason.INVALID_MESSAGE
                one.verdict = ToDeadLetter(reason, outcome.error or "", _ids_of(operation))
            case Disposition.HOLD:
                text = f"its tenant does not live on shard {shard_id} now"
                self._hold(one, _Deferral.of_tenant(operation, text))
            case Disposition.LOCKED:
                text = f"another transaction keeps rows of its tenant locked on shard {shard_id}"
                self._hold(one, _Deferral.of_tenant(operation, text))
            case Disposition.UNEXPECTED:
                raise AssertionError("the lane answers a failed try with its number")
            case _:
                assert_never(outcome.disposition)

    def _hold_for_outage(
        self, one: _OrderMessage, operation: Operation, error: RetryableError | PermanentError
    ) -> None:
        one.deferral = _Deferral(str(error))
        # A PermanentError is about an address that may not be used: a person may correct that.
        outage = error if isinstance(error, RetryableError) else RetryableError(str(error))
        one.verdict = verdict_on_error(outage, one.message, _ids_of(operation), draw=self._draw())

    def _hold(self, one: _OrderMessage, deferral: _Deferral) -> None:
        one.deferral = deferral
        try_count = one.message.try_count
        one.verdict = RetryHeld(backoff_s(try_count, draw=self._draw(), base_s=HOLD_BASE_S, max_s=HOLD_MAX_S))

    def _decide_unregistered(self, one: _OrderMessage, operation: Operation, asked_at: datetime) -> None:
        """Hold a message until it is overdue, by a "not registered" that was asked for after that."""
        message, tenant_wait = one.message, self._retries.tenant_wait
        if is_overdue(message.sent_at, now=asked_at, tenant_wait=tenant_wait):
            error = unknown_tenant_error(tenant_wait)
            one.verdict = ToDeadLetter(DeadLetterReason.UNKNOWN_TENANT, error, _ids_of(operation))
            return
        rest_s = (message.sent_at + tenant_wait + UNKNOWN_TENANT_MARGIN - self._utc()).total_seconds()
        delay_s = message_backoff_s(message, draw=self._draw())
        one.deferral = _Deferral.of_tenant(operation, f"its tenant is {Absence.UNREGISTERED}")
        one.verdict = RetryHeld(max(HOLD_BASE_S, min(delay_s, rest_s)))

    def _verdict_on_failure(
        self, one: _OrderMessage, operation: Operation, shard_id: str | None, failed: FailedTry
    ) -> Verdict:
        verdict = verdict_on_failure(failed.error, failed.failure_count, _ids_of(operation), rules=self._retries)
        if isinstance(verdict, RetryHeld):
            log.warning(
                "operation.failing",
                queue=self._queue.name,
                shard_id=shard_id,
                attempts=failed.failure_count,
                error=failed.error,
                business_id=operation.business_id,
                location_id=operation.location_id,
            )
            return verdict
        if shard_id is None:
            return verdict
        give_up = partial(self._give_up, shard_id, operation, one.message.message_id, verdict)
        return msgspec.structs.replace(verdict, before_delete=give_up)

    async def _give_up(self, shard_id: str, operation: Operation, message_id: str, verdict: ToDeadLetter) -> None:
        """Write the row of an operation that is given up. Raises `RetryableError` when that cannot be done now."""
        outcome = await self._gateway.give_up(shard_id, operation)
        if outcome.disposition is Disposition.HOLD:
            raise RetryableError(f"a tenant does not live on shard {shard_id} now, where its operation failed")
        log.error(
            "operation.given_up",
            queue=self._queue.name,
            shard_id=shard_id,
            attempts=verdict.attempts,
            error=verdict.error,
            business_id=operation.business_id,
            location_id=operation.location_id,
        )
        await self._failures.forget(shard_id, operation.tenant_id, message_id)


def _run_from(members: Sequence[_OrderMessage], position: int) -> Sequence[_OrderMessage]:
    """Return the messages from *position* on that belong to one tenant, with the rejected messages among them."""
    tenant_id: str | None = None
    for end in range(position, len(members)):
        decoded = members[end].decoded
        if isinstance(decoded, Operation):
            if tenant_id not in {None, decoded.tenant_id}:
                return members[position:end]
            tenant_id = decoded.tenant_id
    return members[position:]


def _defer_behind(members: Sequence[_OrderMessage]) -> None:
    """Defer the messages behind the first of a chain that does not allow the next.

    Behind a dead letter they are handled again as soon as it is stored; further dead letters are stored with it.
    """
    first = next(index for index, one in enumerate(members) if not one.allows_next)
    is_dead_letter = isinstance(members[first].verdict, ToDeadLetter)
    for one in members[first + 1 :]:
        if not (is_dead_letter and isinstance(one.verdict, ToDeadLetter)):
            one.verdict, one.deferral = RetryHeld(0.0) if is_dead_letter else BEHIND_VERDICT, None


def _ids_of(operation: Operation) -> MessageIds:
    return MessageIds(operation.business_id, operation.location_id, operation.request_id, operation.resource_id)
