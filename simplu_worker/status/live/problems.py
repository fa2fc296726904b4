"""What is wrong with a fleet: folded by cause, with its count, its first and last time, and what to do. Pure.

The causes are a closed set, and each reason of a hold is one row, so no problem takes the place of another one, however
often it comes.
"""

from __future__ import annotations

from collections import defaultdict
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

SUBJECTS_MAX: Final = 10  # named of a problem
LAG_HIGH_S: Final = 60.0
FEED_BEHIND_S: Final = 300.0  # as the alert FeedBehind
UNREAD_S: Final = 10.0  # without an answer to reads, as for readiness
SILENT_S: Final = 10.0  # since the last renewal of a lease: its numbers are old
OVER_FOR: Final = timedelta(hours=1)  # for so long a problem that is over is shown
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
Key: TypeAlias = tuple[ProblemCause, str | None]


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
    """A problem of this moment. *reason* tells apart what is held; *number* is that of the subjects without one.

    *since* is when it began, where that is known.
    """

    cause: ProblemCause
    subjects: tuple[str, ...] = ()
    number: int | None = None
    reason: str | None = None
    since: datetime | None = None


def find_problems(state: Json, fleet: Json, now: datetime) -> list[FoundProblem]:
    """Return what is wrong: *state* has members of this replica's `/status`, *fleet* those of the fleet's report."""
    lost = {one["shardId"] for one in state["shards"] if one.get("state") == ShardState.LOST}
    return [
        one
        for one in (
            FoundProblem(ProblemCause.OUTAGE, _failing_dependencies(state)),
            *_of_this_replica(state),
            FoundProblem(ProblemCause.CLOCK_APART, _with_wrong_clock(fleet["replicas"])),
            *_of_shards(state["shards"]),
            *_of_stream(fleet["streamShards"], state["streamShards"]),
            *_of_held(state["held"], fleet["replicas"], lost, now),
            *_of_moves(state["moves"], now),
            *_of_feed((state["feed"] or {}).get("destinations", ()), now),
            *_of_letters(fleet["replicas"]),
        )
        if one.number or one.subjects
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


def _of_this_replica(state: Json) -> Iterator[FoundProblem]:
    if state["ready"] is not True:
        yield FoundProblem(ProblemCause.NOT_READY, (str(state["ready"]).replace("_", " "),))
    yield FoundProblem(ProblemCause.QUEUE_FAILING, _named("queue", _failing_queues(state["queues"])))
    if state["citrus"] not in (None, DependencyState.OK):
        yield FoundProblem(ProblemCause.CITRUS_FAILING, number=1)
    if _is_cache_failing(state):
        yield FoundProblem(ProblemCause.CACHE_FAILING, number=1)
    troubles = state["troubles"]
    since = min((datetime.fromisoformat(one["since"]) for one in troubles), default=None)
    subjects = _distinct(f"{one['target'].replace('_', ' ')} {one['about']}" for one in troubles)
    yield FoundProblem(ProblemCause.INTERNAL_ERROR, subjects, sum(one["count"] for one in troubles), since=since)
    wrong = [one for one in state["streamShards"] if one.get("wrongKeys")]
    subjects = _named("stream shard", (one["streamShard"] for one in wrong))
    yield FoundProblem(ProblemCause.WRONG_KEYS, subjects, sum(one["wrongKeys"] for one in wrong))


def _with_wrong_clock(replicas: Iterable[Json]) -> tuple[str, ...]:
    return _named("replica", (one["replica"] for one in replicas if one["isClockApart"]))


def _of_shards(shards: Iterable[Json]) -> Iterator[FoundProblem]:
    by_state: defaultdict[str, list[Json]] = defaultdict(list)
    for one in shards:
        by_state[one.get("state", ShardState.UNKNOWN)].append(one)
    lost = by_state[ShardState.LOST]
    answers = [one["lastAnswer"].get("at") for one in lost if one.get("lastAnswer")]
    since = min((datetime.fromisoformat(at) for at in answers if at), default=None)
    yield FoundProblem(ProblemCause.SHARD_LOST, _shards_named(lost), since=since)
    yield FoundProblem(ProblemCause.SHARD_DEGRADED, _shards_named(by_state[ShardState.DEGRADED]))


def _of_stream(stream_shards: Iterable[Json], own: Iterable[Json]) -> Iterator[FoundProblem]:
    """Yield the problems of *stream_shards*, those of the fleet; *own* tells which ones this replica cannot read.

    Of another replica no error is known: what it reads late and not at all, while this one cannot read, fails likewise.
    """
    troubled = {one["streamShard"] for one in own if one.get("trouble")}
    rows = [one for one in stream_shards if one["state"] != StreamShardState.ENDED]
    silent = [one for one in rows if one["owner"] is not None and (one["seenSecondsAgo"] or 0.0) > SILENT_S]
    heard = [one for one in rows if one not in silent]
    unanswered = [one for one in heard if one["streamShard"] in troubled and _lag_s(one) >= UNREAD_S]
    late = [one for one in heard if one not in unanswered and (one["lagSeconds"] or 0.0) >= LAG_HIGH_S]
    if unanswered:
        unanswered += [one for one in late if not one.get("recordsPerSecond")]
        late = [one for one in late if one not in unanswered]
    unread = (one["streamShard"] for one in rows if one["owner"] is None)
    yield FoundProblem(ProblemCause.STREAM_SHARD_UNREAD, _named("stream shard", unread))
    yield FoundProblem(ProblemCause.REPLICA_SILENT, _distinct(f"replica {one['owner']}" for one in silent))
    failing = (one["streamShard"] for one in unanswered)
    yield FoundProblem(ProblemCause.STREAM_FAILING, _named("stream shard", failing))
    yield FoundProblem(ProblemCause.STREAM_LAG, _named("stream shard", (one["streamShard"] for one in late)))


def _lag_s(stream_shard: Json) -> float:
    """Return the lag; without any read yet it is endless."""
    lag_s: float | None = stream_shard["lagSeconds"]
    return float("inf") if lag_s is None else lag_s


def _of_held(own: Iterable[Json], replicas: Iterable[Json], lost: set[str], now: datetime) -> Iterator[FoundProblem]:
    """Yield one problem for each reason, of the targets that any replica names; not for a shard that is lost."""
    oldest_s: defaultdict[str, dict[str, float]] = defaultdict(dict)  # of each target, by reason
    for one in (*own, *(held for replica in replicas if not replica["isThis"] for held in replica["held"])):
        is_lost = one["reason"] == HoldReason.SHARD_UNAVAILABLE and one["target"].removeprefix("shard ") in lost
        if not is_lost:
            ages = oldest_s[one["reason"]]
            ages[one["target"]] = max(ages.get(one["target"], 0.0), one["ageSeconds"])
    for reason, ages in sorted(oldest_s.items()):
        subjects = tuple(sorted(ages, key=lambda target: -ages[target]))
        since = now - timedelta(seconds=max(ages.values()))
        yield FoundProblem(ProblemCause.TARGET_HELD, subjects, reason=reason, since=since)


def _of_moves(moves: Iterable[Json], now: datetime) -> Iterator[FoundProblem]:
    failed = [
        one for one in moves if one.get("error") or one.get("isRunning") is False or now - one["notedAt"] > MOVE_STANDS
    ]
    since = min((one["notedAt"] for one in failed), default=None)
    yield FoundProblem(ProblemCause.MOVE_FAILED, _named("tenant", (one["tenant"] for one in failed)), since=since)


def _of_feed(destinations: Iterable[Json], now: datetime) -> Iterator[FoundProblem]:
    """Yield what is stopped, and what is behind without that."""
    stopped = [one for one in destinations if one["stoppedShards"]]
    behind = [one for one in destinations if one not in stopped and one["lagSeconds"] > FEED_BEHIND_S]
    yield FoundProblem(ProblemCause.FEED_STOPPED, _named("destination", (one["name"] for one in stopped)))
    since = now - timedelta(seconds=max((one["lagSeconds"] for one in behind), default=0.0))
    yield FoundProblem(ProblemCause.FEED_BEHIND, _named("destination", (one["name"] for one in behind)), since=since)


def _of_letters(replicas: Iterable[Json]) -> Iterator[FoundProblem]:
    yield FoundProblem(ProblemCause.DEAD_LETTERS, number=sum(one["deadLetters"] or 0 for one in replicas))


def _shards_named(shards: Iterable[Json]) -> tuple[str, ...]:
    return _named("shard", (one["shardId"] for one in shards))


def _named(kind: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{kind} {name}" for name in names)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class _Noted(msgspec.Struct):
    """A problem as it was seen last, and since when."""

    found: FoundProblem
    since: datetime
    at: datetime
    is_over: bool = False


class Problems:
    """The problems of now and of the last hour."""

    def __init__(self) -> None:
        self._noted: dict[Key, _Noted] = {}

    def __repr__(self) -> str:
        return f"Problems({list(self._noted)})"

    def note(self, found: Iterable[FoundProblem], now: datetime) -> None:
        """Take over what is wrong *now*; what is not among *found* is over, and forgotten after an hour."""
        present = {(one.cause, one.reason): one for one in found}
        gone = {key: one for key, one in self._noted.items() if key not in present and _is_told(one, now)}
        is_blind = not BLIND.isdisjoint(one.cause for one in present.values())
        for one in gone.values():
            one.is_over = not (is_blind and one.found.cause in READ)
        self._noted = gone | {key: _noted_anew(one, self._noted.get(key), now) for key, one in present.items()}

    def view(self, now: datetime, site: str | None = None) -> list[dict[str, Any]]:
        """Return the problems as JSON members: those of now first, the worst first, then those that are over."""
        shown = [one for one in self._noted.values() if not one.is_over or now - one.at <= OVER_FOR]
        shown.sort(key=lambda one: (one.is_over, ORDER[one.found.cause], one.found.reason))
        return [_view(one, site) for one in shown]


def _is_told(over: _Noted, now: datetime) -> bool:
    """Return whether a problem that is over is still shown: not that a replica has begun or ended."""
    return now - over.at <= OVER_FOR and not PASSING.intersection(over.found.subjects)


def _noted_anew(found: FoundProblem, known: _Noted | None, now: datetime) -> _Noted:
    """Return a problem that is found *now*, and was *known* before."""
    since = found.since or now
    if known is None:
        return _Noted(found, since, now)
    has_grown = (found.number or 0) > (known.found.number or 0)
    at = now if found.cause not in COUNTED or has_grown else known.at
    is_over = found.cause is ProblemCause.WRONG_KEYS and now - at > COUNTED_FOR
    return _Noted(found, min(known.since, since), at, is_over)


def _view(noted: _Noted, site: str | None) -> dict[str, Any]:
    found, meaning = noted.found, MEANINGS[noted.found.cause]
    advice = {} if found.reason is None else advice_members(found.reason, site)
    return {
        "cause": found.cause,
        "reason": found.reason,
        "severity": meaning.severity,
        "problem": meaning.text,
        "count": len(found.subjects) if found.number is None else found.number,
        "subjects": found.subjects[:SUBJECTS_MAX],
        "since": noted.since.isoformat(timespec="milliseconds"),
        "at": noted.at.isoformat(timespec="milliseconds"),
        "isOver": noted.is_over,
        **(advice or meaning.advice.members(site)),
    }
