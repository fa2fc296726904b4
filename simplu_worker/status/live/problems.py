"""What is wrong with a fleet: an incident for each cause and target, with its begin and end, and what to do. Pure.

The causes and the reasons of holds are closed sets, and the incidents that each of them shows are bounded apart: none
takes the place of another cause, however often it comes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from simplu_worker.status.live.held_advice import Advice, advice_members
from simplu_worker.vocabulary import (
    DependencyState,
    HoldReason,
    ProblemCause,
    Severity,
    ShardState,
    SourceState,
    StreamShardState,
    UnreadyReason,
)

OPEN_MAX: Final = 10  # shown of a cause and reason: those that began first
OVER_MAX: Final = 20  # kept of a cause and reason: those that ended last
LAG_HIGH_S: Final = 60.0
FEED_BEHIND_S: Final = 300.0  # as the alert FeedBehind
UNREAD_S: Final = 10.0  # without an answer to reads, as for readiness
OVER_FOR: Final = timedelta(days=1)  # for so long an incident that is over is shown
GOES_ON: Final = timedelta(minutes=1)  # what comes back so soon has not been over
PASSING: Final = frozenset({"starting", "stream opening"})
MOVE_STANDS: Final = timedelta(minutes=15)  # without progress though its command runs, as the alert MoveStandsStill
COUNTED_FOR: Final = timedelta(minutes=10)  # without a further one, the wrong keys of a replica's life are over
# While nobody reads the stream, what its readers have told is neither over nor known.
BLIND: Final = frozenset({ProblemCause.NOT_READY, ProblemCause.REPLICA_SILENT, ProblemCause.STREAM_SHARD_UNREAD})
READ: Final = frozenset({ProblemCause.TARGET_HELD, ProblemCause.STREAM_LAG})
STREAM_OUTAGES: Final = frozenset({UnreadyReason.STREAM_UNAVAILABLE, UnreadyReason.STREAM_UNREADABLE})
# Their number is that of a time, so that they are last seen when it has grown.
COUNTED: Final = frozenset({ProblemCause.DEAD_LETTERS, ProblemCause.WRONG_KEYS})
SOURCE_STATES: Final = frozenset(map(str, SourceState)) | {"draining"}

Json: TypeAlias = Mapping[str, Any]
Kind: TypeAlias = tuple[ProblemCause, str | None]  # with the reason of a hold


class Meaning(NamedTuple):
    """A cause in words: how bad it is, what is wrong, what to do, and the page with the rest."""

    severity: Severity
    text: str
    advice: Advice


def _meaning(severity: Severity, text: str, advice: str, page: str) -> Meaning:
    return Meaning(severity, text, Advice(advice, page))


MEANINGS: Final[dict[ProblemCause, Meaning]] = {
    ProblemCause.OUTAGE: _meaning(
        Severity.CRITICAL,
        "Several dependencies fail at once",
        "Look first at what they share: network, DNS, credentials. The other problems may follow from that.",
        "docs/operating.md#health",
    ),
    ProblemCause.NOT_READY: _meaning(
        Severity.CRITICAL, "This replica does no work", "Remove the cause that is named.", "docs/operating.md#health"
    ),
    ProblemCause.SHARD_LOST: _meaning(
        Severity.CRITICAL,
        "Postgres shard lost",
        "See why the shard does not answer. Its operations wait; those of other shards do not wait for it.",
        "docs/monitoring.md#shardlost",
    ),
    ProblemCause.STREAM_SHARD_UNREAD: _meaning(
        Severity.CRITICAL,
        "Stream shard without an owner",
        "Look at the lease table and at DynamoDB: nobody reads the stream shard.",
        "docs/monitoring.md#streamshardunread",
    ),
    ProblemCause.REPLICA_SILENT: _meaning(
        Severity.CRITICAL,
        "Leases are not renewed",
        "See whether the replica runs and reaches DynamoDB. What is shown of its stream shards is old.",
        "docs/monitoring.md#streamshardunread",
    ),
    ProblemCause.STREAM_FAILING: _meaning(
        Severity.CRITICAL,
        "Stream cannot be read",
        "Look at Kinesis, the network and the permissions. More replicas do not help.",
        "docs/operating.md#health",
    ),
    ProblemCause.STREAM_LAG: _meaning(
        Severity.CRITICAL,
        "Stream read late",
        "See what the stream shard waits for; add replicas if their CPU is busy.",
        "docs/monitoring.md#streamlaghigh",
    ),
    ProblemCause.INTERNAL_ERROR: _meaning(
        Severity.CRITICAL,
        "Error inside the worker",
        "Report the log event `loop.failed`. The worker tries again by itself; nothing is skipped.",
        "docs/monitoring.md#internalerrors",
    ),
    ProblemCause.MOVE_FAILED: _meaning(
        Severity.CRITICAL,
        "Move stopped",
        "Repeat the command that moved the tenant, or take the move back: "
        "`simplu-worker tenants rollback BUSINESS LOCATION --apply`.",
        "docs/monitoring.md#movestandsstill",
    ),
    ProblemCause.QUEUE_FAILING: _meaning(
        Severity.CRITICAL,
        "Queue does not answer",
        "Look at SQS and its permissions.",
        "docs/monitoring.md#queuestalled",
    ),
    ProblemCause.CITRUS_FAILING: _meaning(
        Severity.CRITICAL,
        "Citrus does not answer",
        "Look at Citrus, the network and the key. Do not restart replicas.",
        "docs/monitoring.md#citrusdown",
    ),
    ProblemCause.CLOCK_APART: _meaning(
        Severity.WARNING,
        "Clock of a replica is off",
        "Set the clock of its machine by NTP.",
        "docs/monitoring.md#clocksapart",
    ),
    ProblemCause.TARGET_HELD: _meaning(Severity.WARNING, "Held", "See why it waits.", "docs/holding.md#holding"),
    ProblemCause.SHARD_DEGRADED: _meaning(
        Severity.WARNING,
        "Postgres shard with a problem",
        "The shard works. Remove the cause that is named.",
        "docs/shards.md#probes-of-shards",
    ),
    ProblemCause.REPLICA_GONE: _meaning(
        Severity.WARNING,
        "Replica gone",
        "Other replicas read its stream shards. See why it ended without a drain: exit status, memory, machine.",
        "docs/monitoring.md#workerabsent",
    ),
    ProblemCause.CACHE_FAILING: _meaning(
        Severity.WARNING,
        "Redis does not answer",
        "Look at Redis: its readers may see old entries until it is back.",
        "docs/monitoring.md#cacheunreachable",
    ),
    ProblemCause.FEED_STOPPED: _meaning(
        Severity.WARNING,
        "Feed stopped",
        "Correct the receiver, then let the feed go on: `simplu-worker feed skip`.",
        "docs/monitoring.md#feedstopped",
    ),
    ProblemCause.FEED_BEHIND: _meaning(
        Severity.WARNING,
        "Feed behind",
        "See what the destination answers. Its events wait in the log of the shards; no other destination waits.",
        "docs/monitoring.md#feedbehind",
    ),
    ProblemCause.DEAD_LETTERS: _meaning(
        Severity.WARNING,
        "Dead letters in the last hour",
        "Look at them: correct the producer or the cause, then replay or discard them.",
        "docs/monitoring.md#deadletters",
    ),
    ProblemCause.WRONG_KEYS: _meaning(
        Severity.WARNING,
        "Records with a wrong partition key",
        "Correct the producer: the order of these operations is not certain.",
        "docs/sending.md#order",
    ),
}
ORDER: Final = {cause: number for number, cause in enumerate(ProblemCause)}


class FoundProblem(NamedTuple):
    """What is wrong with one target at this moment; None is the whole worker or fleet.

    *reason* tells apart what is held; *number* is that of what is counted. *since* is when it began, where that is
    known.
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
    """Return what is wrong: *state* has members of this replica's `/status`, *fleet* those of the fleet's report."""
    lost = {one["shardId"] for one in state["shards"] if one.get("state") == ShardState.LOST}
    return [
        *_each(ProblemCause.OUTAGE, _failing_dependencies(state)),
        *_of_this_replica(state),
        *_each(ProblemCause.CLOCK_APART, _with_wrong_clock(fleet["replicas"])),
        *_of_shards(state["shards"]),
        *_of_stream(fleet["streamShards"], state["streamShards"]),
        *_gone_replicas(fleet["goneReplicas"], now),
        *_of_held(state["held"], fleet["replicas"], lost, now),
        *_of_moves(state["moves"], now),
        *_of_feed((state["feed"] or {}).get("destinations", ()), now),
        *_of_letters(fleet["replicas"]),
    ]


