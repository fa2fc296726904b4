"""The health of a shard, assessed from its last probe, and when to probe it again. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Any, Final

import msgspec

from simplu_worker.shards.apply.durability import ReplicationFacts
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.timing.clock import shard_problem
from simplu_worker.timing.waits import jittered
from simplu_worker.vocabulary import MoveOutcome, ServerRole, ShardProblem, ShardState, TransferStep

RUNNING_S: Final = 20.0  # without a note of its command; ten in a row are missed by none that runs
NOTED: Final = frozenset(
    {TransferStep.OPEN, TransferStep.COMMITTED, TransferStep.UNDOING}
)  # by its command, while it runs
UNFINISHED: Final = frozenset({TransferStep.OPEN, TransferStep.COMMITTED, TransferStep.UNDOING, TransferStep.CLEANING})


class MoveEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the journal, at *read_at* by the clock of its shard.

    *phase*, *row_count*, *byte_count* are of a mover before its commit, *error* of one that gave up, *seen_at* and
    *is_stopped* of its command; the rest is of a certificate.
    """

    tenant_id: str
    target_shard_id: str
    move_token: int
    step: str  # a `TransferStep`, or one that only a newer mover knows
    started_at: datetime
    updated_at: datetime
    read_at: datetime
    business_id: str | None = None
    location_id: str | None = None
    phase: str | None = None
    row_count: int | None = None
    byte_count: int | None = None
    error: str | None = None
    seen_at: datetime | None = None
    is_stopped: bool = False
    verdict: str | None = None
    pause_s: float | None = None
    rows_copied: int | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether the move has begun and not ended."""
        return self.step in UNFINISHED

    @property
    def is_running(self) -> bool | None:
        """Whether the command of the move runs; None for a cleanup, which notes nothing."""
        if self.step not in NOTED:
            return None
        noted_at = max(self.updated_at, self.seen_at or self.updated_at)
        has_ended = self.is_stopped or self.error is not None
        return not has_ended and (self.read_at - noted_at).total_seconds() <= RUNNING_S

    @property
    def outcome(self) -> MoveOutcome | None:
        """How the move, or its last mover, has ended; None while it goes on."""
        if self.step == TransferStep.DONE:
            return MoveOutcome.MOVED if self.verdict == "equal" else MoveOutcome.DIFFERS
        if self.step == TransferStep.UNDONE:
            return MoveOutcome.UNDONE
        return None if self.error is None else MoveOutcome.FAILED

    @property
    def standing_s(self) -> float:
        """The time since the move last went on."""
        return max(0.0, (self.read_at - self.updated_at).total_seconds())


def longest_standing_s(moves: Mapping[str, Iterable[MoveEntry]]) -> float:
    """Return for how long the move that stands longest has not gone on; 0 without one."""
    return max((one.standing_s for entries in moves.values() for one in entries), default=0.0)


def move_views(moves: Mapping[str, Iterable[MoveEntry]]) -> list[dict[str, Any]]:
    """Return *moves*, by the shard that they leave, as JSON members."""
    return [_without_unknown(_view(shard_id, one)) for shard_id, entries in sorted(moves.items()) for one in entries]


def _view(shard_id: str, move: MoveEntry) -> dict[str, Any]:
    return {
        "tenant": move.tenant_id,
        "businessId": move.business_id,
        "locationId": move.location_id,
        "sourceShard": shard_id,
        "targetShard": move.target_shard_id,
        "step": move.step,
        "phase": move.phase,
        "rows": move.row_count,
        "bytes": move.byte_count,
        "startedAt": move.started_at,
        "notedAt": move.updated_at,
        "isRunning": move.is_running,
        "error": move.error,
    }


VERSION_MIN: Final = 140000  # docs/reading.md: PostgreSQL 14 or newer


class ShardProbe(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that a probe found on a shard.

    *schema_version* and *tenant_count* are None on an empty shard, values with a default where they are unknown or too
    slow (*is_cut_short*). *refusal* is why no worker may use the database, *trouble* the error of its last use. The lag
    is that of a standby, or of a primary's slowest standby. *skew_s* is the server's clock minus ours. *gaps* are
    stream shards with an open gap. *replication* decides how safe commits are.
    """

    server_version: str
    version_number: int
    is_standby: bool
    is_read_only: bool
    skew_s: float
    response_s: float
    is_cut_short: bool = False
    connections_used: int | None = None
    connections_max: int | None = None
    standby_count: int | None = None
    lag_s: float | None = None
    refusal: str | None = None
    trouble: str | None = None
    schema_version: int | None = None
    tenant_count: int | None = None
    gaps: Sequence[str] = ()
    moves: Sequence[MoveEntry] | None = None
    is_upgrading: bool = False
    replication: ReplicationFacts | None = None


