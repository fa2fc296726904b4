"""Do what a control message asks for (contract §4), and decide what becomes of the message."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

import structlog

from simplu_worker.consumers.sqs.messages import ControlType, NotYet, ShardCreation, decode_control
from simplu_worker.consumers.sqs.queue import Message, Queue
from simplu_worker.consumers.sqs.verdicts import Bury, Done, Later, Stay, Verdict, after_trouble, after_unexpected
from simplu_worker.errors import RefusedError, TryAgainLaterError
from simplu_worker.metrics.instruments import RETRIES
from simplu_worker.operations.operation import DeadLetterReason, Rejected
from simplu_worker.shards.provisioning import ProvisionRequest, ProvisionResult

log = structlog.get_logger(__name__)


class Provisions(Protocol):
    """What makes tenants; `simplu_worker.shards.provisioning.Provisioner` does."""

    async def provision(self, request: ProvisionRequest) -> ProvisionResult:
        """Make the tenant, once.

        Raises RefusedError for what can never work, TryAgainLaterError for a dependency's trouble.
        """


class ControlHandler:
    """Handles the messages of one control queue; *retry_delays_s* are the pauses after errors nobody foresaw."""

    def __init__(
        self,
        provisioner: Provisions,
        queue: Queue,
        *,
        retry_delays_s: Sequence[float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._provisioner = provisioner
        self._queue = queue
        self._retry_delays_s = tuple(retry_delays_s)
        self._draw = draw
        self._types_noted: set[ControlType] = set()

    def __repr__(self) -> str:
        return f"ControlHandler({self._queue.name!r}, retry_delays_s={self._retry_delays_s})"

    async def handle(self, message: Message) -> Verdict:
        """Handle one message. Idempotent; raises nothing but a cancellation."""
        decoded = decode_control(message.body, message.attributes, self._queue.origin_of(message))
        match decoded:
            case ShardCreation():
                return await self._create(decoded, message)
            case NotYet(type=control_type):
                self._note_once(control_type)
                return Stay()
            case Rejected():
                verdict = Bury(decoded.reason, decoded.error, decoded.business_id, decoded.location_id)
                self._note_refused(verdict, message)
                return verdict
            case _:
                assert_never(decoded)

    async def _create(self, creation: ShardCreation, message: Message) -> Verdict:
        request = ProvisionRequest(
            business_id=creation.business_id,
            location_id=creation.location_id,
            business_type=creation.business_type,
            requested_at=creation.requested_at,
        )
        try:
            result = await self._provisioner.provision(request)
        except RefusedError as exc:
            reason = DeadLetterReason.INVALID_MESSAGE
            refused = Bury(reason, str(exc), creation.business_id, creation.location_id)
            self._note_refused(refused, message)
            return refused
        except TryAgainLaterError as exc:
            deferred = after_trouble(exc, receive_count=message.receive_count, draw=self._draw())
            self._note_deferred(deferred, message, creation, exc)
            return deferred
        except Exception as exc:  # noqa: BLE001  # one message's bug must not end the others; it has tries, then a letter
            return self._after_unexpected(exc, message, creation)
        self._note_result(result, message, creation)
        return Done()

    def _after_unexpected(self, exc: Exception, message: Message, creation: ShardCreation) -> Verdict:
        verdict = after_unexpected(exc, receive_count=message.receive_count, delays_s=self._retry_delays_s)
        log.error(
            "control.failed",
            **self._ids(message, creation),
            receive_count=message.receive_count,
            error=type(exc).__name__,
            exc_info=exc,
        )
        if isinstance(verdict, Later):
            RETRIES.labels("sqs", "unexpected").inc()
            return verdict
        verdict = Bury(verdict.reason, verdict.error, creation.business_id, creation.location_id)
        self._note_refused(verdict, message)
        return verdict

    def _note_result(self, result: ProvisionResult, message: Message, creation: ShardCreation) -> None:
        facts = self._ids(message, creation) | {"type": ControlType.SHARD_CREATION}
        if result is ProvisionResult.STALE:
            log.info("control.stale", **facts, requested_at=creation.requested_at.isoformat())
        else:
            log.info("control.applied", **facts, result=result)

    def _note_deferred(
        self, verdict: Later, message: Message, creation: ShardCreation, exc: TryAgainLaterError
    ) -> None:
        RETRIES.labels("sqs", "dependency").inc()
        log.warning(
            "control.deferred",
            **self._ids(message, creation),
            receive_count=message.receive_count,
            retry_in_s=verdict.delay_s,
            error=str(exc),
        )

    def _note_refused(self, verdict: Bury, message: Message) -> None:
        log.warning(
            "control.refused",
            **self._ids(message, verdict),
            reason=verdict.reason,
            error=verdict.error,
        )

    def _ids(self, message: Message, about: ShardCreation | Bury) -> dict[str, str | None]:
        return {
            "queue": self._queue.name,
            "message_id": message.message_id,
            "business_id": about.business_id,
            "location_id": about.location_id,
        }

    def _note_once(self, control_type: ControlType) -> None:
        if control_type not in self._types_noted:
            self._types_noted.add(control_type)
            log.warning("control.left_in_queue", queue=self._queue.name, type=control_type)
