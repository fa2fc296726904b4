"""What a started replica answers about operations, tenants, resources, shards and dead letters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec

from simplu_worker.bulkheads import contain
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.fleet.fleet_report import ReadStatus, hold_reason, read_status
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import ReaderView, StreamShardReader
from simplu_worker.consumers.rejection_notes import KEPT_S
from simplu_worker.consumers.sqs.order_handler import OrderHandler
from simplu_worker.dead_letters.plan import EditRequest, LettersRequest, NotEditableError
from simplu_worker.dead_letters.service import DeadLetterService, LettersAction
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import control_request_id, tenant_id_of
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.health.prober import InspectedShard
from simplu_worker.shards.listing import ListRequest
from simplu_worker.shards.lookups import NO_STREAM_SHARDS, LoggedOperation, RejectedRequest
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.types import StreamShards, TenantControls
from simplu_worker.status.answers import Json, NoTenant, Resource
from simplu_worker.status.causes import advice_members
from simplu_worker.status.guard import Actor, logged_action
from simplu_worker.status.queues import Monitoring
from simplu_worker.status.request_bodies import HttpAnswer
from simplu_worker.status.views import (
    business_controls_view,
    controls_error,
    controls_view,
    refused_view,
    shard_view,
    tenant_view,
)
from simplu_worker.status.words import RequestStatus, Role
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.timing.clock import loop_time, utc_now
from simplu_worker.timing.waits import sleep_or_event
from simplu_worker.vocabulary import OTHER_REPLICA, Absence, TargetKind, TenantState

LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True)
class Lookups:
    """The answers; each may raise `RetryableError` or `PermanentError`. *fleet* is None without a stream."""

    gateway: ShardGateway
    inspector: Callable[[], Awaitable[list[InspectedShard]]]
    pools: Pools
    monitoring: Monitoring
    fleet: Fleet | None
    runbook_url: str | None

    async def find_operation(
        self, request_id: str, business_id: str | None, location_id: str | None, role: Role
    ) -> HttpAnswer:
        """Answer `GET /operations/{requestId}` (docs/outcomes.md)."""
        names = None if business_id is None else (business_id, location_id or "")
        tenant_id = None if names is None else tenant_id_of(*names)
        asked = {"requestId": request_id}
        # Before the log is queried: an operation that is applied in between must not count as decided and absent.
        status = self._read_status(tenant_id)
        found: LoggedOperation | RejectedRequest | Absence | None
        try:
            answer = await self.gateway.lookups.find_operation(
                request_id, tenant_id, names=names, stream=self._stream_shards(status)
            )
            found = answer.operation
            is_pending = not isinstance(found, LoggedOperation) and self._is_pending(request_id, names)
            if not isinstance(found, LoggedOperation) and not is_pending:
                found = await self.gateway.lookups.find_rejection(request_id, tenant_id, names=names) or found
        except (RetryableError, PermanentError):
            held = None if names is None else self._own_hold_of(names, role)
            if held is None:
                raise
            return 200, asked | {"status": RequestStatus.HELD} | held
        silent = _silent_members(answer.silent_shard_ids)
        # A shard without an answer, or a tenant without a home now, may have anything.
        is_whole = not (silent or isinstance(found, Absence))
        read_up_to = {} if status is None else {"readUpTo": status.up_to(answer.positions) if is_whole else None}
        if isinstance(found, LoggedOperation | RejectedRequest):
            members = msgspec.to_builtins(found, builtin_types=(msgspec.Raw,))
            return 200, members | read_up_to | silent
        if is_pending:
            return 200, asked | {"status": RequestStatus.PENDING} | silent
        if names is not None and (held := self._find_held(names, role, found, status)) is not None:
            return 200, asked | {"status": RequestStatus.HELD} | held
        lags = [reader.view.lag_of(tenant_id) for reader in self._readers()]
        lag_s = max((lag for lag in lags if lag is not None), default=None)
        # When an operation in the stream has its answer, as a rejection too is noted.
        answer_until = None if lag_s is None else utc_now() + timedelta(seconds=lag_s + KEPT_S)
        unknown = {"status": RequestStatus.UNKNOWN, "lagSeconds": lag_s, "answerUntil": answer_until}
        return 404, asked | unknown | read_up_to | silent

    async def wait_for_operation(
        self, request_id: str, business_id: str, location_id: str, within_s: float, closing: asyncio.Event
    ) -> None:
        """Return once an operation is decided or held, at *closing*, or after *within_s*.

        All waits look at the same moments, so that a shard is asked once for all.
        """
        names, tenant_id = (business_id, location_id), tenant_id_of(business_id, location_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not closing.is_set():
                    with contain(TargetKind.REPLICA, "waits", "waits"), contextlib.suppress(WorkerError):
                        if self._hold_of(names, Role.PRODUCER) is not None:
                            return
                        if await self.gateway.lookups.is_decided(tenant_id, business_id, request_id):
                            return
                    await sleep_or_event(LOOK_EVERY_S - loop_time() % LOOK_EVERY_S, until=closing)

    def _readers(self) -> Sequence[StreamShardReader]:
        return self.fleet.readers() if self.fleet else []

    def _read_status(self, tenant_id: str | None) -> ReadStatus | None:
        return None if self.fleet is None else read_status(self.fleet.leases(), tenant_id)

    def _stream_shards(self, status: ReadStatus | None) -> StreamShards:
        if self.fleet is None or status is None:
            return NO_STREAM_SHARDS
        return StreamShards(self.fleet.stream_name, status.stream_shard_ids)

    def _find_held(
        self, names: tuple[str, str], role: Role, absence: Absence | None, status: ReadStatus | None
    ) -> dict[str, Any] | None:
        if (held := self._own_hold_of(names, role)) is not None:
            return held
        is_paused = self.gateway.paused_s(tenant_id_of(*names)) > 0
        reason = hold_reason(absence, status, is_paused=is_paused)
        return None if reason is None else {"reason": reason}

    def _may_tell(self, names: tuple[str, str], role: Role) -> bool:
        """Return whether *role* may see a hold of the joined id: it may be another pair's."""
        is_tenant = self.gateway.is_tenant(*names)
        if is_tenant is None:  # no row was read, as of an unregistered tenant
            return role is not Role.PRODUCER or any(one.view.has_operations_of(names) for one in self._readers())
        return is_tenant

    def _own_hold_of(self, names: tuple[str, str], role: Role) -> dict[str, Any] | None:
        return self._own_hold(tenant_id_of(*names)) if self._may_tell(names, role) else None

    def _own_hold(self, tenant_id: str) -> dict[str, Any] | None:
        held = next(filter(None, (reader.view.hold_of(tenant_id) for reader in self._readers())), None)
        if held is None:
            return None
        return {"reason": held.reason, "since": utc_now() - timedelta(seconds=loop_time() - held.since)}

    def _hold_of(self, names: tuple[str, str], role: Role) -> dict[str, Any] | None:
        return self._tenant_hold(tenant_id_of(*names)) if self._may_tell(names, role) else None

    def _tenant_hold(self, tenant_id: str) -> dict[str, Any] | None:
        """Return why a tenant's operations are held, by any replica, and what to do.

        Asks no shard: that of the tenant may not answer.
        """
        status = self._read_status(tenant_id)
        held = self._own_hold(tenant_id)
        if held is None and (status is None or not status.held_in):
            return None
        held = held or {"reason": OTHER_REPLICA}
        return held | advice_members(held["reason"], self.runbook_url)

    def _is_pending(self, request_id: str, names: tuple[str, str] | None) -> bool:
        handlers: list[ReaderView | OrderHandler] = [
            *(reader.view for reader in self._readers()),
            *self.monitoring.orders.values(),
        ]
        return any(handler.is_pending(request_id, names) for handler in handlers)

    async def list_operations(self, business_id: str, location_id: str, request: ListRequest) -> HttpAnswer:
        """Answer `GET /operations`."""
        page = await self.gateway.lookups.list_operations(business_id, location_id, request)
        if isinstance(page, Absence):
            state = self.gateway.lookups.absence_of((business_id, location_id), page)
            return 404, {"businessId": business_id, "locationId": location_id, "state": state}
        return 200, msgspec.to_builtins(page)

    async def find_tenant(self, business_id: str, location_id: str, role: Role) -> HttpAnswer:
        """Answer `GET /tenants/{businessId}/{locationId}`."""
        names, tenant_id = (business_id, location_id), tenant_id_of(business_id, location_id)
        try:
            found = await self.gateway.lookups.find_tenant(tenant_id)
            key = control_request_id(*names)
            refused = await self.gateway.lookups.find_rejection(key, tenant_id, names=names)
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": scrub_text(str(exc)), "held": self._hold_of(names, role)}
        held = {"held": self._hold_of(names, role)}
        asked = {"businessId": business_id, "locationId": location_id, "refused": refused_view(refused)}
        if isinstance(found, Absence):
            return 404, asked | {"state": self.gateway.lookups.absence_of(names, found)} | held
        shard_id, row = found
        if (row["business_id"], row["location_id"]) != (business_id, location_id):  # another pair with the same id
            return 404, asked | {"state": Absence.UNREGISTERED, "held": None}
        return 200, tenant_view(shard_id, row) | {"refused": asked["refused"]} | held

    async def find_tenant_by_id(self, tenant_id: str) -> HttpAnswer:
        """Answer `GET /tenants/{tenantId}`: the id of a held target does not tell its two ids."""
        held = {"tenant": tenant_id, "held": self._tenant_hold(tenant_id)}
        try:
            found = await self.gateway.lookups.find_tenant(tenant_id)
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": scrub_text(str(exc))} | held
        return (404, held | {"state": found}) if isinstance(found, Absence) else (200, tenant_view(*found) | held)

    async def find_resource(
        self, business_id: str, location_id: str, resource_type: str, resource_id: str
    ) -> HttpAnswer:
        """Answer `GET /resources/{businessId}/{locationId}/{resourceType}/{resourceId}`."""
        found = await self.gateway.lookups.find_resource(business_id, location_id, resource_type, resource_id)
        if isinstance(found, Absence):
            return 404, NoTenant(state=found, business_id=business_id, location_id=location_id).json()
        shard_id, row = found
        return 200, Resource(
            business_id,
            location_id,
            resource_type,
            resource_id,
            shard_id,
            exists=row["is_there"],
            size_bytes=row["size_bytes"],
            date=row["date"],
            last_updated=row["last_updated"],
            data=None if row["data"] is None else msgspec.Raw(row["data"].encode()),
        ).json()

    async def set_controls(self, business_id: str, location_id: str, controls: TenantControls) -> HttpAnswer:
        """Answer `POST /tenants/{businessId}/{locationId}/pause`, `/resume`, `/weight` and `/limit`."""
        found = await self.gateway.lookups.set_controls(business_id, location_id, controls)
        if not isinstance(found, tuple):
            is_here = found is Absence.MOVING or isinstance(found, TenantState)
            return (409 if is_here else 404), {"error": controls_error(found)}
        return 200, controls_view(*found)

    async def set_business_controls(self, business_id: str, controls: TenantControls) -> HttpAnswer:
        """Answer `POST /businesses/{businessId}/pause`, `/resume`, `/weight` and `/limit`."""
        found = await self.gateway.lookups.set_business_controls(business_id, controls)
        if not (found.rows or found.silent_shard_ids):
            return 404, {"error": controls_error(Absence.UNREGISTERED)}
        return 200, business_controls_view(found)

    async def inspect_shards(self) -> HttpAnswer:
        """Answer `GET /shards`: every shard as it is now; names those without answer."""
        listed = await self.inspector()
        pools = self.pools.by_shard_id()
        silent = [shard.address.shard_id for shard in listed if shard.is_silent]
        views = [shard_view(shard) | pool_view(pools.get(shard.address.shard_id)) for shard in listed]
        return 200, {"shards": views} | _silent_members(silent)


