"""What is wrong with a fleet, since when, and what to do. Pure.

Causes and reasons of holds are closed sets, and the incidents of each are bounded apart. docs/monitoring.md has the
table of causes, and a test holds the alerts to it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from simplu_worker.status.answers import Problem
from simplu_worker.status.causes import cause_of
from simplu_worker.status.words import OK, ProblemCause, Severity, UnreadyReason
from simplu_worker.vocabulary import HoldReason, ShardState, SourceState, StreamShardState

OPEN_MAX: Final = 10  # shown of a cause and reason: those that began first
OVER_MAX: Final = 20  # kept of a cause and reason: those that ended last
LAG_HIGH_S: Final = 60.0
FEED_BEHIND_S: Final = 300.0  # as the alert FeedBehind
UNREAD_S: Final = 10.0  # without an answer to reads, as for readiness
OVER_FOR: Final = timedelta(days=1)  # for so long an incident that is over is shown
GOES_ON: Final = timedelta(seconds=15)  # what comes back so soon has not been over
PASSING: Final = frozenset({"starting", "stream opening"})
MOVE_STANDS: Final = timedelta(minutes=15)  # without progress though its command runs, as the alert MoveStandsStill
NEAR_RATIO: Final = 0.5  # of the stream's retention, as the alert NearRetention
CERTIFICATE_LEFT: Final = timedelta(days=3)  # as the alert CertificateExpires
COUNTED_FOR: Final = timedelta(minutes=10)  # without a further one, what is counted in a replica's life is over
# While nobody reads the stream, what its readers have told is neither over nor known.
BLIND: Final = frozenset({ProblemCause.NOT_READY, ProblemCause.REPLICA_SILENT, ProblemCause.STREAM_SHARD_UNREAD})
READ: Final = frozenset({ProblemCause.NEAR_RETENTION, ProblemCause.TARGET_HELD, ProblemCause.STREAM_LAG})
CREDENTIALS: Final = frozenset({UnreadyReason.CREDENTIALS_UNAVAILABLE, UnreadyReason.CREDENTIALS_EXPIRED})
# Their number is that of a replica's life, or of a time, so that they are last seen when it has grown.
OF_LIFE: Final = frozenset({ProblemCause.RECORDS_LOST, ProblemCause.CONTROL_BLOCKED})
COUNTED: Final = OF_LIFE | {ProblemCause.DEAD_LETTERS}
COUNTS: Final = {
    "tenantsSplit": ProblemCause.TENANT_SPLIT,
    "recordsLost": ProblemCause.RECORDS_LOST,
    "controlBlocked": ProblemCause.CONTROL_BLOCKED,
}
SOURCE_STATES: Final = frozenset(map(str, SourceState)) | {"draining"}

Json: TypeAlias = Mapping[str, Any]
Kind: TypeAlias = tuple[ProblemCause, str | None]  # with the reason of a hold


ORDER: Final = {cause: number for number, cause in enumerate(ProblemCause)}


class FoundProblem(NamedTuple):
    """What is wrong with one target now; None is the whole fleet.

    *reason* is of a hold, *number* of what is counted, *since* the begin where it is known.
    """

    cause: ProblemCause
    subject: str | None = None
    number: int | None = None
    reason: str | None = None
    since: datetime | None = None

    @property
    def kind(self) -> Kind:
        """The cause, and the reason of a hold."""
        return self.cause, self.reason


def find_problems(state: Json, fleet: Json, now: datetime) -> list[FoundProblem]:
    """Return what is wrong: *state* is of `/status`, *fleet* the fleet's report."""
    lost = {one["shardId"] for one in state["shards"] if _is_lost(one)}
    return [
        *_each(ProblemCause.NEAR_RETENTION, _near_retention(state, fleet)),
        *_of_this_replica(state, now),
        *_each(ProblemCause.REPLICA_UNABLE, _unable(fleet["replicas"])),
        *_of_shards(state["shards"]),
        *_of_stream(fleet["streamShards"], state["streamShards"]),
        *_of_held(state["held"], fleet["replicas"], lost, now),
        *_of_moves(state["moves"], now),
        *_of_feed((state["feed"] or {}).get("destinations", ()), now),
        *_of_letters(fleet["replicas"]),
    ]


def _near_retention(state: Json, fleet: Json) -> Iterator[str]:
    if (retention_s := state["retentionSeconds"]) is None:
        return
    ages_s = [(one["streamShard"], one["lagSeconds"]) for one in fleet["streamShards"] if one["owner"] is not None]
    held = (*state["held"], *(held for replica in fleet["replicas"] for held in replica["held"]))
    ages_s += [(one["streamShard"], one["ageSeconds"]) for one in held]
    for name, age_s in ages_s:
        if (age_s or 0.0) > NEAR_RATIO * retention_s:
            yield f"stream shard {name}"


