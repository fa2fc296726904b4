"""Do what control messages ask for (contract §4), and decide what becomes of each message.

Of one batch, creations are provisioned all together and the others in parallel; but those about one tenant one after
the other, and none behind one that is not decided.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeAlias, assert_never

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.control.conflicts import MessageSubject, first_before, is_of_group, turns_of
from simplu_worker.consumers.sqs.control.decode import (
    AdminAccount,
    Control,
    ResourceRename,
    ShardCreation,
    ShardDestruction,
    decode_control,
    tenant_id_of_control,
)
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
from simplu_worker.operations.operation import DeadLetterReason, Rejected
from simplu_worker.shards.types import (
    ChangeResult,
    CitrusDeniedError,
    DestructionResult,
    ProvisionAnswer,
    ProvisionRequest,
    ProvisionResult,
    ShardNotAllowedError,
)
from simplu_worker.timing.backoff import backoff_s

AT_ONCE: Final = 16  # of those that are not creations

log = structlog.get_logger(__name__)

Result: TypeAlias = ProvisionResult | DestructionResult | ChangeResult


class Provisions(Protocol):
    """What makes tenants; `shards.tenants.provisioning.Provisioner` does."""

    async def provision_all(self, requests: Sequence[ProvisionRequest]) -> list[ProvisionAnswer]:
        """Make tenants, no two the same; return for each its result, or the error that it met.

        PermanentError is for what can never work, RetryableError for a dependency's trouble.
        """


class Destroys(Protocol):
    """What destroys tenants; `shards.tenants.destruction.Destroyer` does. Raises as `Provisions` returns."""

    async def destroy(self, business_id: str, location_id: str, requested_at: datetime) -> DestructionResult:
        """Destroy one tenant."""

    async def destroy_all(self, business_id: str, requested_at: datetime) -> Mapping[str, DestructionResult]:
        """Destroy every tenant of a business; return what became of each by location."""


class Changes(Protocol):
    """What changes resources; `shards.tenants.resource_changes.ResourceChanges` does, and raises as above."""

    async def rename(
        self,
        business_id: str,
        location_id: str,
        *,
        resource_type: str,
        old_id: str,
        new_id: str,
        additional_data: str | None,
        requested_at: datetime,
    ) -> ChangeResult:
        """Give a resource another id."""

    async def add_admin(
        self,
        business_id: str,
        location_id: str,
        *,
        business_type: str,
        email: str,
        user_id: str,
        requested_at: datetime,
    ) -> ChangeResult:
        """Make the resources of a tenant's first administrator."""


class _Item(msgspec.Struct, frozen=True):
    """One message, and what it asks for."""

    message: Message
    control: Control

    def __repr__(self) -> str:
        return f"_Item({self.message.message_id!r}, {self.control!r})"


_Met: TypeAlias = "tuple[_Item, Result | Exception]"


