"""Carry out control messages (docs/sending.md), and return the verdict on each.

Of one batch, creations are provisioned all together and the others in parallel; but messages about one tenant one after
the other, and none behind an undecided one. A message is given up for failures of its own work on a shard alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeAlias, assert_never, cast

import msgspec
import structlog

from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.producer_traces import traceparents_of_messages
from simplu_worker.consumers.sqs import control_messages
from simplu_worker.consumers.sqs.receive.verdicts import (
    Done,
    MessageIds,
    RetryHeld,
    ReturnToQueue,
    ToDeadLetter,
    Verdict,
    message_backoff_s,
    verdict_on,
    verdict_on_rejected,
)
from simplu_worker.errors import PermanentError, RetryableError, places_of
from simplu_worker.instruments import RETRIES
from simplu_worker.operations.dead_letter import decode_or_reject
from simplu_worker.operations.operation import Disposition, RejectedRecord
from simplu_worker.operations.tries import Absent, Attempts, Failed, NotApplied, RetryRules
from simplu_worker.shards import types
from simplu_worker.telemetry.spans import TracedBatch, process_span
from simplu_worker.vocabulary import DeadLetterReason, Retry, Source

log = structlog.get_logger(__name__)

Result: TypeAlias = types.ProvisionResult | types.DestructionResult | types.ChangeResult


class TenantProvisioner(Protocol):
    """Provisions tenants; `shards.tenants.provisioning.Provisioner` is one."""

    async def provision_all(self, requests: Sequence[types.ProvisionRequest]) -> list[types.ProvisionAnswer]:
        """Provision tenants, no two the same; return the result or the error of each."""


class TenantDestroyer(Protocol):
    """Destroys tenants; `shards.tenants.destruction.Destroyer` is one. Raises the errors of `TenantProvisioner`."""

    async def destroy(self, business_id: str, location_id: str, requested_at: datetime) -> types.DestructionResult:
        """Destroy one tenant."""

    async def destroy_all(self, business_id: str, requested_at: datetime) -> Mapping[str, types.DestructionResult]:
        """Destroy every tenant of a business; return the results by location."""


class ResourceChanger(Protocol):
    """Changes resources; `shards.tenants.resource_changes.ResourceChanges` is one. Raises as `TenantDestroyer`."""

    async def rename(self, rename: types.ResourceRename) -> types.ChangeResult:
        """Give a resource another id."""

    async def add_admin(self, admin: types.AdminAccount) -> types.ChangeResult:
        """Create the resources of a tenant's first administrator."""


class _Item(msgspec.Struct, eq=False):
    message: Message
    control: control_messages.Control | RejectedRecord
    subject: control_messages.MessageSubject
    result: Result | Exception | None = None  # what its stage did
    verdict: Verdict | None = None