def pool_view(pool: ShardPool | None) -> dict[str, Any]:
    """Return what a pool tells of its shard."""
    if pool is None:
        return {}
    return {
        "shardId": pool.address.shard_id,
        "place": pool.address.place,
        "healthy": pool.is_healthy,
        "error": pool.last_error,
        "connections": pool.counts(),
    }


def _silent_members(silent: Sequence[str]) -> dict[str, Any]:
    return {"shardsWithoutAnswer": list(silent)} if silent else {}


LIST_READ_S: Final = 40.0  # less than a request may take
ROOM_BYTES: Final = 4 * 1024 * 1024  # of records in one answer
NEEDS_UNTIL: Final = (
    "until: expected the time of the plan, as its answer names it, so that no later dead letter is touched; got none"
)
NEEDS_REQUEST_ID: Final = (
    "requestId: expected that of the plan, so that a repeated request sends nothing twice; got none"
)
NO_LETTER: Final = (
    "expected a dead letter with this messageId; it is gone, or hidden by another reader: list them again"
)
BUSY: Final = "another request reads the dead letters: repeat this one later"


class LetterRequests:
    """Answers requests about dead letters, one at a time: each hides them from others."""

    def __init__(self, settings: Settings) -> None:
        self._service = DeadLetterService(settings)
        self._turn = asyncio.Lock()

    async def act(self, action: LettersAction, request: LettersRequest | EditRequest, actor: Actor) -> HttpAnswer:
        """Answer `POST /dead-letters/…`. The log links the new request id of an edit to the old one."""
        if request.apply and isinstance(request, EditRequest) and request.request_id is None:
            return 400, {"error": NEEDS_REQUEST_ID}
        if request.apply and isinstance(request, LettersRequest) and request.until is None:
            return 400, {"error": NEEDS_UNTIL}
        if self._turn.locked():
            return 409, {"error": BUSY}
        asked = request.facts()
        async with self._turn:
            try:
                with logged_action(action, actor, asked, apply=request.apply) as acted:
                    if isinstance(request, EditRequest):
                        status, answer = await self._edit(request)
                        asked |= {name: answer[name] for name in ("requestId", "oldRequestId") if name in answer}
                    else:
                        status, answer = 200, await self._choose(action, request)
                    acted.answer = answer
            except WorkerError as exc:
                return 503, {"error": scrub_text(str(exc))}
        return status, answer

    async def _edit(self, request: EditRequest) -> HttpAnswer:
        notes: list[str] = []
        try:
            answer = await self._service.edit(request, notes.append)
        except ValueError as exc:
            return 400, {"error": str(exc)}
        except NotEditableError as exc:
            return 409, {"error": str(exc)}
        return (404, {"error": NO_LETTER}) if answer is None else (200, answer | {"notes": notes})

    async def _choose(self, action: LettersAction, request: LettersRequest) -> Json:
        until = request.until or utc_now()
        request, notes = msgspec.structs.replace(request, until=until), list[str]()
        if action is LettersAction.LIST:
            answer = await self._service.list(request, notes.append, room_bytes=ROOM_BYTES, read_s=LIST_READ_S)
        else:
            act = self._service.replay if action is LettersAction.REPLAY else self._service.discard
            answer = await act(request, notes.append)
        return answer | {"until": until.isoformat(), "notes": notes}
