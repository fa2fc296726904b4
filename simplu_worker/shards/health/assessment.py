"""The health of a shard, assessed from its last observation. Pure.

A problem begins above one threshold and ends at a lower one, so that a shard near the threshold does not change state
with every probe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from simplu_worker.shards.apply.durability import ReplicationFacts
from simplu_worker.shards.health.moves import MoveEntry
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.locator import Capacity
from simplu_worker.timing.clock_agreement import shard_problem
from simplu_worker.vocabulary import ServerRole, ShardProblem, ShardState

VERSION_MIN: Final = 140000  # docs/reading.md: PostgreSQL 14 or newer


class SchemaCreator(msgspec.Struct, frozen=True):
    """A role that may create in a schema of the search path beside the worker's role; None for all roles."""

    schema: str
    role: str | None

    def __str__(self) -> str:
        role = "PUBLIC" if self.role is None else f'"{self.role}"'
        subject = "every role" if self.role is None else f"the role {self.role}"
        return (
            f"expected a schema {self.schema} in which no other role may create, got one in which {subject} may; "
            f'run REVOKE CREATE ON SCHEMA "{self.schema}" FROM {role}'
        )


class AwaitedType(msgspec.Struct, frozen=True):
    """A business type that a shard lacks, with the tenants that wait for it: their number, one of them, since when."""

    name: str
    tenant_count: int
    tenant_id: str
    since: datetime

    def __str__(self) -> str:
        is_one = self.tenant_count == 1
        wait = f"{self.tenant_id} waits" if is_one else f"{self.tenant_count} tenants such as {self.tenant_id} wait"
        return (
            f"expected the business type {self.name}, for which {wait} since "
            f"{self.since.isoformat(timespec='seconds')}, got a shard without it; "
            "write it with `simplu-worker types apply`"
        )