def _is_lost(shard: Json) -> bool:
    return shard.get("state") == ShardState.LOST or shard.get("takesOperations") is False


def _each(cause: ProblemCause, subjects: Iterable[str]) -> Iterator[FoundProblem]:
    return (FoundProblem(cause, subject) for subject in dict.fromkeys(subjects))


def _of_this_replica(state: Json, now: datetime) -> Iterator[FoundProblem]:
    if state["ready"] is not True:
        cause = ProblemCause.CREDENTIALS_FAILING if state["ready"] in CREDENTIALS else ProblemCause.NOT_READY
        yield FoundProblem(cause, str(state["ready"]).replace("_", " "))
    queues = (f"queue {one['name']}" for one in state["queues"] if one.get("state") not in SOURCE_STATES)
    yield from _each(ProblemCause.QUEUE_FAILING, queues)
    if state["citrus"] not in (None, OK):
        yield FoundProblem(ProblemCause.CITRUS_FAILING)
    if (state["cache"] or {}).get("state", OK) != OK:
        yield FoundProblem(ProblemCause.CACHE_FAILING)
    troubles: defaultdict[str, list[Json]] = defaultdict(list)
    for one in state["troubles"]:
        troubles[f"{one['target'].replace('_', ' ')} {one['about']}"].append(one)
    for subject, places in troubles.items():
        since = min(datetime.fromisoformat(one["since"]) for one in places)
        yield FoundProblem(ProblemCause.INTERNAL_ERROR, subject, sum(one["count"] for one in places), since=since)
    for name, cause in COUNTS.items():
        if number := state["counts"][name]:
            yield FoundProblem(cause, number=number)
    if (end := state["certificateEnd"]) is not None and now > end - CERTIFICATE_LEFT:
        yield FoundProblem(ProblemCause.CERTIFICATE_EXPIRES)


def _unable(replicas: Iterable[Json]) -> Iterator[str]:
    return (f"replica {one['replica']}: {one['unable'].replace('_', ' ')}" for one in replicas if one["unable"])


def _of_shards(shards: Iterable[Json]) -> Iterator[FoundProblem]:
    for one in shards:
        subject = f"shard {one['shardId']}"
        if _is_lost(one):
            at = (one.get("lastAnswer") or {}).get("at")
            yield FoundProblem(ProblemCause.SHARD_LOST, subject, since=at and datetime.fromisoformat(at))
        elif one.get("state") == ShardState.DEGRADED:
            yield FoundProblem(ProblemCause.SHARD_DEGRADED, subject)


def _of_stream(stream_shards: Iterable[Json], own: Iterable[Json]) -> Iterator[FoundProblem]:
    """Yield problems of the fleet's *stream_shards*; *own* tells which this replica cannot read.

    Of another replica no error is known: what it reads late and not at all fails likewise.
    """
    troubled = {one["streamShard"] for one in own if one.get("trouble")}
    rows = [one for one in stream_shards if one["state"] != StreamShardState.ENDED]
    silent = [one for one in rows if one["isSilent"]]
    heard = [one for one in rows if one not in silent]
    unanswered = [one for one in heard if one["streamShard"] in troubled and _lag_s(one) >= UNREAD_S]
    late = [one for one in heard if one not in unanswered and (one["lagSeconds"] or 0.0) >= LAG_HIGH_S]
    if unanswered:
        unanswered += [one for one in late if not one.get("recordsPerSecond")]
        late = [one for one in late if one not in unanswered]
    unread = [one for one in rows if one["owner"] is None]
    yield from _each(ProblemCause.STREAM_SHARD_UNREAD, _streams_named(unread))
    yield from _each(ProblemCause.REPLICA_SILENT, (f"replica {one['owner']}" for one in silent))
    yield from _each(ProblemCause.STREAM_FAILING, _streams_named(unanswered))
    yield from _each(ProblemCause.STREAM_LAG, _streams_named(late))


def _streams_named(stream_shards: Iterable[Json]) -> Iterator[str]:
    return (f"stream shard {one['streamShard']}" for one in stream_shards)


def _lag_s(stream_shard: Json) -> float:
    lag_s: float | None = stream_shard["lagSeconds"]
    return float("inf") if lag_s is None else lag_s


def _of_held(own: Iterable[Json], replicas: Iterable[Json], lost: set[str], now: datetime) -> Iterator[FoundProblem]:
    """Yield held targets by reason, the oldest first, without lost shards and replicas that can do nothing."""
    oldest_s: defaultdict[str, dict[str, float]] = defaultdict(dict)  # of each target, by reason
    for one in (
        *own,
        *(held for replica in replicas if not (replica["isThis"] or replica["unable"]) for held in replica["held"]),
    ):
        is_lost = one["reason"] == HoldReason.SHARD_UNAVAILABLE and one["target"].removeprefix("shard ") in lost
        if not is_lost:
            ages = oldest_s[one["reason"]]
            ages[one["target"]] = max(ages.get(one["target"], 0.0), one["ageSeconds"])
    for reason, ages in sorted(oldest_s.items()):
        for target, age_s in sorted(ages.items(), key=lambda pair: -pair[1]):
            since = now - timedelta(seconds=age_s)
            yield FoundProblem(ProblemCause.TARGET_HELD, target, reason=reason, since=since)