def _failing_dependencies(state: Json) -> tuple[str, ...]:
    """Return the dependencies of which nothing answers this replica, if there are several."""
    shards, streams, queues = state["shards"], state["streamShards"], state["queues"]
    failing = {
        "Kinesis or DynamoDB": state["ready"] in STREAM_OUTAGES
        or (streams and all(one.get("trouble") for one in streams)),
        "SQS": queues and len(_failing_queues(queues)) == len(queues),
        "Citrus": state["citrus"] not in (None, DependencyState.OK),
        "Redis": _is_cache_failing(state),
        "every Postgres shard": shards and all(one.get("state") == ShardState.LOST for one in shards),
    }
    named = tuple(name for name, is_failing in failing.items() if is_failing)
    return named if len(named) > 1 else ()


def _failing_queues(queues: Iterable[Json]) -> list[str]:
    return [one["name"] for one in queues if one.get("state") not in SOURCE_STATES]


def _is_cache_failing(state: Json) -> bool:
    return bool((state["cache"] or {}).get("state", DependencyState.OK) != DependencyState.OK)


def _each(cause: ProblemCause, subjects: Iterable[str]) -> Iterator[FoundProblem]:
    return (FoundProblem(cause, subject) for subject in dict.fromkeys(subjects))


def _of_this_replica(state: Json) -> Iterator[FoundProblem]:
    if state["ready"] is not True:
        yield FoundProblem(ProblemCause.NOT_READY, str(state["ready"]).replace("_", " "))
    yield from _each(ProblemCause.QUEUE_FAILING, (f"queue {name}" for name in _failing_queues(state["queues"])))
    if state["citrus"] not in (None, DependencyState.OK):
        yield FoundProblem(ProblemCause.CITRUS_FAILING)
    if _is_cache_failing(state):
        yield FoundProblem(ProblemCause.CACHE_FAILING)
    troubles: defaultdict[str, list[Json]] = defaultdict(list)
    for one in state["troubles"]:
        troubles[f"{one['target'].replace('_', ' ')} {one['about']}"].append(one)
    for subject, places in troubles.items():
        since = min(datetime.fromisoformat(one["since"]) for one in places)
        yield FoundProblem(ProblemCause.INTERNAL_ERROR, subject, sum(one["count"] for one in places), since=since)
    for one in state["streamShards"]:
        if count := one.get("wrongKeys"):
            yield FoundProblem(ProblemCause.WRONG_KEYS, f"stream shard {one['streamShard']}", count)


