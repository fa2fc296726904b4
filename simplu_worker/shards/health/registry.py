"""The health of each shard: kept for people, set as metrics, and logged when it changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import structlog
from msgspec.structs import replace

from simplu_worker import instruments
from simplu_worker.shards.health.assessment import (
    Health,
    MoveEntry,
    ShardObservation,
    ShardProbe,
    ShardSilence,
    assess,
    connections_ratio,
)
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import MoveOutcome, ShardProblem, ShardState

log = structlog.get_logger(__name__)


class HealthRegistry:
    """One entry for each shard that is probed, or may not be used."""

    def __init__(self) -> None:
        self._health: dict[str, Health] = {}
        self._ended_moves: dict[str, set[tuple[str, int, MoveOutcome]]] = {}  # tenant, token and outcome, by shard

    @property
    def by_shard_id(self) -> Mapping[str, Health]:
        """The health of the shards, by shard id."""
        return self._health

    def begin(self, shard_id: str) -> None:
        """Start to keep the health of a shard."""
        self._health.setdefault(shard_id, Health())

    def end(self, shard_id: str) -> None:
        """Forget a shard."""
        if (health := self._health.pop(shard_id, None)) is None:
            return
        self._ended_moves.pop(shard_id, None)
        self._count_problems(health.problems)
        instruments.remove_shard(shard_id)

    def note_probe(self, shard_id: str, probe: ShardProbe | ShardSilence) -> None:
        """Note a probe; facts that it lacks stay as they were. Does nothing before `begin` and after `end`."""
        if shard_id not in self._health:
            return
        before, now = self._health[shard_id].observation, utc_now()
        if isinstance(probe, ShardSilence):
            self._learn(shard_id, replace(before, error=probe.error, is_refusal=probe.is_refusal, checked_at=now))
            return
        if probe.tenant_count is None and before.probe is not None and probe.schema_version is not None:
            probe = replace(probe, tenant_count=before.probe.tenant_count)
        if probe.is_cut_short and before.probe is not None:
            moves = before.probe.moves if probe.moves is None else probe.moves
            probe = replace(probe, gaps=probe.gaps or before.probe.gaps, moves=moves)
        instruments.SHARD_RESPONSE.labels(shard_id).observe(probe.response_s)
        if probe.moves is not None:
            self._count_moves(shard_id, probe.moves)
        self._learn(
            shard_id, replace(before, probe=probe, error=None, is_refusal=False, checked_at=now, answered_at=now)
        )

    def note_listed(self, listed: Mapping[str, ShardAddress]) -> None:
        """Note the entries of the shard manager's last list, which tell how full the shards are."""
        for shard_id, health in self._health.items():
            if listed.get(shard_id) != health.observation.listed:
                self._learn(shard_id, replace(health.observation, listed=listed.get(shard_id)))

    def _learn(self, shard_id: str, observation: ShardObservation) -> None:
        before = self._health[shard_id]
        now = assess(observation)
        self._health[shard_id] = now
        self._count_problems(before.problems ^ now.problems)
        self._set_gauges(shard_id, now)
        _log_change(shard_id, before, now)

    def _count_problems(self, changed: Collection[ShardProblem]) -> None:
        for problem in changed:
            count = sum(problem in health.problems for health in self._health.values())
            instruments.SHARD_PROBLEMS.labels(problem).set(count)

    def _count_moves(self, shard_id: str, moves: Sequence[MoveEntry]) -> None:
        ended = {(one.tenant_id, one.move_token, one.outcome): one for one in moves if one.outcome is not None}
        before, self._ended_moves[shard_id] = self._ended_moves.get(shard_id), {*ended}
        for one in [] if before is None else [one for key, one in ended.items() if key not in before]:
            instruments.MOVES.labels(one.outcome).inc()
            instruments.MOVE_ROWS.inc(one.rows_copied or 0)
            if one.pause_s is not None:
                instruments.MOVE_PAUSE.observe(one.pause_s)

    def unfinished_moves(self) -> dict[str, list[MoveEntry]]:
        """Return the moves that go on, by the shard that they leave."""
        found = {
            shard_id: [one for one in health.observation.probe.moves or () if one.is_unfinished]
            for shard_id, health in self._health.items()
            if health.observation.probe is not None
        }
        return {shard_id: moves for shard_id, moves in found.items() if moves}

    def _set_gauges(self, shard_id: str, health: Health) -> None:
        probe, listed = health.observation.probe, health.observation.listed
        if (takes_operations := health.takes_operations) is not None:
            instruments.SHARD_HEALTHY.labels(shard_id).set(takes_operations)
        seen = None if health.observation.error is not None else probe
        instruments.set_or_remove(instruments.SHARD_USAGE, shard_id, None if listed is None else listed.usage_ratio)
        instruments.set_or_remove(instruments.SHARD_TENANTS, shard_id, None if probe is None else probe.tenant_count)
        instruments.set_or_remove(instruments.SHARD_REPLICATION_LAG, shard_id, None if seen is None else seen.lag_s)
        ratio = None if seen is None else connections_ratio(seen)
        instruments.set_or_remove(instruments.SHARD_CONNECTIONS_RATIO, shard_id, ratio)


def _log_change(shard_id: str, before: Health, now: Health) -> None:
    if before.problems == now.problems:
        return
    details = [finding.detail for finding in now.findings]
    if now.state is ShardState.LOST:
        log.warning("shard.lost", shard_id=shard_id, problems=details)
    elif now.findings:
        log.warning("shard.degraded", shard_id=shard_id, problems=details)
    elif now.state is ShardState.HEALTHY:
        log.info("shard.restored", shard_id=shard_id)
