"""Health, status and fleet of this replica; `lookups` and `queues` have the rest."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker import __version__, instruments
from simplu_worker.aws.clients import credential_source
from simplu_worker.bulkheads import current_troubles
from simplu_worker.consumers.kinesis.fleet.fleet import Fleet
from simplu_worker.consumers.kinesis.fleet.fleet_report import fleet_report
from simplu_worker.consumers.kinesis.leases.lease import TOP_MAX, LeaseReport, ReplicaFigures, TopBusiness
from simplu_worker.consumers.sqs.receive.receiver import LONGEST_TURN_S
from simplu_worker.errors import RetryableError
from simplu_worker.fairness import SecondsByBusiness
from simplu_worker.feed.feed import Feed
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.health.assessment import Health, health_view, longest_standing_s, move_views
from simplu_worker.shards.health.prober import shared_inspection
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.status import answers
from simplu_worker.status.answers import Json
from simplu_worker.status.causes import advice_members
from simplu_worker.status.history import INTERVAL_S, Figures, FleetHistory, StreamHistory, fleet_point
from simplu_worker.status.lookups import Lookups, pool_view
from simplu_worker.status.problems import Problems, find_problems
from simplu_worker.status.queues import Monitoring
from simplu_worker.status.request_bodies import HttpAnswer
from simplu_worker.status.tls import WatchedFiles
from simplu_worker.status.views import Unreadiness, feed_state, trouble_view
from simplu_worker.status.words import OK, UnreadyReason
from simplu_worker.telemetry.log import recent_errors, scrub_text
from simplu_worker.timing.clock import loop_time, utc_now
from simplu_worker.vocabulary import HoldReason, Retry, SourceState

HEALTH_SUMMARY: Final = (
    *("state", "takesOperations", "role", "responseMs", "tenantCount", "usage", "connectionsUsed", "connectionsMax"),
    *("schemaVersion", "upgrading", "replicationLagSeconds", "odd", "lastCheckAt", "lastAnswer"),
)
TOP_INTERVAL_S: Final = 10.0
SHOWN_MIN_S: Final = 0.6  # that a business has to have taken: a hundredth of the last minute
RANK_COUNT: Final = 10  # businesses of a shard
LOCATIONS_MAX: Final = 5  # of a business
ROWS_MAX: Final = 200
FLEET_TURN_MAX_S: Final = 60.0  # twice the time of a scan, a listing and their time-outs


class TopBusinesses:
    """The businesses that took most of the last minute."""

    def __init__(self) -> None:
        self.rows: list[answers.TopBusiness] = []

    async def note(self, taken: Mapping[str, SecondsByBusiness]) -> None:
        """Take over what was taken of shards, and set the metrics."""
        rows: list[answers.TopBusiness] = []
        for shard_id, took_s in taken.items():
            top = _top_of(shard_id, took_s)
            for rank in range(RANK_COUNT):
                gauge = instruments.SHARD_BUSINESS_SECONDS.labels(shard_id, str(rank + 1))
                gauge.set(top[rank].seconds if rank < len(top) else 0.0)
            rows += [one for one in top if one.seconds >= SHOWN_MIN_S]
            await asyncio.sleep(0)  # there may be hundreds of shards
        self.rows = sorted(rows, key=lambda row: -row.seconds)[:ROWS_MAX]

    def first(self) -> tuple[TopBusiness, ...]:
        """Return those for the other replicas."""
        return tuple(TopBusiness(row.business_id, row.shard_id, row.seconds) for row in self.rows[:TOP_MAX])


def _top_of(shard_id: str, took_s: SecondsByBusiness) -> list[answers.TopBusiness]:
    sums_s = {one: sum(own.values()) for one, own in took_s.items()}
    total_s = sum(sums_s.values())
    top = []
    for one, own_s in _largest(sums_s, RANK_COUNT):
        locations = [answers.TopLocation(*pair) for pair in _largest(took_s[one], LOCATIONS_MAX)]
        top.append(answers.TopBusiness(shard_id, one, own_s, round(own_s / (total_s or 1.0), 3), locations))
    return top


def _largest(took_s: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    largest = heapq.nsmallest(count, took_s.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(one, round(own_s, 3)) for one, own_s in largest]


@dataclass
class ReplicaStatus:
    """The state of this replica; its parts are None until `start`."""

    name: str
    stopping: asyncio.Event
    runbook_url: str | None = None
    certificate: WatchedFiles[datetime] | None = None
    started_at: float = field(default_factory=time.monotonic)
    gateway: ShardGateway | None = None
    pools: Pools | None = None
    locator: Locator | None = None
    fleet: Fleet | None = None
    feed: Feed | None = None
    health: HealthRegistry = field(default_factory=HealthRegistry)
    lookups: Lookups | None = None
    monitoring: Monitoring = field(default_factory=Monitoring)
    figures: Figures = field(default_factory=lambda: Figures(instruments.LATENCY_BUCKETS_S))
    stream_history: StreamHistory = field(default_factory=StreamHistory)
    fleet_history: FleetHistory = field(default_factory=FleetHistory)
    problems: Problems = field(default_factory=Problems)
    top: TopBusinesses = field(default_factory=TopBusinesses)

    def start(
        self,
        gateway: ShardGateway,
        pools: Pools,
        locator: Locator,
        *,
        fleet: Fleet | None = None,
        feed: Feed | None = None,
        monitoring: Monitoring | None = None,
    ) -> None:
        """Show these parts from now on."""
        self.gateway, self.pools, self.locator, self.fleet, self.feed = gateway, pools, locator, fleet, feed
        self.monitoring = monitoring or Monitoring()
        inspector = shared_inspection(locator, pools)
        self.lookups = Lookups(gateway, inspector, pools, self.monitoring, fleet, self.runbook_url)

    @property
    def certificate_end(self) -> datetime | None:
        """When the certificate of the HTTP server expires."""
        return None if self.certificate is None else self.certificate.value

    @property
    def started(self) -> Lookups:
        """The lookups. Raises RetryableError before `start`."""
        if self.lookups is None:
            raise RetryableError("starting")
        return self.lookups

    def liveness_problem(self) -> str | None:
        """Return which loop is stuck; None if a restart would not help, and in a drain, which the daemon ends."""
        now = loop_time()
        if self.stopping.is_set():
            return None
        for name, receiver in self.monitoring.receivers.items():
            if now - receiver.last_turn > 2 * LONGEST_TURN_S:
                return f"queue {name}: one of its loops has not turned for {now - receiver.last_turn:.0f} s"
        turned_at = float("inf") if self.fleet is None else self.fleet.last_turn
        if now - turned_at > FLEET_TURN_MAX_S:
            return f"leases: the loop has not turned for {now - turned_at:.0f} s"
        return None

    def readiness_problem(self) -> Unreadiness | None:
        """Return why no work can be done, without secrets."""
        problem = self._readiness_problem()
        return problem and problem._replace(text=problem.text and scrub_text(problem.text))

    def _readiness_problem(self) -> Unreadiness | None:
        if self.gateway is not None and self.stopping.is_set():
            return Unreadiness(UnreadyReason.DRAINING)
        if (problem := credential_source().problem) is not None:
            return Unreadiness(UnreadyReason.CREDENTIALS_UNAVAILABLE, problem)
        if credential_source().are_expired:
            found = credential_source().method
            return Unreadiness(UnreadyReason.CREDENTIALS_EXPIRED, f"those of {found}; renew them there")
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
            is_shut_out = fleet.kcl_leader.is_leading and not fleet.kcl_leader.follows
            reason = UnreadyReason.KCL_ASSIGNS_LEASES if is_shut_out else UnreadyReason.STREAM_UNAVAILABLE
            return Unreadiness(reason, outage)
        if not fleet.is_set_up:
            return Unreadiness(UnreadyReason.STREAM_OPENING)
        refusal = next((reader.cursor.refusal for reader in fleet.readers() if reader.cursor.refusal), None)
        return None if refusal is None else Unreadiness(UnreadyReason.STREAM_UNREADABLE, refusal)

    def refresh_gauges(self) -> None:
        """Set the gauges that no single event sets."""
        instruments.MOVE_STANDING.set(longest_standing_s(self.health.unfinished_moves()))
        unready = self._readiness_problem()
        for reason in UnreadyReason:
            instruments.UNREADY.labels(reason).set(unready is not None and unready.reason is reason)
        end = self.certificate_end
        instruments.CERTIFICATE_END.set(0.0 if end is None else end.timestamp())
        for receiver in self.monitoring.receivers.values():
            receiver.refresh_gauges()
        if self.fleet is not None:
            self._refresh_stream_gauges(self.fleet)

    def _refresh_stream_gauges(self, fleet: Fleet) -> None:
        readers = fleet.readers()
        targets: set[tuple[str, str, str]] = set()  # a target that is held in several stream shards counts once
        ages: dict[str, float] = dict.fromkeys(HoldReason, 0.0)
        for reader in readers:
            for hold in reader.progress.holds():
                targets.add((hold.reason, hold.target, hold.name))
                ages[hold.reason] = max(ages[hold.reason], reader.view.held_age_s(hold))
            name = reader.stream_shard_id
            instruments.KINESIS_LAG.labels(name).set(reader.view.least_lag_s)
            instruments.KINESIS_LAG_RETENTION.labels(name).set(reader.view.lag_retention_ratio)
            instruments.HELD_RETENTION.labels(name).set(reader.view.held_retention_ratio)
            instruments.CATCH_UP_LAG.labels(name).set(reader.view.catch_up_lag_s)
        counts = Counter(reason for reason, _, _ in targets)
        for reason, age_s in ages.items():
            instruments.HELD_TARGETS.labels(reason).set(counts[reason])
            instruments.HELD_AGE.labels(reason).set(age_s)
        instruments.PREFETCH_BYTES.set(fleet.prefetch.used_bytes)
        instruments.PREFETCH_MAX_BYTES.set(fleet.prefetch.max_bytes)

    def status(self) -> Json:
        """Answer `GET /status`."""
        state = self._state()
        unready = self.readiness_problem()
        prefetch = self.fleet and self.fleet.prefetch
        return state | {
            "replica": self.name,
            "version": __version__,
            "uptime_s": round(time.monotonic() - self.started_at, 1),
            "unreadyDetail": None if unready is None else unready.text,
            "sources": self._sources(),
            "heldAdvice": self._advice({one["reason"] for one in state["held"]}),
            "prefetch": prefetch and {"usedBytes": prefetch.used_bytes, "maxBytes": prefetch.max_bytes},
            "recentErrors": recent_errors(),
            "counters": {
                "operations": instruments.totals_by(instruments.OPERATIONS, "outcome"),
                "deadLetters": instruments.totals_by(instruments.DEAD_LETTERS, "reason"),
                "provisioned": instruments.totals_by(instruments.PROVISIONING, "outcome"),
            },
        }

    def _state(self) -> dict[str, Any]:
        unready = self.readiness_problem()
        return {
            "ready": True if unready is None else unready.reason,
            "queues": self.monitoring.consumed_queues(),
            "streamShards": self.fleet.status() if self.fleet else [],
            "shards": self._shards(),
            "held": [
                {"streamShard": reader.stream_shard_id} | target
                for reader in (self.fleet.readers() if self.fleet else [])
                for target in reader.view.held_status()
            ],
            "moves": move_views(self.health.unfinished_moves()),
            "feed": self.feed and feed_state(self.feed.published_count, self.feed.views()).json(),
            "cache": self.monitoring.cache_state(),
            "troubles": [trouble_view(trouble) for trouble in current_troubles()],
            "counts": {
                "tenantsSplit": instruments.total_of(instruments.TENANTS_SPLIT),
                "recordsLost": instruments.total_of(instruments.KINESIS_EXPIRED),
                "controlBlocked": instruments.totals_by(instruments.RETRIES, "reason").get(Retry.BLOCKED, 0),
            },
            "retentionSeconds": self.fleet and self.fleet.retention and self.fleet.retention.total_seconds(),
            "certificateEnd": self.certificate_end,
            "citrus": self.locator.last_error or OK if isinstance(self.locator, CitrusClient) else None,
        }

    def fleet_status(self) -> dict[str, Any]:
        """Answer `GET /fleet`."""
        report, at = self._fleet_report(), utc_now()
        self.problems.note(find_problems(self._state(), report, at), at)
        reasons = {one["reason"] for replica in report["replicas"] for one in replica["held"]}
        return {
            "replica": self.name,
            "at": at.isoformat(timespec="milliseconds"),
            "stream": self.fleet and self.fleet.stream_name,
            **report,
            "topBusinesses": [one.json() for one in self.top.rows],
            "heldAdvice": self._advice(reasons),
            "problems": [one.json() for one in self.problems.view(at, self.runbook_url)],
        }

    def history_of_fleet(self) -> dict[str, Any]:
        """Answer `GET /fleet/history`."""
        hour, day = self.fleet_history.view()
        streams = self.stream_history
        return answers.FleetHistory(INTERVAL_S, streams.noted_at, streams.view(), hour, day).json()

    def _fleet_report(self) -> dict[str, Any]:
        if self.fleet is None:
            return fleet_report({}, {}, LeaseReport(self.name, __version__, self._figures()), now=0.0)
        return self.fleet.report()

    def _figures(self) -> ReplicaFigures:
        return msgspec.structs.replace(self.figures.view(), top=self.top.first())

    def _advice(self, reasons: Iterable[str]) -> dict[str, dict[str, str]]:
        return {reason: advice_members(reason, self.runbook_url) for reason in sorted(reasons)}

    async def retry_held(self, target: str | None) -> HttpAnswer:
        """Answer `POST /held/retry`."""
        if self.fleet is None:
            return 200, answers.Retry(0, [], []).json()
        try:
            asked = await self.fleet.ask_to_retry(target)
        except ValueError as exc:
            return 400, {"error": str(exc)}
        return 200, answers.Retry(
            retried=self.fleet.retry_holds(target),
            asked=sorted(owner for owner, is_asked in asked.items() if is_asked),
            not_asked=sorted(owner for owner, is_asked in asked.items() if not is_asked),
        ).json()

    async def note_history(self) -> None:
        """Add the present moment to the history."""
        dead_letter_count = instruments.total_of(instruments.DEAD_LETTERS)
        self.figures.note(instruments.OPERATION_LATENCY.bucket_counts(), dead_letter_count)
        at = utc_now()
        if self.fleet is not None:
            self.fleet.figures = self._figures()
        report = self._fleet_report()
        self.stream_history.note(report["streamShards"], at)
        self.fleet_history.note(fleet_point(report, at))
        self.problems.note(find_problems(self._state(), report, at), at)

    async def note_top(self) -> None:
        """Note which businesses take most of the shards' time; of a shard that does not answer nothing is known."""
        if self.gateway is not None and self.pools is not None:
            times, pools = self.gateway.times, self.pools.by_shard_id()
            await self.top.note({one: times[one].last_took_s if pools[one].is_healthy else {} for one in pools})

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
        return "draining" if self.stopping.is_set() else usual

    def _shards(self) -> list[dict[str, Any]]:
        pools, health = self.pools.by_shard_id() if self.pools else {}, self.health.by_shard_id
        return [
            {"shardId": shard_id}
            | pool_view(pools.get(shard_id))
            | {
                name: value
                for name, value in health_view(health.get(shard_id, Health())).items()
                if name in HEALTH_SUMMARY
            }
            for shard_id in sorted(pools.keys() | health.keys())
        ]

    def handler_status(self) -> Json:
        """Answer `GET /handler/status`."""
        unready = self.readiness_problem()
        return answers.Handler(
            running=unready is None,
            state=_handler_state(unready),
            reason=None if unready is None else unready.reason,
            detail=None if unready is None else unready.text,
            replica=self.name,
            version=__version__,
            uptime_seconds=round(time.monotonic() - self.started_at, 1),
            sources=self._sources(),
        ).json()


def _handler_state(unready: Unreadiness | None) -> str:
    if unready is None:
        return SourceState.RUNNING
    return unready.reason if unready.reason in {UnreadyReason.STARTING, UnreadyReason.DRAINING} else SourceState.WAITING
