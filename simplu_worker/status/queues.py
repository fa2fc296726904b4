"""The references' monitoring points: queues, their handlers, and the cache (docs/outcomes.md).

A queue or cache that does not answer is shown as such. Texts of dependencies are scrubbed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.aws.clients import ThrottledError
from simplu_worker.aws.sqs_queue import Queue, QueueAttributes
from simplu_worker.cache.cache import Cache, CacheAdmin
from simplu_worker.consumers.sqs.order_handler import OrderHandler
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.redrive_rules import parse_redrive_policy
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.status.answers import CacheKeys, Purge
from simplu_worker.status.request_bodies import HttpAnswer
from simplu_worker.telemetry.log import scrub, scrub_text

ANSWER_WITHIN_S: Final = 3.0  # less than the time-out of a page or a probe
PURGE_INTERVAL_S: Final = 60  # SQS API reference, PurgeQueue
KEYS_MAX: Final = 1000  # in one answer
NO_CACHE: Final = "no cache is configured: set REDIS_URL and restart"

log = structlog.get_logger(__name__)


class Monitoring(msgspec.Struct, frozen=True):
    """The parts that are shown: all *queues*, the *receivers* and *orders* of consumed ones, the cache if any."""

    receivers: Mapping[str, QueueReceiver] = msgspec.field(default_factory=dict)
    queues: Mapping[str, Queue] = msgspec.field(default_factory=dict)
    orders: Mapping[str, OrderHandler] = msgspec.field(default_factory=dict)
    cache: Cache | None = None
    cache_admin: CacheAdmin | None = None

    def consumed_queues(self) -> list[dict[str, Any]]:
        """Return the consumed queues as last seen, without a request."""
        return [{"name": name} | _receiver_view(receiver) for name, receiver in self.receivers.items()]

    def cache_state(self) -> dict[str, Any] | None:
        """Return the cache as last seen."""
        if self.cache is None:
            return None
        summary = self.cache.summary()
        state = "ok" if summary["reachable"] else scrub_text(summary["lastError"] or "unreachable")
        return {"state": state} | {name: value for name, value in summary.items() if name in CACHE_STATE}

    async def sqs_stats(self) -> HttpAnswer:
        """Answer `GET /sqs/stats`."""
        rows: dict[str, dict[str, Any]] = {}
        async with asyncio.TaskGroup() as tasks:
            for name, queue in self.queues.items():
                tasks.create_task(self._ask(name, queue, rows))
        return 200, {"queues": [rows[name] for name in self.queues]}

    async def handler_stats(self) -> HttpAnswer:
        """Answer `GET /handler/stats`."""
        _, queues = await self.sqs_stats()
        return 200, queues | {
            "handlers": [
                {"queue": name}
                | {member: value for member, value in _stats(receiver).items() if member not in UNHANDLED}
                | {"onTheirWay": self.orders[name].stats() if name in self.orders else None}
                for name, receiver in self.receivers.items()
            ],
            "retries": instruments.totals_by(instruments.RETRIES, "reason"),
            "operations": instruments.totals_by(instruments.OPERATIONS, "outcome"),
            "deadLetters": instruments.totals_by(instruments.DEAD_LETTERS, "reason"),
            "cache": self.cache_state(),
        }

    async def purge(self, name: str | None) -> HttpAnswer:
        """Answer `DELETE /sqs/purge`; messages in flight are handled all the same.

        Without *name* it is the one source queue; the dead-letter queue has to be named.
        """
        if name is None:
            if len(self.receivers) != 1:
                known = ", ".join(self.queues) or "none"
                return 400, {"error": f"expected the name of one queue, as ?queue=NAME; the queues are: {known}"}
            (name,) = self.receivers
        queue = self.queues.get(name)
        if queue is None:
            known = ", ".join(self.queues) or "none"
            return 404, {"error": f"the worker has no queue of this name; its queues are: {known}"}
        try:
            await queue.purge()
        except ThrottledError:
            error = f"SQS purges a queue once in {PURGE_INTERVAL_S} s at most; repeat the request after that"
            return 429, {"error": error, "queue": name, "retryAfterSeconds": PURGE_INTERVAL_S}
        except (RetryableError, PermanentError, OSError) as exc:
            return 503, {"error": scrub_text(str(exc)), "queue": name}
        log.warning("queue.purged", queue=name)
        return 202, Purge(name, PURGE_INTERVAL_S).json()

    async def cache_stats(self) -> HttpAnswer:
        """Answer `GET /cache/stats`."""
        if self.cache_admin is None:
            return 200, {"enabled": False}
        return 200, {"enabled": True} | scrub(await self.cache_admin.read_stats())

    async def cache_keys(self) -> HttpAnswer:
        """Answer `GET /cache/keys`. Raises `RetryableError`."""
        if self.cache_admin is None:
            return 404, {"error": NO_CACHE}
        keys, are_all = await self.cache_admin.list_keys(KEYS_MAX)
        return 200, CacheKeys(keys, len(keys), has_more=not are_all).json()

    async def clear_cache(self) -> HttpAnswer:
        """Answer `DELETE /cache/clear`. Raises `RetryableError`."""
        if self.cache_admin is None:
            return 404, {"error": NO_CACHE}
        return 200, await self.cache_admin.clear()

    async def _ask(self, name: str, queue: Queue, rows: dict[str, dict[str, Any]]) -> None:
        receiver = self.receivers.get(name)
        row: dict[str, Any] = {"name": name, "isFifo": queue.is_fifo, "consumed": receiver is not None, "error": None}
        if receiver is not None:
            row |= _receiver_view(receiver)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                row |= _attributes_view(await queue.read_attributes())
        except (RetryableError, PermanentError, OSError) as exc:  # a timeout is an OSError
            row |= dict.fromkeys(("visible", "inFlight", "delayed"))  # the last ones are not those of now
            row["error"] = scrub_text(str(exc)) or f"no answer within {ANSWER_WITHIN_S:g} s"
        rows[name] = row


def _attributes_view(queue: QueueAttributes) -> dict[str, Any]:
    policy = parse_redrive_policy(queue.redrive_policy)
    return {
        "visible": queue.visible_count,
        "inFlight": queue.in_flight_count,
        "delayed": queue.delayed_count,
        "visibilityTimeoutSeconds": queue.visibility_timeout_s,
        "retentionSeconds": queue.retention_s,
        "maxMessageBytes": queue.max_message_bytes,
        "redrive": policy and {"queue": policy.target_name, "maxReceiveCount": policy.max_receive_count},
    }


RECEIVED: Final = frozenset({"state", "visible", "inFlight", "delayed", "inHand", "oldestInHandSeconds", "outcomes"})
CACHE_STATE: Final = frozenset({"waiting", "invalidations", "epoch", "epochMovedAt", "epochMovedFor"})
UNHANDLED: Final = frozenset({"queue", "isFifo", "visible", "inFlight", "delayed", "visibilityTimeoutSeconds"})


def _receiver_view(receiver: QueueReceiver) -> dict[str, Any]:
    return {name: value for name, value in _stats(receiver).items() if name in RECEIVED}


def _stats(receiver: QueueReceiver) -> dict[str, Any]:
    stats = receiver.stats()
    return stats | {"state": scrub_text(stats["state"])}