class ShardProbe(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that a probe found on a shard.

    *schema_version* and *tenant_count* are None on an empty shard. All values with a default are None if they are
    unknown: not asked for, not permitted, or too slow (*is_cut_short*). *refusal* is why no worker may use the
    database, *trouble* the error of its last use by this replica, although it answers. *connections_used* count towards
    *connections_max*, the nearest limit. The lag is that of a standby, or on a primary that of its slowest standby.
    *skew_s* is the server's clock minus ours, *own_ahead_s* ours minus that of AWS. *creators* are no problem of the
    shard, but a risk for its readers. *gaps* are the stream shards of which the shard lacks records that the stream no
    longer has, and no person has accepted that. *moves* are those from
    this shard that have not ended or have just ended; None if they were not read. *awaited_types* are those without
    which tenants cannot be made here.
    *is_upgrading* is whether `shards upgrade` runs there. *replication* is what decides how safe commits are; None on a
    standby.
    """

    server_version: str
    version_number: int
    is_standby: bool
    is_read_only: bool
    skew_s: float
    connect_s: float
    response_s: float
    own_ahead_s: float | None = None
    is_cut_short: bool = False
    connections_used: int | None = None
    connections_max: int | None = None
    standby_count: int | None = None
    lag_s: float | None = None
    lag_bytes: int | None = None
    refusal: str | None = None
    trouble: str | None = None
    schema_version: int | None = None
    tenant_count: int | None = None
    creators: Sequence[SchemaCreator] = ()
    gaps: Sequence[str] = ()
    moves: Sequence[MoveEntry] | None = None
    awaited_types: Sequence[AwaitedType] = ()
    is_upgrading: bool = False
    replication: ReplicationFacts | None = None


class ShardSilence(msgspec.Struct, frozen=True):
    """The error of a probe without an answer; with *is_refusal*, of a database that no worker may use."""

    error: str
    is_refusal: bool = False


class Threshold(NamedTuple):
    """A problem begins above *raised_above*, and ends at *cleared_at* or below."""

    raised_above: float
    cleared_at: float


RESPONSE_S: Final = Threshold(1.0, 0.5)
LAG_S: Final = Threshold(30.0, 15.0)
CONNECTIONS_RATIO: Final = Threshold(0.9, 0.8)
USAGE_RATIO: Final = Threshold(0.8, 0.8)  # tenants come one by one


LOST: Final = frozenset({ShardProblem.NO_ANSWER, ShardProblem.REFUSED})
TAKES_NO_OPERATIONS: Final = LOST | {ShardProblem.READ_ONLY, ShardProblem.FAILING}


class HealthFinding(msgspec.Struct, frozen=True):
    """One problem, with its details for people."""

    problem: ShardProblem
    detail: str

    def __str__(self) -> str:
        return self.detail


class Usage(msgspec.Struct, frozen=True):
    """The room of a shard for businesses, from Citrus; None for unknown values."""

    business_count: int | None = None
    business_max: int | None = None
    is_active: bool = True
    accepts_new: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Businesses divided by the room for them; None if unknown."""
        if self.business_count is None or self.business_max is None:
            return None
        return self.business_count / self.business_max if self.business_max > 0 else 1.0


class ShardObservation(msgspec.Struct, frozen=True):
    """The last answer of a shard to a probe, the error of a later probe, and the usage from Citrus. All may be missing.

    *checked_at* is the time of the last probe, *answered_at* that of the last one with an answer.
    """

    probe: ShardProbe | None = None
    error: str | None = None
    usage: Usage = Usage()
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


def usage_of(address: ShardAddress, capacity: Capacity | None = None) -> Usage:
    """Return a shard's usage from the list of Citrus and from its answer about the shard, which is newer."""
    if capacity is None:
        return Usage(address.business_count, address.business_max, address.is_active)
    return Usage(
        address.business_count if capacity.business_count is None else capacity.business_count,
        address.business_max if capacity.business_max is None else capacity.business_max,
        address.is_active,
        capacity.accepts_new,
    )


def assess(observation: ShardObservation, before: Collection[ShardProblem] = ()) -> Health:
    """Return the health of a shard that had the problems *before*."""
    return Health(observation, tuple(findings(observation, before)))


def findings(observation: ShardObservation, before: Collection[ShardProblem]) -> Iterator[HealthFinding]:
    """Yield the problems, the worst first; one of *before* lasts until the lower threshold."""
    if observation.error is not None:
        yield HealthFinding(
            ShardProblem.REFUSED if observation.is_refusal else ShardProblem.NO_ANSWER, observation.error
        )
    elif observation.probe is not None:
        yield from _probe_findings(observation.probe, before)
        if observation.probe.gaps:
            yield HealthFinding(ShardProblem.GAP, _describe_gaps(observation.probe.gaps))
        if observation.probe.awaited_types:
            awaited = "; ".join(map(str, observation.probe.awaited_types))
            yield HealthFinding(ShardProblem.BUSINESS_TYPE, awaited)
    if not observation.usage.is_active:
        yield HealthFinding(ShardProblem.INACTIVE, "Citrus marks it inactive")
    ratio = observation.usage.ratio
    if ratio is not None and _exceeds(ratio, USAGE_RATIO, is_raised=ShardProblem.USAGE in before):
        count, room = observation.usage.business_count, observation.usage.business_max
        yield HealthFinding(ShardProblem.USAGE, f"{count} businesses in room for {room}")


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


def _probe_findings(probe: ShardProbe, before: Collection[ShardProblem]) -> Iterator[HealthFinding]:
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
    elif _exceeds(probe.response_s, RESPONSE_S, is_raised=ShardProblem.SLOW in before):
        yield HealthFinding(ShardProblem.SLOW, f"it takes {probe.response_s:.1f} s for an answer")
    if (difference := shard_problem(probe.skew_s, probe.own_ahead_s)) is not None:
        yield HealthFinding(ShardProblem.CLOCK, difference)
    if probe.lag_s is not None and _exceeds(probe.lag_s, LAG_S, is_raised=ShardProblem.LAGGING in before):
        subject = "it is" if probe.is_standby else "its standby is"
        yield HealthFinding(ShardProblem.LAGGING, f"{subject} {probe.lag_s:.0f} s behind")
    ratio = connections_ratio(probe)
    if ratio is not None and _exceeds(ratio, CONNECTIONS_RATIO, is_raised=ShardProblem.CONNECTIONS in before):
        yield HealthFinding(
            ShardProblem.CONNECTIONS, f"{probe.connections_used} of {probe.connections_max} connections are in use"
        )


def _describe_gaps(stream_shard_ids: Sequence[str]) -> str:
    return (
        f"expected a stream that has all records since the shard's positions, got one that has dropped some of "
        f"{len(stream_shard_ids)} stream shards; raise the stream's retention, then restore a newer backup, or accept "
        "the loss with `simplu-worker shards accept-gap`"
    )


def _exceeds(value: float, threshold: Threshold, *, is_raised: bool) -> bool:
    return value > (threshold.cleared_at if is_raised else threshold.raised_above)


def health_view(health: Health) -> dict[str, Any]:
    """Return a shard's health as members of JSON; unknown values are omitted.

    While the shard does not answer, the facts of its last answer are a member of their own, `lastAnswer`.
    """
    observation, usage = health.observation, health.observation.usage
    answered = observation.probe if observation.error is None else None
    risks = [] if answered is None else list(map(str, answered.creators))
    members: dict[str, Any] = {
        "state": health.state,
        "takesOperations": health.takes_operations,
        "problems": [finding.problem for finding in health.findings] or None,
        "odd": [*(finding.detail for finding in health.findings), *risks] or None,
        "usage": None if usage.ratio is None else round(usage.ratio, 4),
        "acceptsNew": usage.accepts_new,
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
        "connectMs": round(probe.connect_s * 1000, 2),
        "serverVersion": probe.server_version,
        "schemaVersion": probe.schema_version,
        "upgrading": probe.is_upgrading or None,
        "tenantCount": probe.tenant_count,
        "connectionsUsed": probe.connections_used,
        "connectionsMax": probe.connections_max,
        "standbys": probe.standby_count,
        "replicationLagSeconds": probe.lag_s,
        "replicationLagBytes": probe.lag_bytes,
    }


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")


def _without_unknown(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