class ControlHandler:
    """Handles the messages of one control queue."""

    def __init__(
        self,
        provisioner: TenantProvisioner,
        destroyer: TenantDestroyer,
        changer: ResourceChanger,
        queue: Queue,
        *,
        retries: RetryRules,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._provisioner = provisioner
        self._destroyer = destroyer
        self._changer = changer
        self._queue = queue
        self._retries = retries
        self._attempts = Attempts()
        self._draw = draw
        self._clock = clock

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Return the verdict on each message, in their order. Idempotent; raises only a cancellation."""
        with process_span(lambda: self._describe(messages)) as span:
            verdicts = await self._handle(messages)
            span.note_outcomes(map(_outcome_of, verdicts))
        return verdicts

    def _describe(self, messages: Sequence[Message]) -> TracedBatch:
        attributes = [message.attributes for message in messages]
        return TracedBatch(Source.SQS, self._queue.name, len(messages), lambda: traceparents_of_messages(attributes))

    async def _handle(self, messages: Sequence[Message]) -> list[Verdict]:
        items = [self._item_of(message) for message in messages]
        subjects = [item.subject for item in items]
        undecided: list[int] = []  # of earlier stages
        for stage in control_messages.stages_of(subjects):
            due: list[_Item] = []
            for index in stage:
                item, before = items[index], control_messages.first_conflict(subjects, index, undecided)
                if before is not None:
                    in_group = control_messages.is_same_group(item.subject, subjects[before])
                    item.verdict = _verdict_behind(items[before].verdict, is_group=in_group)
                elif isinstance(item.control, RejectedRecord):
                    item.verdict = self._refuse(item, verdict_on_rejected(item.control))
                else:
                    due.append(item)
            await self._carry_out(due)
            for item in due:
                item.verdict = self._verdict_on(item)
            self._log_deferred(due)
            undecided += [index for index in stage if not isinstance(items[index].verdict, Done | ToDeadLetter)]
        return [cast(Verdict, item.verdict) for item in items]

    def _item_of(self, message: Message) -> _Item:
        origin = self._queue.origin_of(message)
        decode = partial(control_messages.decode_control, message.body, message.attributes, origin)
        sound = partial(control_messages.decode_control, control_messages.SOUND_MESSAGE, {}, origin)
        control = decode_or_reject(decode, origin, sound=sound)
        group_id = message.group_id if self._queue.is_fifo else None  # in standard queues it promises no order
        if isinstance(control, RejectedRecord):
            return _Item(message, control, control_messages.MessageSubject(group_id=group_id))
        tenant_id = control_messages.tenant_id_of_control(control)
        return _Item(message, control, control_messages.MessageSubject(tenant_id, control.business_id, group_id))

    async def _carry_out(self, items: Sequence[_Item]) -> None:
        creations = [(item, item.control) for item in items if isinstance(item.control, types.ProvisionRequest)]

        async def create() -> None:
            try:
                answers = await self._provisioner.provision_all([creation for _, creation in creations])
            except Exception as exc:  # noqa: BLE001  # a bug must not end the others; the message is retried
                answers = [exc] * len(creations)
            for (item, _), answer in zip(creations, answers, strict=True):
                item.result = answer

        async def change(item: _Item) -> None:
            try:
                item.result = await self._change(item.control)
            except Exception as exc:  # noqa: BLE001  # as above
                item.result = exc

        async with asyncio.TaskGroup() as tasks:
            if creations:
                tasks.create_task(create(), name="control:creations")
            for item in items:
                if not isinstance(item.control, types.ProvisionRequest):
                    tasks.create_task(change(item), name=f"control:{item.message.message_id}")

    def _change(self, control: control_messages.Control | RejectedRecord) -> Awaitable[Result]:
        match control:
            case control_messages.ShardDestruction():
                return self._destroy(control)
            case types.ResourceRename():
                return self._changer.rename(control)
            case types.AdminAccount():
                return self._changer.add_admin(control)
            case types.ProvisionRequest() | RejectedRecord():
                raise AssertionError("creations are provisioned all together")
            case _:
                assert_never(control)

    async def _destroy(self, destruction: control_messages.ShardDestruction) -> types.DestructionResult:
        business_id, requested_at = destruction.business_id, destruction.requested_at
        if destruction.location_id is not None:
            return await self._destroyer.destroy(business_id, destruction.location_id, requested_at)
        results = (await self._destroyer.destroy_all(business_id, requested_at)).values()
        order = (types.DestructionResult.DESTROYING, types.DestructionResult.EXISTED, types.DestructionResult.STALE)
        return next((result for result in order if result in results), types.DestructionResult.UNKNOWN)

    def _verdict_on(self, item: _Item) -> Verdict:
        match result := item.result:
            case types.UnknownBusinessTypeError():
                return self._verdict_on_absence(item, DeadLetterReason.INVALID_MESSAGE, result.given_up)
            case RetryableError() | PermanentError():
                return self._verdict_after(item, result)
            case Exception():
                return self._verdict_on_unforeseen(item, result)
            case types.DestructionResult.UNKNOWN | types.ChangeResult.UNKNOWN_TENANT:
                return self._verdict_on_absence(item, DeadLetterReason.UNKNOWN_TENANT, "no shard had the tenant")
            case types.ChangeResult.MISSING:
                error = "oldResourceId: no resource of that id, nor of newResourceId, came"
                return self._verdict_on_absence(item, DeadLetterReason.RETRIES_EXHAUSTED, error)
            case types.ProvisionResult.STALE | types.DestructionResult.STALE:
                log.info("control.stale", **self._facts(item))
                return Done()
            case _:
                log.info("control.applied", **self._facts(item), result=result)
                return Done()

    def _verdict_on_unforeseen(self, item: _Item, error: Exception) -> Verdict:
        """Count and log a failure on a known shard; without a count the message is held."""
        RETRIES.labels(Source.SQS, Retry.FAILING).inc()
        failure_count = None
        if isinstance(error, types.FailedOnShardError):
            failure_count = self._attempts.count(item.message.message_id)
        log.error(
            "control.failed",
            **self._facts(item),
            attempts=failure_count,
            receive_count=item.message.receive_count,
            error=error.error if isinstance(error, types.FailedOnShardError) else type(error).__name__,
            traceback=places_of(error),
        )
        if not isinstance(error, types.FailedOnShardError) or failure_count is None:
            return RetryHeld(message_backoff_s(item.message, draw=self._draw()))
        verdict = verdict_on(Failed(error.error), failure_count, _ids_of(item), rules=self._retries)
        return self._refuse(item, verdict) if isinstance(verdict, ToDeadLetter) else verdict

    def _verdict_on_absence(self, item: _Item, reason: DeadLetterReason, error: str) -> Verdict:
        left = item.message.sent_at + self._retries.tenant_wait - self._clock()
        within = f"within {self._retries.tenant_wait.total_seconds():g} s (TENANT_WAIT_SECONDS)"
        return self._verdict_after(item, Absent(reason, f"{error} {within}", left.total_seconds()))

    def _verdict_after(self, item: _Item, error: NotApplied) -> Verdict:
        tries, draw = item.message.try_count, self._draw()
        verdict = verdict_on(error, tries, _ids_of(item), rules=self._retries, draw=draw)
        return self._refuse(item, verdict) if isinstance(verdict, ToDeadLetter) else verdict

    def _refuse(self, item: _Item, verdict: ToDeadLetter) -> ToDeadLetter:
        log.warning("control.refused", **self._facts(item), reason=verdict.reason, error=verdict.error)
        return verdict

    def _log_deferred(self, items: Sequence[_Item]) -> None:
        by_error: dict[str, list[tuple[_Item, float]]] = {}
        for item in items:
            is_logged = isinstance(item.result, Exception) and not isinstance(item.result, RetryableError)
            if isinstance(item.verdict, RetryHeld) and not is_logged:
                by_error.setdefault(str(item.result), []).append((item, item.verdict.delay_s))
        for error, deferred in by_error.items():
            item = deferred[0][0]
            is_blocked = isinstance(item.result, types.ShardNotAllowedError | types.CitrusDeniedError)
            RETRIES.labels(Source.SQS, Retry.BLOCKED if is_blocked else Retry.SHARD_UNAVAILABLE).inc(len(deferred))
            facts = self._facts(item) | {
                "message_count": len(deferred),
                "receive_count": item.message.receive_count,
                "retry_in_s": round(min(delay_s for _, delay_s in deferred), 1),
                "error": error,
            }
            if is_blocked:
                log.error("control.blocked", **facts)
            else:
                log.warning("control.deferred", **facts)

    def _facts(self, item: _Item) -> dict[str, object]:
        control = item.control
        return {
            "queue": self._queue.name,
            "message_id": item.message.message_id,
            "type": None if isinstance(control, RejectedRecord) else control_messages.control_type_of(control),
            "business_id": control.business_id,
            "location_id": control.location_id,
        }


def _ids_of(item: _Item) -> MessageIds:
    return MessageIds(item.control.business_id, item.control.location_id)


def _outcome_of(verdict: Verdict) -> Disposition:
    match verdict:
        case Done():
            return Disposition.APPLIED
        case ToDeadLetter():
            return Disposition.DEAD_LETTER
        case RetryHeld() | ReturnToQueue():
            return Disposition.HOLD
        case _:
            assert_never(verdict)


def _verdict_behind(verdict: Verdict | None, *, is_group: bool) -> Verdict:
    """Return the verdict on a message behind an undecided one: one of its group returns to the queue with it."""
    match verdict:
        case RetryHeld() if not is_group:
            return verdict
        case ReturnToQueue(delay_s=delay_s) if not is_group:
            return ReturnToQueue(max(delay_s, 1))
        case _:
            return ReturnToQueue(0)