class ControlHandler:
    """Handles the messages of one control queue; *retry_delays_s* are the pauses after errors nobody foresaw.

    *tenant_wait* is how long a message waits, from its sending on, for a tenant or a resource that is not there.
    """

    def __init__(
        self,
        provisioner: Provisions,
        destroyer: Destroys,
        changes: Changes,
        queue: Queue,
        *,
        retry_delays_s: Sequence[float],
        tenant_wait: timedelta,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._provisioner = provisioner
        self._destroyer = destroyer
        self._changes = changes
        self._queue = queue
        self._retry_delays_s = tuple(retry_delays_s)
        self._tenant_wait = tenant_wait
        self._draw = draw
        self._clock = clock
        self._places = asyncio.Semaphore(AT_ONCE)

    def __repr__(self) -> str:
        return f"ControlHandler({self._queue.name!r}, retry_delays_s={self._retry_delays_s})"

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Return the verdict on each of *messages*, in their order. Idempotent; raises nothing but a cancellation."""
        decoded = [
            decode_control(message.body, message.attributes, self._queue.origin_of(message)) for message in messages
        ]
        claims = [self._claim(message, control) for message, control in zip(messages, decoded, strict=True)]
        verdicts: dict[int, Verdict] = {}
        for turn in turns_of(claims):
            undecided = [place for place, verdict in verdicts.items() if not isinstance(verdict, Done | ToDeadLetter)]
            items: dict[int, _Item] = {}
            for place in turn:
                control, before = decoded[place], first_before(claims, place, undecided)
                if before is not None:
                    verdicts[place] = _behind(verdicts[before], is_group=is_of_group(claims[place], claims[before]))
                elif isinstance(control, Rejected):
                    verdicts[place] = self._rejected(control, messages[place])
                else:
                    items[place] = _Item(messages[place], control)
            met = await self._meet(list(items.values()))
            verdicts |= dict(zip(items, self._judged(met), strict=True))
        return [verdicts[place] for place in range(len(messages))]

    def _claim(self, message: Message, control: Control | Rejected) -> MessageSubject:
        group_id = message.group_id if self._queue.is_fifo else None  # in others it says nothing about order
        if isinstance(control, Rejected):
            return MessageSubject(group_id=group_id)
        return MessageSubject(tenant_id_of_control(control), control.business_id, group_id)

    async def _meet(self, items: Sequence[_Item]) -> list[_Met]:
        """Do what *items* ask for, which are about different tenants; return what each came to."""
        results: dict[str, Result | Exception] = {}
        creations = [(item, item.control) for item in items if isinstance(item.control, ShardCreation)]

        async def create() -> None:
            try:
                answers = await self._provisioner.provision_all([_request(creation) for _, creation in creations])
            except Exception as exc:  # noqa: BLE001  # a bug of ours must not end the others; it has tries, then a letter
                answers = [exc] * len(creations)
            for (item, _), answer in zip(creations, answers, strict=True):
                results[item.message.message_id] = answer

        async def change(item: _Item) -> None:
            async with self._places:
                try:
                    results[item.message.message_id] = await self._change(item.control)
                except Exception as exc:  # noqa: BLE001  # as above
                    results[item.message.message_id] = exc

        async with asyncio.TaskGroup() as tasks:
            if creations:
                tasks.create_task(create(), name="control:creations")
            for item in items:
                if not isinstance(item.control, ShardCreation):
                    tasks.create_task(change(item), name=f"control:{item.message.message_id}")
        return [(item, results[item.message.message_id]) for item in items]

    def _change(self, control: Control) -> Awaitable[Result]:
        match control:
            case ShardDestruction():
                return self._destroy(control)
            case ResourceRename():
                return self._changes.rename(
                    control.business_id,
                    control.location_id,
                    resource_type=control.resource_type,
                    old_id=control.old_resource_id,
                    new_id=control.new_resource_id,
                    additional_data=control.additional_data,
                    requested_at=control.requested_at,
                )
            case AdminAccount():
                return self._changes.add_admin(
                    control.business_id,
                    control.location_id,
                    business_type=control.business_type,
                    email=control.admin_email,
                    user_id=control.admin_user_id,
                    requested_at=control.requested_at,
                )
            case ShardCreation():
                raise AssertionError("creations are provisioned all together")
            case _:
                assert_never(control)

    async def _destroy(self, destruction: ShardDestruction) -> DestructionResult:
        business_id, requested_at = destruction.business_id, destruction.requested_at
        if destruction.location_id is not None:
            return await self._destroyer.destroy(business_id, destruction.location_id, requested_at)
        results = await self._destroyer.destroy_all(business_id, requested_at)
        counts = Counter(results.values())
        if counts:
            log.info(
                "control.destroyed_all",
                queue=self._queue.name,
                business_id=business_id,
                counts={result.value: count for result, count in sorted(counts.items())},
            )
        order = (DestructionResult.DESTROYING, DestructionResult.EXISTED, DestructionResult.STALE)
        return next((result for result in order if counts[result]), DestructionResult.UNKNOWN)

    def _judged(self, met: Sequence[_Met]) -> list[Verdict]:
        verdicts = [self._judge(item, result) for item, result in met]
        self._note_deferred(met, verdicts)
        return verdicts

    def _judge(self, item: _Item, result: Result | Exception) -> Verdict:
        match result:
            case RetryableError():
                return after_trouble(result, try_count=item.message.try_count, draw=self._draw())
            case PermanentError():
                return self._refused(item, DeadLetterReason.INVALID_MESSAGE, str(result))
            case Exception():
                return self._after_unexpected(item, result)
            case DestructionResult.UNKNOWN | ChangeResult.UNKNOWN_TENANT | ChangeResult.MISSING:
                return self._after_absence(item, result)
            case ProvisionResult.STALE | DestructionResult.STALE:
                log.info("control.stale", **self._facts(item), requested_at=item.control.requested_at.isoformat())
                return Done()
            case _:
                log.info("control.applied", **self._facts(item), result=result)
                return Done()

    def _after_absence(self, item: _Item, result: Result) -> Verdict:
        """Wait for what may still be on its way; give the message up when it waited long enough."""
        left = item.message.sent_at + self._tenant_wait - self._clock()
        if left <= timedelta():
            within = f"within {self._tenant_wait.total_seconds():g} s (TENANT_WAIT_SECONDS)"
            if result is ChangeResult.MISSING:
                error = f"oldResourceId: no resource of that id, nor of newResourceId, came {within}"
                return self._refused(item, DeadLetterReason.RETRIES_EXHAUSTED, error)
            return self._refused(item, DeadLetterReason.UNKNOWN_TENANT, f"no shard had the tenant {within}")
        delay_s = backoff_s(item.message.try_count, draw=self._draw(), base_s=TROUBLE_BASE_S, max_s=TROUBLE_MAX_S)
        return RetryHeld(delay_s=min(delay_s, max(left.total_seconds(), TROUBLE_BASE_S)))

    def _after_unexpected(self, item: _Item, exc: Exception) -> Verdict:
        verdict = after_unexpected(exc, receive_count=item.message.receive_count, delays_s=self._retry_delays_s)
        log.error(
            "control.failed",
            **self._facts(item),
            receive_count=item.message.receive_count,
            error=type(exc).__name__,
            exc_info=exc,
        )
        if isinstance(verdict, ReturnToQueue):
            RETRIES.labels("sqs", "unexpected").inc()
            return verdict
        return self._refused(item, verdict.reason, verdict.error)

    def _refused(self, item: _Item, reason: DeadLetterReason, error: str) -> ToDeadLetter:
        log.warning("control.refused", **self._facts(item), reason=reason, error=error)
        return ToDeadLetter(reason, error, item.control.business_id, item.control.location_id)

    def _rejected(self, rejected: Rejected, message: Message) -> ToDeadLetter:
        log.warning(
            "control.refused",
            queue=self._queue.name,
            message_id=message.message_id,
            business_id=rejected.business_id,
            location_id=rejected.location_id,
            reason=rejected.reason,
            error=rejected.error,
        )
        return ToDeadLetter(rejected.reason, rejected.error, rejected.business_id, rejected.location_id)

    def _note_deferred(self, met: Sequence[_Met], verdicts: Sequence[Verdict]) -> None:
        """Say once a batch and error what was put off, with the first of its messages."""
        by_error: dict[str, list[tuple[_Item, Result | Exception, RetryHeld]]] = {}
        for (item, result), verdict in zip(met, verdicts, strict=True):
            if isinstance(verdict, RetryHeld):
                error = str(result) if isinstance(result, Exception) else result.value
                by_error.setdefault(error, []).append((item, result, verdict))
        for error, deferred in by_error.items():
            item, result, _ = deferred[0]
            RETRIES.labels("sqs", "dependency").inc(len(deferred))
            facts = self._facts(item) | {
                "message_count": len(deferred),
                "receive_count": item.message.receive_count,
                "retry_in_s": round(min(verdict.delay_s for _, _, verdict in deferred), 1),
                "error": error,
            }
            if isinstance(result, ShardNotAllowedError | CitrusDeniedError):
                log.error("control.blocked", **facts)
            else:
                log.warning("control.deferred", **facts)

    def _facts(self, item: _Item) -> dict[str, object]:
        return {
            "queue": self._queue.name,
            "message_id": item.message.message_id,
            "type": item.control.type,
            "business_id": item.control.business_id,
            "location_id": item.control.location_id,
        }


def _behind(verdict: Verdict, *, is_group: bool) -> Verdict:
    """Return the verdict on a message behind one that is not decided.

    One of its group goes back together with it; another that is about the same tenant comes again with it.
    """
    match verdict:
        case RetryHeld() if not is_group:
            return verdict
        case ReturnToQueue(delay_s=delay_s) if not is_group:
            return ReturnToQueue(max(delay_s, 1))
        case _:
            return ReturnToQueue(0)


def _request(creation: ShardCreation) -> ProvisionRequest:
    return ProvisionRequest(
        business_id=creation.business_id,
        location_id=creation.location_id,
        business_type=creation.business_type,
        requested_at=creation.requested_at,
    )
