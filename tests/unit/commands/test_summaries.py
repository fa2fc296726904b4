from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from simplu_worker.commands.feed.destinations import SHOWN_MAX, describe
from simplu_worker.commands.fleet.actions import NOTHING_IS_HELD, draw, held_lines
from simplu_worker.commands.output import Line, Table
from simplu_worker.feed.cursors import RefusedEvent, ShardDestination
from simplu_worker.feed.types import Arrival
from simplu_worker.vocabulary import FeedStop

LEASE_DURATION_S = 10.0


def stream_shard(key: str, **changed: Any) -> dict[str, Any]:
    members = {"streamShard": key, "owner": "other", "state": "elsewhere", "lagSeconds": 0.0, "heldTargets": 0}
    return members | {"seenSecondsAgo": 3.0} | changed


def lines(*rows: dict[str, Any], stream: str | None = "operations") -> list[str]:
    return held_lines({"stream": stream, "streamShards": rows}, lease_duration_s=LEASE_DURATION_S)


def test_nothing_is_held_only_if_every_replica_says_so() -> None:
    idle = stream_shard("a")
    assert lines(idle, stream_shard("b")) == [NOTHING_IS_HELD]
    assert lines(idle, stream_shard("b", state="ended", owner=None, heldTargets=None)) == [NOTHING_IS_HELD]
    assert lines(stream=None) == [NOTHING_IS_HELD]
    held = lines(stream_shard("a", heldTargets=2), stream_shard("b", heldTargets=1), idle)
    assert [line[:15] for line in held] == ["held targets: 3"]
    unknown = "held targets are not known"
    for changed in (
        {"lagSeconds": None},
        {"owner": None, "state": "unowned", "heldTargets": None, "lagSeconds": None},
        {"seenSecondsAgo": LEASE_DURATION_S + 1},
    ):
        assert [line.partition(":")[0] for line in lines(idle, stream_shard("b", **changed))] == [f"{unknown} of b"]
    assert [line.partition(":")[0] for line in lines()] == [unknown]
    assert len(lines(stream_shard("a", heldTargets=1), stream_shard("b", lagSeconds=None))) == 2


PROBLEM = {"severity": "critical", "advice": "Look.", "count": 1, "isOver": False, "reason": None}
MEASURED = {"lagSeconds": None, "recordsPerSecond": None, "heldTargets": None}
REPLICA: dict[str, Any] = MEASURED | {"version": "0.1", "leases": 1, "latencyP99Seconds": None, "deadLetters": None}
REPLICA |= {"seenSecondsAgo": 0.25, "isSilent": False, "unable": None}
FLEET: dict[str, Any] = {
    "at": "2026-11-30T10:01:30+00:00",
    "stream": "operations",
    "problems": [
        PROBLEM
        | {"problem": "Held", "reason": "gap", "subject": "shard b\x1b[0m", "since": "2026-11-30T10:00:00+00:00"},
        PROBLEM | {"problem": "Replica silent", "subject": "r9", "since": "2026-11-30T10:00:00+00:00", "isOver": True},
    ],
    "replicas": [
        REPLICA
        | {"replica": "host:1", "lagSeconds": 90.0, "recordsPerSecond": 1234.5, "heldTargets": 1, "deadLetters": 3}
        | {"latencyP99Seconds": 2.5},
        REPLICA | {"replica": "kcl"},
    ],
    "streamShards": [
        MEASURED | {"streamShard": "s0", "state": "reading", "owner": "host:1", "lagSeconds": 0.25},
        MEASURED | {"streamShard": "s1", "state": "elsewhere", "owner": None, "lagSeconds": 90.0},
    ],
    "topBusinesses": [
        {"businessId": one, "shardId": "shard-1", "seconds": 4.5, "share": 0.5, "locations": locations}
        for one, locations in (
            ("a", [{"tenant": "a-b", "seconds": 4.5}]),
            ("c", [{"tenant": "c-d", "seconds": 3.0}, {"tenant": "c-e", "seconds": 1.5}]),
        )
    ],
}


