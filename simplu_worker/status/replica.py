"""The views of this replica: health, status, operations, tenants, shards. Read-only.

The references' monitoring points, and the requests that empty a queue or the cache, are in `queues`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, assert_never

import msgspec

from simplu_worker import __version__
from simplu_worker.aws.clients import credential_source
from simplu_worker.bulkheads import current_troubles
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet, LeaseRelease
from simplu_worker.consumers.kinesis.fleet.fleet_report import KnownReplica, lone_report
from simplu_worker.consumers.kinesis.fleet.read_status import (
    ReadStatus,
    hold_reason,
    read_status,
)
from simplu_worker.consumers.kinesis.leases.lease_report import HoldRetry, ReplicaFigures
from simplu_worker.consumers.kinesis.reader.reader_view import ReaderView
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.rejection_notes import KEPT_S
from simplu_worker.consumers.sqs.orders.handler import OrderHandler
from simplu_worker.consumers.sqs.receive.receiver import LONGEST_TURN_S
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.feed.feed import Feed
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.operations.request_ids import control_request_id
from simplu_worker.shards.gateway import NO_STREAM_SHARDS, LoggedOperation, RejectedRequest, ShardGateway
from simplu_worker.shards.health.all_shards import ShardInspector
from simplu_worker.shards.health.assessment import Health, health_view
from simplu_worker.shards.health.moves import longest_standing_s, move_views
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.types import Lever, StreamShards
from simplu_worker.status.live.fleet_history import FleetHistory, fleet_point
from simplu_worker.status.live.held_advice import advice_members
from simplu_worker.status.live.history import History, totals_of
from simplu_worker.status.live.problems import Problems, find_problems
from simplu_worker.status.live.request_bodies import OpenDesk
from simplu_worker.status.live.stream_history import StreamHistory
from simplu_worker.status.live.top_tenants import TopTenants
from simplu_worker.status.operation_list import list_operations
from simplu_worker.status.operation_waits import OperationWaits
from simplu_worker.status.queues import Monitoring
from simplu_worker.status.server import HttpAnswer, Views
from simplu_worker.status.unreadiness import Unreadiness
from simplu_worker.status.views import (
    feed_view,
    levers_view,
    not_steered_error,
    refused_view,
    resource_view,
    shard_view,
    tenant_view,
    trouble_view,
)
from simplu_worker.telemetry.log import recent_errors, scrub_text
from simplu_worker.timing.clock import OWN_CLOCK, loop_time, utc_now
from simplu_worker.vocabulary import (
    OTHER_REPLICA,
    Absence,
    DependencyState,
    HoldReason,
    RequestStatus,
    ShardProblem,
    SourceState,
    TargetKind,
    UnreadyReason,
)

HEALTH_SUMMARY: Final = (
    "state",
    "role",
    "responseMs",
    "tenantCount",
    "usage",
    "connectionsUsed",
    "connectionsMax",
    "schemaVersion",
    "upgrading",
    "replicationLagSeconds",
    "odd",
    "lastCheckAt",
    "lastAnswer",
)
FLEET_TURN_MAX_S: Final = 60.0  # twice the time of a scan, a listing and their time-outs
DRAIN_MARGIN_S: Final = 10.0  # to cancel and to close after the grace time, when the daemon ends the drain


@dataclass
class ReplicaStatus:
    """The state of this replica for its views; the parts are None until `start`.

    *grace_s* is the time to drain once *stopping* is set, *runbook_url* the address of the documentation site.
    """

    name: str
    stopping: asyncio.Event
    grace_s: float = float("inf")
    runbook_url: str | None = None
    started_at: float = field(default_factory=time.monotonic)
    gateway: ShardGateway | None = None
    pools: Pools | None = None
    locator: Locator | None = None
    fleet: Fleet | None = None
    feed: Feed | None = None
    health: HealthRegistry = field(default_factory=HealthRegistry)
    inspector: ShardInspector | None = None
    monitoring: Monitoring = field(default_factory=Monitoring)
    history: History = field(default_factory=lambda: History(instruments.LATENCY_BUCKETS_S))
    stream_history: StreamHistory = field(default_factory=StreamHistory)
    fleet_history: FleetHistory = field(default_factory=FleetHistory)
    problems: Problems = field(default_factory=Problems)
    waits: OperationWaits | None = None  # from the first one on
    top_tenants: TopTenants = field(default_factory=TopTenants)
    _drain_seen_at: float | None = None

    def start(
        self,
        gateway: ShardGateway,
        pools: Pools,
        locator: Locator,
        *,
        fleet: Fleet | None = None,
        feed: Feed | None = None,
        monitoring: Monitoring | None = None,
        health: HealthRegistry | None = None,
    ) -> None:
        """Show these parts from now on."""
        self.gateway, self.pools, self.locator, self.fleet, self.feed = gateway, pools, locator, fleet, feed
        self.inspector = ShardInspector(locator, pools)
        self.monitoring = monitoring or Monitoring()
        self.health = health or HealthRegistry()

    def liveness_problem(self) -> str | None:
        """Return which loop is stuck; None if a restart would not help.

        In a drain the loops end one after the other: then only the drain itself can be stuck.
        """
        now = loop_time()
        if self.stopping.is_set():
            return self._stuck_drain(now)
        for name, receiver in self.monitoring.receivers.items():
            if now - receiver.last_turn > 2 * LONGEST_TURN_S:
                return f"queue {name}: one of its loops has not turned for {now - receiver.last_turn:.0f} s"
        turned_at = float("inf") if self.fleet is None else self.fleet.last_turn
        if now - turned_at > FLEET_TURN_MAX_S:
            return f"leases: the loop has not turned for {now - turned_at:.0f} s"
        return None

    def _stuck_drain(self, now: float) -> str | None:
        if self._drain_seen_at is None:  # probes call this every few seconds
            self._drain_seen_at = now
        drained_s = now - self._drain_seen_at
        if drained_s <= self.grace_s + DRAIN_MARGIN_S:
            return None
        return f"drain: not ended after {drained_s:.0f} s, with {self.grace_s:g} s of grace"

    def readiness_problem(self) -> Unreadiness | None:
        """Return why no work can be done now, without secrets; None while the sources are consumed."""
        problem = self._readiness_problem()
        return problem and problem._replace(text=problem.text and scrub_text(problem.text))

    def _readiness_problem(self) -> Unreadiness | None:
        if self.gateway is not None and self.stopping.is_set():
            return Unreadiness(UnreadyReason.DRAINING)
        if (problem := credential_source().problem) is not None:
            return Unreadiness(UnreadyReason.CREDENTIALS_UNAVAILABLE, problem)
        if self.gateway is None:
            return Unreadiness(UnreadyReason.STARTING)
        if isinstance(self.locator, CitrusClient) and self.locator.is_denied:
            return Unreadiness(UnreadyReason.CITRUS_REFUSES_KEY, self.locator.last_error)
        receivers = self.monitoring.receivers
        failing = [f"queue {name}: {one.internal_error}" for name, one in receivers.items() if one.internal_error]
        if self.fleet is not None and self.fleet.reading_trouble:
            failing.append(f"stream {self.fleet.stream_name}: {self.fleet.reading_trouble}")
        if failing:
            return Unreadiness(UnreadyReason.SOURCE_FAILING, "; ".join(failing))
        if self.fleet is not None:  # the stream is the main source: a queue neither replaces it nor makes it unready
            return self._stream_problem(self.fleet)
        return self._queue_problem()

    def _queue_problem(self) -> Unreadiness | None:
        receivers = self.monitoring.receivers
        if not receivers or any(one.is_reachable for one in receivers.values()):
            return None
        problems = [f"queue {name}: {one.last_error}" for name, one in receivers.items() if one.last_error]
        if not problems:
            return Unreadiness(UnreadyReason.STARTING)
        return Unreadiness(UnreadyReason.QUEUES_UNREACHABLE, "; ".join(problems))

    def _stream_problem(self, fleet: Fleet) -> Unreadiness | None:
        if (outage := fleet.outage) is not None:
            is_shut_out = fleet.is_shut_out_by_kcl
            reason = UnreadyReason.KCL_ASSIGNS_LEASES if is_shut_out else UnreadyReason.STREAM_UNAVAILABLE
            return Unreadiness(reason, outage)
        if not fleet.is_set_up:
            return Unreadiness(UnreadyReason.STREAM_OPENING)
        refusal = next((reader.refusal for reader in fleet.readers() if reader.refusal), None)
        return None if refusal is None else Unreadiness(UnreadyReason.STREAM_UNREADABLE, refusal)

    def readiness_detail(self) -> str | None:
        """Return what a person should know while the replica is ready: gaps, internal errors, the plans of a KCL 3.x.

        Names no shard: it is read without a token.
        """
        marked = {
            shard_id for shard_id, health in self.health.by_shard_id.items() if ShardProblem.GAP in health.problems
        }
        held = {hold.name for reader in self._readers() for hold in reader.holds() if hold.reason == HoldReason.GAP}
        count = len(marked | held)
        gap = f"{count} shard{'s' if count > 1 else ''} held for a gap: `simplu-worker shards list` names them"
        kinds = Counter(trouble.target for trouble in current_troubles())
        troubles = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        internal = f"errors inside the worker stop the work for {troubles}: see `loop.failed` in the log"
        details = [
            gap if count else None,
            internal if kinds else None,
            None if self.fleet is None else self.fleet.kcl_outlook,
        ]
        return "; ".join(detail for detail in details if detail) or None

    def refresh_gauges(self) -> None:
        """Set the gauges that no single event sets."""
        kinds = Counter(trouble.target for trouble in current_troubles())
        for kind in TargetKind:
            instruments.TARGETS_IN_TROUBLE.labels(kind).set(kinds[kind])
        moves = self.health.unfinished_moves()
        instruments.MOVES_UNFINISHED.set(sum(map(len, moves.values())))
        instruments.MOVE_STANDING.set(longest_standing_s(moves))
        instruments.CLOCK_AHEAD.set(OWN_CLOCK.ahead_s or 0.0)
        for receiver in self.monitoring.receivers.values():
            receiver.refresh_gauges()
        if self.fleet is not None:
            self._refresh_stream_gauges(self.fleet)

    def _refresh_stream_gauges(self, fleet: Fleet) -> None:
        readers = fleet.readers()
        targets: set[tuple[str, str, str]] = set()  # a target that is held in several stream shards counts once
        ages: dict[str, float] = dict.fromkeys(HoldReason, 0.0)
        for reader in readers:
            for hold in reader.holds():
                targets.add((hold.reason, hold.target, hold.name))
                ages[hold.reason] = max(ages[hold.reason], reader.view.held_age_s(hold))
            name = reader.stream_shard_id
            instruments.KINESIS_LAG.labels(name).set(reader.view.lag_s or 0.0)
            instruments.KINESIS_LAG_RETENTION.labels(name).set(reader.view.lag_retention_ratio(reader.retention))
            instruments.HELD_RETENTION.labels(name).set(reader.view.held_retention_ratio(reader.retention))
            instruments.CATCH_UP_LAG.labels(name).set(reader.view.catch_up_lag_s)
        counts = Counter(reason for reason, _, _ in targets)
        for reason, age_s in ages.items():
            instruments.HELD_TARGETS.labels(reason).set(counts[reason])
            instruments.HELD_AGE.labels(reason).set(age_s)
        instruments.CATCH_UPS.set(sum(reader.view.catch_up_count for reader in readers))
        instruments.PREFETCH_BYTES.set(fleet.prefetch.used_bytes)
        instruments.PREFETCH_MAX_BYTES.set(fleet.prefetch.max_bytes)

    def status(self) -> dict[str, Any]:
        """Return the whole status, for people and their tools."""
        state = self._state()
        unready = self.readiness_problem()
        return {
            "replica": self.name,
            "version": __version__,
            "uptime_s": round(time.monotonic() - self.started_at, 1),
            "unreadyDetail": None if unready is None else unready.text,
            "sources": self._sources(),
            **state,
            "heldAdvice": self._advice({one["reason"] for one in state["held"]}),
            "prefetch": self.fleet
            and {
                "usedBytes": self.fleet.prefetch.used_bytes,
                "maxBytes": self.fleet.prefetch.max_bytes,
            },
            "retentionSeconds": self.fleet and self.fleet.retention and self.fleet.retention.total_seconds(),
            "recentErrors": recent_errors(),
            "history": self.history.view(),
            "counters": {
                "operations": instruments.totals_by(instruments.OPERATIONS, "outcome"),
                "deadLetters": instruments.totals_by(instruments.DEAD_LETTERS, "reason"),
                "provisioned": instruments.totals_by(instruments.PROVISIONING, "outcome"),
            },
        }

    def _state(self) -> dict[str, Any]:
        """Return the members of the status that tell what is wrong."""
        unready = self.readiness_problem()
        return {
            "ready": True if unready is None else unready.reason,
            "queues": self.monitoring.consumed_queues(),
            "streamShards": self.fleet.status() if self.fleet else [],
            "shards": self._shards(),
            "held": [
                {"streamShard": reader.stream_shard_id} | target
                for reader in self._readers()
                for target in reader.view.held_status()
            ],
            "moves": move_views(self.health.unfinished_moves()),
            "feed": self.feed and feed_view(self.feed.published_count, self.feed.views()),
            "cache": self.monitoring.cache_state(),
            "troubles": [trouble_view(trouble) for trouble in current_troubles()],
            "clock": OWN_CLOCK.problem or DependencyState.OK,
            "citrus": self.locator.last_error or DependencyState.OK if isinstance(self.locator, CitrusClient) else None,
        }

    def fleet_status(self) -> dict[str, Any]:
        """Return the replicas of the fleet: those with a lease, and this one."""
        report, at = self._fleet_report(), utc_now()
        self.problems.note(find_problems(self._state(), report, at), at)
        reasons = {one["reason"] for replica in report["replicas"] for one in replica["held"]}
        return {
            "replica": self.name,
            "at": at.isoformat(timespec="milliseconds"),
            "stream": self.fleet and self.fleet.stream_name,
            **report,
            "topTenants": self.top_tenants.rows,
            "heldAdvice": self._advice(reasons),
            "problems": self.problems.view(at, self.runbook_url),
        }

    def history_of_fleet(self) -> dict[str, Any]:
        """Answer `GET /fleet/history`."""
        return self.stream_history.view() | self.fleet_history.view()

    def _fleet_report(self) -> dict[str, Any]:
        if self.fleet is None:
            return lone_report(KnownReplica(self.name, __version__, self._figures()))
        return self.fleet.report()

    def _figures(self) -> ReplicaFigures:
        return msgspec.structs.replace(self.history.figures(), top=self.top_tenants.first())

    def _advice(self, reasons: Iterable[str]) -> dict[str, dict[str, str]]:
        return {reason: advice_members(reason, self.runbook_url) for reason in sorted(reasons)}

    async def release_lease(self, stream_shard_id: str) -> HttpAnswer:
        """Answer `POST /leases/{streamShard}/release`."""
        if self.fleet is None or not self.fleet.is_set_up:
            return 503, {"error": "starting" if self.gateway is None else "this replica reads no stream"}
        try:
            result = await self.fleet.release_lease(stream_shard_id)
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": scrub_text(str(exc))}
        match result:
            case LeaseRelease.HANDED_OVER:
                return 202, {"streamShard": stream_shard_id, "how": result}
            case LeaseRelease.UNKNOWN:
                return 404, {"error": "expected a stream shard with a lease, as /fleet lists them"}
            case LeaseRelease.ALONE:
                return 409, {"error": "expected another replica to take this lease, none did; its owner reads on"}
            case LeaseRelease.UNOWNED:
                return 409, {"error": "no replica owns this lease"}
            case LeaseRelease.FOREIGN:
                return 409, {"error": "a KCL owns or assigns this lease: release it there"}
            case _:
                assert_never(result)

    async def retry_held(self, target: str | None) -> HttpAnswer:
        """Answer `POST /held/retry`."""
        if self.gateway is None:
            return 503, {"error": "starting"}
        if self.fleet is None:
            return 200, {"retried": 0, "asked": [], "notAsked": []}
        try:
            asked = await self.fleet.ask_to_retry(HoldRetry(secrets.token_hex(8), target))
        except ValueError as exc:
            return 400, {"error": str(exc)}
        return 200, {
            "retried": self.fleet.retry_holds(target),
            "asked": sorted(owner for owner, is_asked in asked.items() if is_asked),
            "notAsked": sorted(owner for owner, is_asked in asked.items() if not is_asked),
        }

    async def note_history(self) -> None:
        """Add the present moment to the history."""
        lags = [reader.view.lag_s for reader in self._readers()]
        totals = totals_of(
            instruments.totals_by(instruments.OPERATIONS, "outcome"),
            instruments.totals_by(instruments.DEAD_LETTERS, "reason"),
            instruments.OPERATION_LATENCY.bucket_counts(),
            lag_s=max((lag for lag in lags if lag is not None), default=None),
            held_count=sum(len(reader.holds()) for reader in self._readers()),
        )
        at = utc_now()
        self.history.note(totals, now=loop_time(), at=at)
        if self.fleet is not None:
            self.fleet.figures = self._figures()
        report = self._fleet_report()
        self.stream_history.note(report["streamShards"], at)
        self.fleet_history.note(fleet_point(report, at))
        self.problems.note(find_problems(self._state(), report, at), at)

    async def note_top_tenants(self) -> None:
        """Note which tenants take most of the shards' time now."""
        if self.gateway is not None and self.pools is not None:
            known = self.pools.by_shard_id()
            await self.top_tenants.note({one: usage for one, usage in self.gateway.usages().items() if one in known})

    def _sources(self) -> list[dict[str, Any]]:
        queues = [
            {
                "kind": "sqs",
                "name": name,
                "state": scrub_text(receiver.last_error or self._activity(SourceState.POLLING)),
                "inHand": receiver.in_flight_count,
            }
            for name, receiver in self.monitoring.receivers.items()
        ]
        if self.fleet is None:
            return queues
        state = scrub_text(self.fleet.outage or self._activity(SourceState.READING))
        return [{"kind": "kinesis", "name": self.fleet.stream_name, "state": state}, *queues]

    def _activity(self, usual: str) -> str:
        """Return the state of a source without trouble: *usual*, and in a drain that nothing new is fetched."""
        return "draining" if self.stopping.is_set() else usual

    def _shards(self) -> list[dict[str, Any]]:
        """Return the known shards as last seen, without a request."""
        pools, health = self.pools.by_shard_id() if self.pools else {}, self.health.by_shard_id
        return [
            {"shardId": shard_id}
            | _pool_view(pools.get(shard_id))
            | _health_summary(health_view(health.get(shard_id, Health())))
            for shard_id in sorted(pools.keys() | health.keys())
        ]

    def handler_status(self) -> dict[str, Any]:
        """Return the state of the worker (docs/outcomes.md, `GET /handler/status`)."""
        unready = self.readiness_problem()
        return {
            "running": unready is None,
            "state": _handler_state(unready),
            "reason": None if unready is None else unready.reason,
            "detail": None if unready is None else unready.text,
            "replica": self.name,
            "version": __version__,
            "uptimeSeconds": round(time.monotonic() - self.started_at, 1),
            "sources": self._sources(),
        }

    async def find_operation(self, request_id: str, business_id: str | None, location_id: str | None) -> HttpAnswer:
        """Answer `GET /operations/{requestId}` (docs/outcomes.md)."""
        if self.gateway is None:
            return 503, {"error": "starting"}
        tenant_id = None if business_id is None else tenant_id_of(business_id, location_id or "")
        asked = {"requestId": request_id}
        # Before the log is queried: an operation that is applied in between must not count as decided and absent.
        status = self._read_status(tenant_id)
        found: LoggedOperation | RejectedRequest | Absence | None
        try:
            names = None if business_id is None else (business_id, location_id or "")
            answer = await self.gateway.find_operation(
                request_id, tenant_id, names=names, stream=self._stream_shards(status)
            )
            found = answer.operation
            is_pending = not isinstance(found, LoggedOperation) and self._is_pending(request_id, tenant_id)
            if not isinstance(found, LoggedOperation) and not is_pending:
                found = await self.gateway.find_rejection(request_id, tenant_id) or found
        except (RetryableError, PermanentError) as exc:
            held = None if tenant_id is None else self._own_hold(tenant_id)
            return (503, {"error": str(exc)}) if held is None else (200, asked | {"status": RequestStatus.HELD} | held)
        silent = _silent_members(answer.silent_shard_ids)
        # A shard without an answer, or a tenant without a home now, may have anything.
        is_whole = not (silent or isinstance(found, Absence))
        read_up_to = {} if status is None else {"readUpTo": status.up_to(answer.positions) if is_whole else None}
        if isinstance(found, LoggedOperation | RejectedRequest):
            members = msgspec.to_builtins(found, builtin_types=(msgspec.Raw,))
            return 200, members | read_up_to | silent
        if is_pending:
            return 200, asked | {"status": RequestStatus.PENDING} | silent
        if tenant_id is not None and (held := self._find_held(tenant_id, found, status)) is not None:
            return 200, asked | {"status": RequestStatus.HELD} | held
        lags = [reader.view.lag_of(tenant_id) for reader in self._readers()]
        lag_s = max((lag for lag in lags if lag is not None), default=None)
        unknown = {"status": RequestStatus.UNKNOWN, "lagSeconds": lag_s, "answerUntil": _answer_until(lag_s)}
        return 404, asked | unknown | read_up_to | silent

    async def wait_for_operation(
        self, request_id: str, business_id: str, location_id: str, within_s: float, end: asyncio.Event
    ) -> bool:
        """Return once an operation is decided or held, *end* is set, or after *within_s*; False: too many wait."""
        if self.gateway is None:
            return True
        if self.waits is None:
            self.waits = OperationWaits(self.gateway.is_decided, lambda one: self._tenant_hold(one) is not None)
        return await self.waits.wait(tenant_id_of(business_id, location_id), request_id, within_s, end)

    def _readers(self) -> Sequence[StreamShardReader]:
        return self.fleet.readers() if self.fleet else []

    def _read_status(self, tenant_id: str | None) -> ReadStatus | None:
        return None if self.fleet is None else read_status(self.fleet.leases(), tenant_id)

    def _stream_shards(self, status: ReadStatus | None) -> StreamShards:
        if self.fleet is None or status is None:
            return NO_STREAM_SHARDS
        return StreamShards(self.fleet.stream_name, status.stream_shard_ids)

    def _find_held(self, tenant_id: str, absence: Absence | None, status: ReadStatus | None) -> dict[str, Any] | None:
        """Return why and since when operations of a tenant are held, if they are; *absence* is why it has no home."""
        if (held := self._own_hold(tenant_id)) is not None:
            return held
        is_paused = self.gateway is not None and self.gateway.paused_s(tenant_id) > 0
        reason = hold_reason(absence, status, is_paused=is_paused)
        return None if reason is None else {"reason": reason}

    def _own_hold(self, tenant_id: str) -> dict[str, Any] | None:
        held = next(filter(None, (reader.view.hold_of(tenant_id) for reader in self._readers())), None)
        if held is None:
            return None
        return {"reason": held.reason, "since": utc_now() - timedelta(seconds=loop_time() - held.since)}

    def _tenant_hold(self, tenant_id: str) -> dict[str, Any] | None:
        """Return why operations of a tenant are held, by any replica, and what to do; None if none are.

        Asks no shard: that of the tenant may be the one that does not answer.
        """
        status = self._read_status(tenant_id)
        held = self._own_hold(tenant_id)
        if held is None and (status is None or not status.held_in):
            return None
        held = held or {"reason": OTHER_REPLICA}
        return held | advice_members(held["reason"], self.runbook_url)

    def _is_pending(self, request_id: str, tenant_id: str | None) -> bool:
        handlers: list[ReaderView | OrderHandler] = [
            *(reader.view for reader in self._readers()),
            *self.monitoring.orders.values(),
        ]
        return any(handler.is_pending(request_id, tenant_id) for handler in handlers)

    async def find_tenant(self, business_id: str, location_id: str) -> HttpAnswer:
        """Answer `GET /tenants/{businessId}/{locationId}`."""
        if self.gateway is None:
            return 503, {"error": "starting"}
        tenant_id = tenant_id_of(business_id, location_id)
        held = {"held": self._tenant_hold(tenant_id)}
        try:
            found = await self.gateway.find_tenant(tenant_id)
            refused = await self.gateway.find_rejection(control_request_id(business_id, location_id), tenant_id)
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": str(exc)} | held
        asked = {"businessId": business_id, "locationId": location_id, "refused": refused_view(refused)}
        if isinstance(found, Absence):
            return 404, asked | {"state": found} | held
        shard_id, row = found
        if (row["business_id"], row["location_id"]) != (business_id, location_id):  # another pair with the same id
            return 404, asked | {"state": Absence.UNREGISTERED, "held": None}
        return 200, tenant_view(shard_id, row) | {"refused": asked["refused"]} | held

    async def find_tenant_by_id(self, tenant_id: str) -> HttpAnswer:
        """Answer `GET /tenants/{tenantId}`: the id of a held target or of a move, which does not tell its two ids."""
        if self.gateway is None:
            return 503, {"error": "starting"}
        held = {"tenant": tenant_id, "held": self._tenant_hold(tenant_id)}
        try:
            found = await self.gateway.find_tenant(tenant_id)
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": str(exc)} | held
        return (404, held | {"state": found}) if isinstance(found, Absence) else (200, tenant_view(*found) | held)

    async def find_resource(
        self, business_id: str, location_id: str, resource_type: str, resource_id: str
    ) -> HttpAnswer:
        """Answer `GET /resources/{businessId}/{locationId}/{resourceType}/{resourceId}`."""
        if self.gateway is None:
            return 503, {"error": "starting"}
        try:
            found = await self.gateway.find_resource(business_id, location_id, resource_type, resource_id)
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": str(exc)}
        asked = {"businessId": business_id, "locationId": location_id}
        if isinstance(found, Absence):
            return 404, asked | {"state": found}
        return 200, asked | resource_view(resource_type, resource_id, *found)

    async def steer_tenant(self, business_id: str, location_id: str, lever: Lever) -> HttpAnswer:
        """Answer `POST /tenants/{businessId}/{locationId}/pause`, `/resume` and `/weight`."""
        if self.gateway is None:
            return 503, {"error": "starting"}
        try:
            found = await self.gateway.steer_tenant(business_id, location_id, lever)
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": str(exc)}
        if isinstance(found, Absence):
            return (409 if found is Absence.MOVING else 404), {"error": not_steered_error(found)}
        return 200, levers_view(*found)

    async def inspect_shards(self) -> HttpAnswer:
        """Answer `GET /shards`: every known shard as it is now, inspected concurrently; names those without answer."""
        if self.inspector is None:
            return 503, {"error": "starting"}
        try:
            listed = await self.inspector()
        except (RetryableError, PermanentError) as exc:
            return 503, {"error": str(exc)}
        pools = self.pools.by_shard_id() if self.pools else {}
        silent = [shard.address.shard_id for shard in listed if shard.is_silent]
        views = [shard_view(shard) | _pool_view(pools.get(shard.address.shard_id)) for shard in listed]
        return 200, {"shards": views} | _silent_members(silent)


