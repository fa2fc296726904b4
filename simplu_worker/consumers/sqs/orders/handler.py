"""Apply order events (contract §5): many in one transaction for each Postgres shard, in order within each group.

What is handled at once is taken apart into chains, each a message group of a FIFO queue or one message of a standard
queue, whose group id promises no order. A chain goes on with its next operation only after the one before was applied
or given up for good, so that none is ever applied before an earlier one of its group, whatever tenants and shards they
belong to. Chains do not wait for each other: lanes gather what they have for a shard.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeAlias, assert_never

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.orders.decode import decode_order
from simplu_worker.consumers.sqs.orders.order_lane import Answer, Crash, OrderLane
from simplu_worker.consumers.sqs.receive.verdicts import (
    TROUBLE_BASE_S,
    TROUBLE_MAX_S,
    Done,
    RetryHeld,
    ReturnToQueue,
    ToDeadLetter,
    Verdict,
    after_trouble,
    after_unexpected,
)
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.metrics.instruments import RETRIES
from simplu_worker.operations.operation import (
    DeadLetterReason,
    Disposition,
    Operation,
    Outcome,
    Rejected,
)
from simplu_worker.operations.unknown_tenants import (
    UNKNOWN_TENANT_MARGIN,
    absence_max_age_s,
    is_overdue,
    unknown_tenant_error,
)
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.types import Absence, TenantNotMadeError
from simplu_worker.timing.backoff import backoff_s
from simplu_worker.timing.clock import UtcClock, loop_time, utc_now

PATIENCE_S: Final = 2.0  # for all of one call: what is not decided then waits in hand, and keeps nobody else waiting
ASKED_AT_ONCE: Final = 64  # tenants whose shard is asked for
ANSWERS_KEPT_MAX: Final = 4096
WAIT_BASE_S: Final = 0.25
WAIT_MAX_S: Final = 10.0  # a move pauses a tenant for far less
BEHIND: Final = ReturnToQueue(0)  # another of its group, which is not decided

log = structlog.get_logger(__name__)


class _Absent(msgspec.Struct, frozen=True):
    """A tenant was asked for at *asked_at* and has no shard now; *error* says why it was not made at its first use."""

    why: Absence
    asked_at: datetime
    error: str | None = None

    def __str__(self) -> str:
        return f"its tenant is {self.why}" + (f": {self.error}" if self.error else "")


_NoAnswer: TypeAlias = RetryableError | PermanentError | Crash
_Home: TypeAlias = str | _Absent | _NoAnswer


class _Trouble(msgspec.Struct, frozen=True):
    """Why messages are put off; with the ids where it is their tenant."""

    text: str
    business_id: str | None = None
    location_id: str | None = None

    @classmethod
    def of_tenant(cls, operation: Operation, text: str) -> _Trouble:
        """Return what keeps one tenant's messages."""
        return cls(text, operation.business_id, operation.location_id)


class _Slot(msgspec.Struct, eq=False):
    """One message of a call, what it is, and what becomes of it; *trouble* says why it is put off."""

    message: Message
    decoded: Operation | Rejected
    verdict: Verdict | None = None
    trouble: _Trouble | None = None

    @property
    def lets_pass(self) -> bool:
        """Whether the next of its chain may be applied in the same call.

        Not behind an operation that might yet be applied, if we died before its letter was stored.
        """
        match self.verdict:
            case Done():
                return True
            case ToDeadLetter(mark=None, reason=reason):
                return reason is not DeadLetterReason.UNKNOWN_TENANT
            case _:
                return False


@asynccontextmanager
async def open_orders(
    gateway: ShardGateway,
    queue: Queue,
    *,
    operation_max_bytes: int,
    tenant_wait: timedelta,
    retry_delays_s: Sequence[float],
    draw: Callable[[], float] = random.random,
    utc: UtcClock = utc_now,
) -> AsyncIterator[OrderHandler]:
    """Open the handler of one order queue. What is under way at the end is cut: close it after its receiver ended."""
    async with asyncio.TaskGroup() as tasks:
        handler = OrderHandler(
            gateway,
            queue,
            tasks,
            operation_max_bytes=operation_max_bytes,
            tenant_wait=tenant_wait,
            retry_delays_s=retry_delays_s,
            draw=draw,
            utc=utc,
        )
        try:
            yield handler
        finally:
            handler.cancel()