class ShardSilence(msgspec.Struct, frozen=True):
    """The error of a probe without an answer, or of a database that no worker may use."""

    error: str
    is_refusal: bool = False


# Above these there is a problem.
RESPONSE_S: Final = 1.0
LAG_S: Final = 30.0
CONNECTIONS_RATIO: Final = 0.9
USAGE_RATIO: Final = 0.8


LOST: Final = frozenset({ShardProblem.NO_ANSWER, ShardProblem.REFUSED})
TAKES_NO_OPERATIONS: Final = LOST | {ShardProblem.READ_ONLY, ShardProblem.FAILING}


class HealthFinding(msgspec.Struct, frozen=True):
    """One problem, with its details for people."""

    problem: ShardProblem
    detail: str


class ShardObservation(msgspec.Struct, frozen=True):
    """The last answer of a shard, the error of a later probe, and its entry in the list of Citrus, if any."""

    probe: ShardProbe | None = None
    error: str | None = None
    listed: ShardAddress | None = None
    is_refusal: bool = False  # of `error`
    checked_at: datetime | None = None
    answered_at: datetime | None = None


class Health(msgspec.Struct, frozen=True):
    """The observation of a shard, and its problems."""

    observation: ShardObservation = ShardObservation()
    findings: Sequence[HealthFinding] = ()

    @property
    def problems(self) -> frozenset[ShardProblem]:
        """The kinds of its problems."""
        return frozenset(finding.problem for finding in self.findings)

    @property
    def state(self) -> ShardState:
        """The state that follows from the problems."""
        if self.problems & LOST:
            return ShardState.LOST
        if self.observation.probe is None:
            return ShardState.UNKNOWN
        return ShardState.DEGRADED if self.findings else ShardState.HEALTHY

    @property
    def takes_operations(self) -> bool | None:
        """Whether operations can be applied on the shard; None if it was not probed."""
        return None if self.state is ShardState.UNKNOWN else not self.problems & TAKES_NO_OPERATIONS


def assess(observation: ShardObservation) -> Health:
    """Return the health of a shard, its worst problem first."""
    return Health(observation, tuple(_findings(observation)))


def _findings(observation: ShardObservation) -> Iterator[HealthFinding]:
    if observation.error is not None:
        yield HealthFinding(
            ShardProblem.REFUSED if observation.is_refusal else ShardProblem.NO_ANSWER, observation.error
        )
    elif observation.probe is not None:
        yield from _probe_findings(observation.probe)
        if observation.probe.gaps:
            yield HealthFinding(ShardProblem.GAP, _describe_gaps(observation.probe.gaps))
    if (listed := observation.listed) is None:
        return
    if not listed.is_active:
        yield HealthFinding(ShardProblem.INACTIVE, "Citrus marks it inactive")
    if (listed.usage_ratio or 0.0) > USAGE_RATIO:
        detail = f"{listed.business_count} businesses in room for {listed.business_max}"
        yield HealthFinding(ShardProblem.USAGE, detail)


def unfit_reason(probe: ShardProbe) -> str | None:
    """Return why no worker may or can use a shard that answers; None if one can."""
    if probe.version_number < VERSION_MIN:
        return f"expected PostgreSQL {VERSION_MIN // 10000} or newer, got {probe.server_version}; upgrade it"
    return probe.refusal


def role_of(probe: ShardProbe) -> ServerRole:
    """Return the role of the server."""
    if probe.is_standby:
        return ServerRole.STANDBY
    return ServerRole.READ_ONLY if probe.is_read_only else ServerRole.PRIMARY


def connections_ratio(probe: ShardProbe) -> float | None:
    """Return the connections in use divided by their limit; None if unknown."""
    if probe.connections_used is None or probe.connections_max is None:
        return None
    return probe.connections_used / max(probe.connections_max, 1)


def _probe_findings(probe: ShardProbe) -> Iterator[HealthFinding]:
    if (refusal := unfit_reason(probe)) is not None:
        yield HealthFinding(ShardProblem.REFUSED, refusal)
    if probe.is_read_only:
        server = "a standby" if probe.is_standby else "a read-only server"
        yield HealthFinding(
            ShardProblem.READ_ONLY,
            f"expected a server that can be written to, got {server}; let its connection string name the primary",
        )
    elif probe.trouble is not None:
        yield HealthFinding(ShardProblem.FAILING, f"it answers, and its last use failed: {probe.trouble}")
    if probe.is_cut_short:
        yield HealthFinding(ShardProblem.SLOW, "it answers, but was too slow to report everything")
    elif probe.response_s > RESPONSE_S:
        yield HealthFinding(ShardProblem.SLOW, f"it takes {probe.response_s:.1f} s for an answer")
    if (difference := shard_problem(probe.skew_s)) is not None:
        yield HealthFinding(ShardProblem.CLOCK, difference)
    if probe.lag_s is not None and probe.lag_s > LAG_S:
        subject = "it is" if probe.is_standby else "its standby is"
        yield HealthFinding(ShardProblem.LAGGING, f"{subject} {probe.lag_s:.0f} s behind")
    ratio = connections_ratio(probe)
    if ratio is not None and ratio > CONNECTIONS_RATIO:
        yield HealthFinding(
            ShardProblem.CONNECTIONS, f"{probe.connections_used} of {probe.connections_max} connections are in use"
        )