def lines_of(fleet: dict[str, Any], notice: str = "") -> list[str]:
    output = io.StringIO()
    Console(file=output, width=200).print(draw(fleet, notice, expand=False))
    return [" ".join(line.split()) for line in output.getvalue().splitlines()]


def test_screen_has_what_is_wrong_first_and_nothing_that_is_over() -> None:
    lines = lines_of(FLEET, "no answer")
    measured = "lag 1 min 30 s p99 under 2.5 s dead letters 3/h"
    assert lines[0] == f"problems 1 held 1 {measured} 2 replicas 1,234 records/s operations"
    assert [line for line in lines[1:] if line] == [
        "no answer",
        *("Problems", "Problem Reason Subject Since Advice", "Held gap shard b\\x1b[0m 1 min 30 s Look."),
        *("Replicas", "Replica Version Leases Lag Records/s p99 Dead letters/h Held Seen ago"),
        "host:1 0.1 1 1 min 30 s 1,234.5 under 2.5 s 3 1 250 ms",
        "kcl 0.1 1 – – – – – 250 ms",
        *("Stream shards", "Stream shard State Lag Records/s Held Owner"),
        "s1 elsewhere 1 min 30 s – – –",
        "s0 reading 250 ms – – host:1",
        *("Businesses", "Business Tenant Shard Seconds of the last minute", "a a-b shard-1 4.5"),
        *("c – shard-1 4.5", "c-d shard-1 3.0", "c-e shard-1 1.5"),
    ]


ARRIVAL = Arrival("smile-berlin", 2, "c")
AT = datetime(2026, 1, 1, tzinfo=UTC)


def told(*found: ShardDestination) -> tuple[list[object], list[str]]:
    table, *lines = describe(found, None)
    assert isinstance(table, Table)
    return list(table.rows), [line.text for line in lines if isinstance(line, Line)]


def test_summary_has_each_destination_with_what_is_odd() -> None:
    subject = "smile-berlin/patient/p-1"
    refusals = (RefusedEvent("token-7-0", "simplu.resource.patched", subject, "422", AT),)
    stop: dict[str, Any] = {"stopped": FeedStop.REFUSED, "error": "why", "refused_event": "id-1"}
    rows, lines = told(
        ShardDestination("bus", "s0", 9.9, "one"),
        ShardDestination("crm", "s1", 10.0, "one", waits_for=ARRIVAL, refusal_count=2, refusals=refusals),
        ShardDestination("crm", "s2", 90.5, None, refusal_count=1, **stop),
    )
    assert rows == [("bus", "9.9 s", 1, 0, 0, 0, 0), ("crm", "90.5 s", 2, 1, 1, 1, 3)]
    event = "refused simplu.resource.patched of smile-berlin/patient/p-1 at 2026-01-01 00:00:00, token-7-0: 422"
    assert lines == [
        f"crm, s1: {event}",
        "crm, s2: stopped at the event id-1 (refused): why",
        "crm, s1: waits at the arrival of smile-berlin for the feed of its source, c",
    ]


def test_summary_counts_nothing_of_a_destination_of_no_publisher() -> None:
    rows, lines = told(*[ShardDestination("crm", "s0", is_in_file=False, refusal_count=2)] * 2)
    assert rows == [("crm", "0.0 s", 2, 0, 0, 0, 4)]
    assert lines == ["crm: no replica has it in FEED_FILE; `simplu-worker feed forget crm` deletes its places"]


def test_summary_has_no_more_lines_than_people_read() -> None:
    stopped = ShardDestination("crm", "s0", publisher="one", stopped=FeedStop.DISABLED, error="410")
    _, lines = told(*[stopped] * (SHOWN_MAX + 2))
    assert (len(lines), lines[-1]) == (SHOWN_MAX + 1, "and 2 more; --json has all")