class OrderHandler:
    """Handles the messages of one order queue; *retry_delays_s* are the pauses after errors nobody foresaw."""

    def __init__(
        self,
        gateway: ShardGateway,
        queue: Queue,
        tasks: asyncio.TaskGroup,
        *,
        operation_max_bytes: int,
        tenant_wait: timedelta,
        retry_delays_s: Sequence[float],
        draw: Callable[[], float] = random.random,
        utc: UtcClock = utc_now,
    ) -> None:
        self._gateway = gateway
        self._queue = queue
        self._tasks = tasks
        self._operation_max_bytes = operation_max_bytes
        self._tenant_wait = tenant_wait
        self._retry_delays_s = tuple(retry_delays_s)
        self._draw = draw
        self._utc = utc
        self._lanes: dict[str, OrderLane] = {}
        self._asked: dict[str, asyncio.Task[_Home]] = {}  # by tenant; one that nobody waits for keeps its answer
        self._places = asyncio.Semaphore(ASKED_AT_ONCE)

    def __repr__(self) -> str:
        return f"OrderHandler({self._queue.name!r}, lanes={list(self._lanes.values())}, asked={sorted(self._asked)})"

    def is_pending(self, request_id: str, tenant_id: str | None) -> bool:
        """Whether an operation is on its way to a shard."""
        return any(
            operation.request_id == request_id and tenant_id in {None, operation.tenant_id}
            for lane in self._lanes.values()
            for operation in lane.operations()
        )

    def stats(self) -> dict[str, int]:
        """Return how many operations are on their way, to each shard."""
        return {shard_id: len(lane) for shard_id, lane in self._lanes.items()}

    def cancel(self) -> None:
        """End what is under way."""
        for lane in self._lanes.values():
            lane.cancel()
        for task in self._asked.values():
            task.cancel()

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Return what becomes of each message, in their order. Idempotent; raises nothing but a cancellation."""
        slots = [_Slot(message, self._decoded(message)) for message in messages]
        chains: dict[str, list[_Slot]] = {}
        for slot in slots:
            chains.setdefault(self._chain_of(slot.message), []).append(slot)
        deadline = loop_time() + PATIENCE_S
        async with asyncio.TaskGroup() as tasks:
            for chain, members in chains.items():
                tasks.create_task(self._go_along(chain, members, deadline))
        self._note(slots)
        return [BEHIND if slot.verdict is None else slot.verdict for slot in slots]

    def _note(self, slots: Sequence[_Slot]) -> None:
        """Log what is put off: a line for each cause, not for each message."""
        alike: defaultdict[_Trouble, list[float]] = defaultdict(list)
        for slot in slots:
            if slot.trouble is not None and isinstance(slot.verdict, ReturnToQueue | RetryHeld):
                alike[slot.trouble].append(slot.verdict.delay_s)
        for trouble, delays_s in alike.items():
            RETRIES.labels("sqs", "dependency").inc(len(delays_s))
            log.warning(
                "orders.deferred",
                queue=self._queue.name,
                count=len(delays_s),
                retry_in_s=round(min(delays_s), 2),
                error=trouble.text,
                business_id=trouble.business_id,
                location_id=trouble.location_id,
            )

    def _decoded(self, message: Message) -> Operation | Rejected:
        return decode_order(
            message.body,
            message.attributes,
            self._queue.origin_of(message),
            deduplication_id=message.deduplication_id,
            max_bytes=self._operation_max_bytes,
        )

    def _chain_of(self, message: Message) -> str:
        return message.group_id or message.message_id if self._queue.is_fifo else message.message_id

    async def _go_along(self, chain: str, slots: Sequence[_Slot], deadline: float) -> None:
        """Decide the messages of a chain in their order, until one of them is not decided for good."""
        position = 0
        while position < len(slots):
            run = _run_from(slots, position)
            await self._decide(chain, run, deadline)
            position += len(run)
            if not all(slot.lets_pass for slot in run):
                _hold_back(slots)
                return

    async def _decide(self, chain: str, run: Sequence[_Slot], deadline: float) -> None:
        """Decide messages of one tenant, and those among them that never will be an operation, while they let pass."""
        pending = [(slot, slot.decoded) for slot in run if isinstance(slot.decoded, Operation)]
        for slot in run:
            if isinstance(slot.decoded, Rejected):
                slot.verdict = _refused(slot.decoded)
        if not pending:
            return
        arrivals = [slot.message.sent_at for slot, _ in pending]
        max_age_s = absence_max_age_s(arrivals, now=self._utc(), tenant_wait=self._tenant_wait)
        home = await self._home(pending[0][1], deadline, max_age_s)
        if isinstance(home, str):
            await self._apply(home, chain, pending, deadline)
            return
        for slot, operation in pending:
            self._put_off(slot, operation, home)

    async def _apply(
        self, shard_id: str, chain: str, pending: Sequence[tuple[_Slot, Operation]], deadline: float
    ) -> None:
        lane = self._lanes.get(shard_id)
        if lane is None:
            lane = OrderLane(shard_id, self._gateway, self._tasks, queue_name=self._queue.name, utc=self._utc)
            self._lanes[shard_id] = lane
        entries = lane.submit(chain, [(slot.message.message_id, operation) for slot, operation in pending])
        if not lane.is_stuck:
            await asyncio.wait([entry.answer for entry in entries], timeout=max(0.0, deadline - loop_time()))
        for (slot, operation), entry in zip(pending, entries, strict=True):
            self._settle(slot, operation, shard_id, lane.collect(entry))
            if not slot.lets_pass:
                return

    async def _home(self, operation: Operation, deadline: float, max_age_s: float) -> _Home | None:
        """Return the shard of a tenant, or why there is none; None when that is not known before *deadline*.

        That it is not registered may have been asked for *max_age_s* ago.
        """
        tenant_id = operation.tenant_id
        if (shard_id := self._gateway.cached_shard_id(tenant_id)) is not None:
            return shard_id
        task = self._asked.get(tenant_id)
        if task is None:
            self._forget_unfetched()
            task = self._asked[tenant_id] = self._tasks.create_task(
                self._ask(operation, max_age_s), name=f"ask:{tenant_id}"
            )
        await asyncio.wait([task], timeout=max(0.0, deadline - loop_time()))
        if not task.done():
            return None
        if self._asked.get(tenant_id) is task:
            del self._asked[tenant_id]
        return task.result()

    async def _ask(self, operation: Operation, max_age_s: float) -> _Home:
        async with self._places:
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
            except Exception as exc:  # a bug that one tenant meets must not end the others
                log.exception("order.failed", queue=self._queue.name, error=type(exc).__name__)
                return Crash(exc)
        return _Absent(found, asked_at) if isinstance(found, Absence) else found

    def _forget_unfetched(self) -> None:
        if len(self._asked) > ANSWERS_KEPT_MAX:
            self._asked = {key: task for key, task in self._asked.items() if not task.done()}

    def _put_off(self, slot: _Slot, operation: Operation, home: _Absent | _NoAnswer | None) -> None:
        """Decide what becomes of a message whose tenant has no shard now."""
        match home:
            case None:
                self._wait(slot, _Trouble("no answer yet to where tenants live"))
            case RetryableError() | PermanentError():
                self._in_trouble(slot, home)
            case Crash():
                error = home.error
                slot.verdict = self._after_unexpected(slot.message, operation, None, error, type(error).__name__)
            case _Absent(why=Absence.UNREGISTERED):
                self._not_registered(slot, operation, home.asked_at)
            case _Absent():
                self._wait(slot, _Trouble.of_tenant(operation, str(home)))
            case _:
                assert_never(home)

    def _settle(self, slot: _Slot, operation: Operation, shard_id: str, answer: Answer | None) -> None:
        """Decide what becomes of a message by what its shard said."""
        match answer:
            case None:
                self._wait(slot, _Trouble(f"no answer yet from shard {shard_id}"))
            case RetryableError():
                self._in_trouble(slot, answer)
            case Crash():
                error = answer.error
                slot.verdict = self._after_unexpected(slot.message, operation, shard_id, error, type(error).__name__)
            case Outcome():
                self._settle_outcome(slot, operation, shard_id, answer)
            case _:
                assert_never(answer)

    def _settle_outcome(self, slot: _Slot, operation: Operation, shard_id: str, outcome: Outcome) -> None:
        match outcome.disposition:
            case Disposition.APPLIED | Disposition.DUPLICATE:
                slot.verdict = Done()
            case Disposition.DEAD_LETTER:
                reason = outcome.reason or DeadLetterReason.INVALID_MESSAGE
                slot.verdict = _bury(operation, reason, outcome.error or "")
            case Disposition.HOLD:
                text = f"its tenant does not live on shard {shard_id} now"
                self._wait(slot, _Trouble.of_tenant(operation, text))
            case Disposition.UNEXPECTED:
                error = outcome.error or ""
                slot.verdict = self._after_unexpected(slot.message, operation, shard_id, RuntimeError(error), error)
            case _:
                assert_never(outcome.disposition)

    def _in_trouble(self, slot: _Slot, exc: RetryableError | PermanentError) -> None:
        slot.trouble = _Trouble(str(exc))
        # A refusal is of an address that may not be used: somebody may mend that.
        trouble = exc if isinstance(exc, RetryableError) else RetryableError(str(exc))
        slot.verdict = after_trouble(trouble, try_count=slot.message.try_count, draw=self._draw())

    def _wait(self, slot: _Slot, trouble: _Trouble) -> None:
        slot.trouble = trouble
        try_count = slot.message.try_count
        slot.verdict = RetryHeld(backoff_s(try_count, draw=self._draw(), base_s=WAIT_BASE_S, max_s=WAIT_MAX_S))

    def _not_registered(self, slot: _Slot, operation: Operation, asked_at: datetime) -> None:
        """Let it come again until it is overdue, which only a "not registered" that was asked for later decides."""
        message = slot.message
        if is_overdue(message.sent_at, now=asked_at, tenant_wait=self._tenant_wait):
            error = unknown_tenant_error(self._tenant_wait)
            slot.verdict = _bury(operation, DeadLetterReason.UNKNOWN_TENANT, error)
            return
        rest_s = (message.sent_at + self._tenant_wait + UNKNOWN_TENANT_MARGIN - self._utc()).total_seconds()
        delay_s = backoff_s(message.try_count, draw=self._draw(), base_s=TROUBLE_BASE_S, max_s=TROUBLE_MAX_S)
        slot.trouble = _Trouble.of_tenant(operation, f"its tenant is {Absence.UNREGISTERED}")
        slot.verdict = ReturnToQueue(max(1, math.ceil(min(delay_s, rest_s))))

    def _after_unexpected(
        self, message: Message, operation: Operation, shard_id: str | None, error: Exception, text: str
    ) -> Verdict:
        verdict = after_unexpected(error, receive_count=message.receive_count, delays_s=self._retry_delays_s)
        if isinstance(verdict, ReturnToQueue):
            log.warning(
                "operation.failing",
                queue=self._queue.name,
                shard_id=shard_id,
                attempts=message.receive_count,
                error=text,
                business_id=operation.business_id,
                location_id=operation.location_id,
            )
            return verdict
        told = f"it failed {message.receive_count} times: {text}"
        mark = None if shard_id is None else partial(self._give_up, shard_id, operation, told)
        return _bury(operation, verdict.reason, told, mark)

    async def _give_up(self, shard_id: str, operation: Operation, error: str) -> None:
        """Leave the row of an operation that is given up. Raises `RetryableError` where that cannot be done now."""
        outcome = await self._gateway.give_up(shard_id, operation)
        if outcome.disposition is Disposition.HOLD:
            raise RetryableError(f"a tenant does not live on shard {shard_id} now, where its operation failed")
        log.error(
            "operation.given_up",
            queue=self._queue.name,
            shard_id=shard_id,
            error=error,
            business_id=operation.business_id,
            location_id=operation.location_id,
        )


def _run_from(slots: Sequence[_Slot], position: int) -> Sequence[_Slot]:
    """Return the messages from *position* on that belong to one tenant, and what is no operation among them."""
    tenant_id: str | None = None
    for end in range(position, len(slots)):
        decoded = slots[end].decoded
        if isinstance(decoded, Operation):
            if tenant_id not in {None, decoded.tenant_id}:
                return slots[position:end]
            tenant_id = decoded.tenant_id
    return slots[position:]


def _hold_back(slots: Sequence[_Slot]) -> None:
    """Put off what is behind the first of a chain that does not let pass.

    Behind a letter it is handled again as soon as that is stored, and what is to be a letter too is stored with it.
    """
    first = next(index for index, slot in enumerate(slots) if not slot.lets_pass)
    is_letter = isinstance(slots[first].verdict, ToDeadLetter)
    for slot in slots[first + 1 :]:
        if not (is_letter and isinstance(slot.verdict, ToDeadLetter)):
            slot.verdict, slot.trouble = RetryHeld(0.0) if is_letter else BEHIND, None


def _refused(rejected: Rejected) -> ToDeadLetter:
    return ToDeadLetter(
        rejected.reason,
        rejected.error,
        business_id=rejected.business_id,
        location_id=rejected.location_id,
        request_id=rejected.request_id,
        resource_id=rejected.resource_id,
    )


def _bury(
    operation: Operation, reason: DeadLetterReason, error: str, mark: Callable[[], Awaitable[object]] | None = None
) -> ToDeadLetter:
    return ToDeadLetter(
        reason,
        error,
        business_id=operation.business_id,
        location_id=operation.location_id,
        request_id=operation.request_id,
        resource_id=operation.resource_id,
        mark=mark,
    )