def http_views(replica: ReplicaStatus, letters: OpenDesk | None = None) -> Views:
    """Return the views of *replica* for the HTTP server; *letters* acts on dead letters."""
    return Views(
        live=replica.liveness_problem,
        ready=replica.readiness_problem,
        detail=replica.readiness_detail,
        refresh_gauges=replica.refresh_gauges,
        status=replica.status,
        fleet=replica.fleet_status,
        fleet_history=replica.history_of_fleet,
        operation=replica.find_operation,
        wait=replica.wait_for_operation,
        operations=lambda query: list_operations(replica.gateway, query),
        tenant=replica.find_tenant,
        tenant_by_id=replica.find_tenant_by_id,
        resource=replica.find_resource,
        steer_tenant=replica.steer_tenant,
        shards=replica.inspect_shards,
        sqs_stats=_require_started(replica, Monitoring.sqs_stats),
        handler_status=replica.handler_status,
        handler_stats=_require_started(replica, Monitoring.handler_stats),
        cache_stats=_require_started(replica, Monitoring.cache_stats),
        cache_keys=_require_started(replica, Monitoring.cache_keys),
        release_lease=replica.release_lease,
        retry_held=replica.retry_held,
        letters=letters,
        purge=_require_started(replica, Monitoring.purge),
        clear_cache=_require_started(replica, Monitoring.clear_cache),
    )


def _require_started(
    replica: ReplicaStatus, ask: Callable[..., Awaitable[HttpAnswer]]
) -> Callable[..., Awaitable[HttpAnswer]]:
    """Return a view that calls *ask* with the monitored parts; it answers 503 until *replica* has started."""

    async def answer(*args: str) -> HttpAnswer:
        if replica.gateway is None:
            return 503, {"error": "starting"}
        return await ask(replica.monitoring, *args)

    return answer


def _answer_until(lag_s: float | None) -> datetime | None:
    """Return until when an operation that is in the stream by now gets its answer: also a rejection, which is noted."""
    return None if lag_s is None else utc_now() + timedelta(seconds=lag_s + KEPT_S)


def _handler_state(unready: Unreadiness | None) -> str:
    if unready is None:
        return SourceState.RUNNING
    return unready.reason if unready.reason in {UnreadyReason.STARTING, UnreadyReason.DRAINING} else SourceState.WAITING


def _health_summary(view: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a shard's health for a row of the status page; `/shards` has all of them."""
    return {name: view[name] for name in HEALTH_SUMMARY if name in view}


def _pool_view(pool: ShardPool | None) -> dict[str, Any]:
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