def _describe_gaps(stream_shard_ids: Sequence[str]) -> str:
    return (
        f"expected a stream that has all records since the shard's positions, got one that has dropped some of "
        f"{len(stream_shard_ids)} stream shards; raise the stream's retention, then restore a newer backup, or accept "
        "the loss with `simplu-worker shards accept-gap`"
    )


def health_view(health: Health) -> dict[str, Any]:
    """Return a shard's health as members of JSON, without unknown values; of a silent shard as `lastAnswer`."""
    observation = health.observation
    usage_ratio = None if observation.listed is None else observation.listed.usage_ratio
    members: dict[str, Any] = {
        "state": health.state,
        "takesOperations": health.takes_operations,
        "problems": [finding.problem for finding in health.findings] or None,
        "odd": [finding.detail for finding in health.findings] or None,
        "usage": None if usage_ratio is None else round(usage_ratio, 4),
        "lastCheckAt": _format_time(observation.checked_at),
    }
    if observation.probe is not None:
        facts = _probe_members(observation.probe)
        answer = {"at": _format_time(observation.answered_at)} | facts
        members |= facts if observation.error is None else {"lastAnswer": _without_unknown(answer)}
    return _without_unknown(members)


def _probe_members(probe: ShardProbe) -> dict[str, Any]:
    return {
        "role": role_of(probe),
        "responseMs": round(probe.response_s * 1000, 2),
        "serverVersion": probe.server_version,
        "schemaVersion": probe.schema_version,
        "upgrading": probe.is_upgrading or None,
        "tenantCount": probe.tenant_count,
        "connectionsUsed": probe.connections_used,
        "connectionsMax": probe.connections_max,
        "standbys": probe.standby_count,
        "replicationLagSeconds": probe.lag_s,
    }


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")


def _without_unknown(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


JITTER: Final = 0.25  # of an interval, to either side: replicas do not probe in step


def probe_interval_s(count: int, *, fails: bool) -> float:
    """Return the time between two probes of each of *count* shards: of those that fail, or of the others.

    So a recovered shard is noticed within 2 s, and no replica makes more than 20, or 5, probes a second: one server may
    have hundreds of the shards.
    """
    return max(1.0, count / 20.0) if fails else max(10.0, count / 5.0)


class ProbeSchedule:
    """The schedule of probes; a shard of `take_due` is not due again before `reschedule`.

    Each *draw* is from 0 to 1.
    """

    def __init__(self) -> None:
        self._due: dict[str, float] = {}  # when; infinite while it is being probed
        self._failing_ids: set[str] = set()

    @property
    def shard_ids(self) -> Collection[str]:
        """The shards that are probed."""
        return self._due.keys()

    def add(self, shard_id: str, *, now: float, draw: float) -> None:
        """Add a shard; its first probe is within a second or a round."""
        self._due[shard_id] = now + draw * max(1.0, (len(self._due) + 1) / 5.0)

    def remove(self, shard_id: str) -> None:
        """Remove a shard."""
        self._due.pop(shard_id, None)
        self._failing_ids.discard(shard_id)

    def take_due(self, now: float) -> list[str]:
        """Return the shards to probe now, longest due first."""
        due = sorted((at, shard_id) for shard_id, at in self._due.items() if at <= now)
        self._due |= dict.fromkeys((shard_id for _, shard_id in due), inf)
        return [shard_id for _, shard_id in due]

    def reschedule(self, shard_id: str, *, fails: bool, now: float, draw: float) -> None:
        """Schedule the next probe of a shard, unless it was removed."""
        if shard_id not in self._due:
            return
        (self._failing_ids.add if fails else self._failing_ids.discard)(shard_id)
        count = len(self._failing_ids)
        interval_s = probe_interval_s(count if fails else len(self._due) - count, fails=fails)
        self._due[shard_id] = now + jittered(interval_s, ratio=JITTER, draw=draw)

    def bring_forward(self, shard_id: str, *, now: float) -> None:
        """Make a shard due at once: a use has failed."""
        if self._due.get(shard_id, inf) < inf and shard_id not in self._failing_ids:
            self._failing_ids.add(shard_id)
            self._due[shard_id] = now