def _of_moves(moves: Iterable[Json], now: datetime) -> Iterator[FoundProblem]:
    for one in moves:
        if one.get("error") or one.get("isRunning") is False or now - one["notedAt"] > MOVE_STANDS:
            yield FoundProblem(ProblemCause.MOVE_FAILED, f"tenant {one['tenant']}", since=one["notedAt"])


def _of_feed(destinations: Iterable[Json], now: datetime) -> Iterator[FoundProblem]:
    for one in destinations:
        subject = f"destination {one['name']}"
        if one["stoppedShards"]:
            yield FoundProblem(ProblemCause.FEED_STOPPED, subject)
        elif one["lagSeconds"] > FEED_BEHIND_S:
            yield FoundProblem(ProblemCause.FEED_BEHIND, subject, since=now - timedelta(seconds=one["lagSeconds"]))


def _of_letters(replicas: Iterable[Json]) -> Iterator[FoundProblem]:
    if count := sum(one["deadLetters"] or 0 for one in replicas):
        yield FoundProblem(ProblemCause.DEAD_LETTERS, number=count)


class _Incident(msgspec.Struct):
    found: FoundProblem
    since: datetime
    at: datetime
    is_over: bool = False

    def note(self, found: FoundProblem, now: datetime) -> None:
        has_grown = (found.number or 0) > (self.found.number or 0)
        if found.cause not in COUNTED or has_grown:
            self.at = now
        self.is_over = found.cause in OF_LIFE and now - self.at > COUNTED_FOR
        self.found, self.since = found, min(self.since, found.since or now)


class Problems:
    """The incidents of now and of the last day."""

    def __init__(self) -> None:
        self._open: dict[tuple[Kind, str | None], _Incident] = {}
        self._over: defaultdict[Kind, deque[_Incident]] = defaultdict(lambda: deque(maxlen=OVER_MAX))

    def note(self, found: Iterable[FoundProblem], now: datetime) -> None:
        """Take over what is wrong *now*; all else is over, and forgotten after a day."""
        present = {(one.kind, one.subject): one for one in found}
        is_blind = any(one.cause in BLIND for one in present.values())
        for key in self._open.keys() - present.keys():
            incident = self._open[key]
            if is_blind and incident.found.cause in READ and now - incident.at <= OVER_FOR:
                continue
            del self._open[key]
            if incident.found.subject not in PASSING:
                incident.is_over = True
                self._over[incident.found.kind].append(incident)
        for key, one in present.items():
            known = self._open.get(key) or self._take_back(one, now)
            if known is None or (known.is_over and (one.number or 0) > (known.found.number or 0)):
                if known is not None:
                    self._over[one.kind].append(known)
                known = _Incident(one, one.since or now, now)
            known.note(one, now)
            self._open[key] = known

    def _take_back(self, found: FoundProblem, now: datetime) -> _Incident | None:
        over = self._over[found.kind]
        for one in reversed(over):
            if one.found.subject == found.subject and now - one.at <= GOES_ON:
                over.remove(one)
                return one
        return None

    def view(self, now: datetime, site: str | None = None) -> list[Problem]:
        """Return the incidents of now, the worst first, then those over, the last one first."""
        by_kind: defaultdict[Kind, list[_Incident]] = defaultdict(list)
        over = [one for several in self._over.values() for one in several]
        for one in self._open.values():
            if one.is_over:
                over.append(one)
            else:
                by_kind[one.found.kind].append(one)
        rows = [
            _view(one, len(several), site)
            for _, several in sorted(by_kind.items(), key=lambda pair: _rank(pair[0]))
            for one in sorted(several, key=lambda one: one.since)[:OPEN_MAX]
        ]
        over.sort(key=lambda one: one.at, reverse=True)
        return [*rows, *(_view(one, 1, site) for one in over if now - one.at <= OVER_FOR)]


def _rank(kind: Kind) -> tuple[bool, int, str]:
    cause, reason = kind
    return cause_of(cause, reason).severity is not Severity.CRITICAL, ORDER[cause], reason or ""


def _view(incident: _Incident, count: int, site: str | None) -> Problem:
    found, words = incident.found, cause_of(incident.found.cause, incident.found.reason)
    return Problem(
        cause=found.cause,
        reason=found.reason,
        severity=words.severity,
        problem=words.text,
        subject=found.subject,
        count=count if found.number is None else found.number,
        since=incident.since.isoformat(timespec="milliseconds"),
        at=incident.at.isoformat(timespec="milliseconds"),
        is_over=incident.is_over,
        **words.members(site),
    )