def _with_wrong_clock(replicas: Iterable[Json]) -> Iterator[str]:
    return (f"replica {one['replica']}" for one in replicas if one["isClockApart"])


def _of_shards(shards: Iterable[Json]) -> Iterator[FoundProblem]:
    for one in shards:
        subject = f"shard {one['shardId']}"
        match one.get("state", ShardState.UNKNOWN):
            case ShardState.LOST:
                at = (one.get("lastAnswer") or {}).get("at")
                yield FoundProblem(ProblemCause.SHARD_LOST, subject, since=at and datetime.fromisoformat(at))
            case ShardState.DEGRADED:
                yield FoundProblem(ProblemCause.SHARD_DEGRADED, subject)


def _of_stream(stream_shards: Iterable[Json], own: Iterable[Json]) -> Iterator[FoundProblem]:
    """Yield the problems of *stream_shards*, those of the fleet; *own* tells which ones this replica cannot read.

    Of another replica no error is known: what it reads late and not at all, while this one cannot read, fails likewise.
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


def _gone_replicas(gone: Iterable[Json], now: datetime) -> Iterator[FoundProblem]:
    for one in gone:
        since = now - timedelta(seconds=one["seenSecondsAgo"])
        yield FoundProblem(ProblemCause.REPLICA_GONE, f"replica {one['replica']}", since=since)


def _streams_named(stream_shards: Iterable[Json]) -> Iterator[str]:
    return (f"stream shard {one['streamShard']}" for one in stream_shards)


def _lag_s(stream_shard: Json) -> float:
    """Return the lag; without any read yet it is endless."""
    lag_s: float | None = stream_shard["lagSeconds"]
    return float("inf") if lag_s is None else lag_s


def _of_held(own: Iterable[Json], replicas: Iterable[Json], lost: set[str], now: datetime) -> Iterator[FoundProblem]:
    """Yield the targets that any replica names, by reason and the oldest first; not a shard that is lost."""
    oldest_s: defaultdict[str, dict[str, float]] = defaultdict(dict)  # of each target, by reason
    for one in (*own, *(held for replica in replicas if not replica["isThis"] for held in replica["held"])):
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
    """Yield what is stopped, and what is behind without that."""
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
    """A problem as it was seen last, since when, and when it was seen last."""

    found: FoundProblem
    since: datetime
    at: datetime
    is_over: bool = False

    def note(self, found: FoundProblem, now: datetime) -> None:
        """Take over that it is there *now*; what is counted is there when its number grows."""
        has_grown = (found.number or 0) > (self.found.number or 0)
        if found.cause not in COUNTED or has_grown:
            self.at = now
        self.is_over = found.cause is ProblemCause.WRONG_KEYS and now - self.at > COUNTED_FOR
        self.found, self.since = found, min(self.since, found.since or now)


class Problems:
    """The incidents of now and of the last day."""

    def __init__(self) -> None:
        self._open: dict[tuple[Kind, str | None], _Incident] = {}
        self._over: defaultdict[Kind, deque[_Incident]] = defaultdict(lambda: deque(maxlen=OVER_MAX))

    def __repr__(self) -> str:
        return f"Problems({list(self._open)})"

    def note(self, found: Iterable[FoundProblem], now: datetime) -> None:
        """Take over what is wrong *now*; what is not among *found* is over, and forgotten after a day."""
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
        """Return the incident that *found* goes on with, which is not over then; None without one."""
        over = self._over[found.kind]
        for one in reversed(over):
            if one.found.subject == found.subject and now - one.at <= GOES_ON:
                over.remove(one)
                return one
        return None

    def view(self, now: datetime, site: str | None = None) -> list[dict[str, Any]]:
        """Return the incidents as JSON members: those of now, the worst first, then those over, the last one first."""
        by_kind: defaultdict[Kind, list[_Incident]] = defaultdict(list)
        over = [one for several in self._over.values() for one in several]
        for one in self._open.values():
            if one.is_over:
                over.append(one)
            else:
                by_kind[one.found.kind].append(one)
        rows = [
            _view(one, len(several), site)
            for _, several in sorted(by_kind.items(), key=lambda pair: (ORDER[pair[0][0]], pair[0][1] or ""))
            for one in sorted(several, key=lambda one: one.since)[:OPEN_MAX]
        ]
        over.sort(key=lambda one: one.at, reverse=True)
        return [*rows, *(_view(one, 1, site) for one in over if now - one.at <= OVER_FOR)]


def _view(incident: _Incident, count: int, site: str | None) -> dict[str, Any]:
    found, meaning = incident.found, MEANINGS[incident.found.cause]
    advice = {} if found.reason is None else advice_members(found.reason, site)
    return {
        "cause": found.cause,
        "reason": found.reason,
        "severity": meaning.severity,
        "problem": meaning.text,
        "subject": found.subject,
        "count": count if found.number is None else found.number,
        "since": incident.since.isoformat(timespec="milliseconds"),
        "at": incident.at.isoformat(timespec="milliseconds"),
        "isOver": incident.is_over,
        **(advice or meaning.advice.members(site)),
    }
