"""What is wrong: folded by cause, with count, first and last time, and what to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from support.requires import ROOT

from simplu_worker.status.live.problems import MEANINGS, OVER_FOR, SUBJECTS_MAX, FoundProblem, Problems, find_problems
from simplu_worker.vocabulary import ProblemCause

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SITE = "https://docs.example.com/simplu-worker"
QUIET: dict[str, Any] = {
    "ready": True,
    "queues": [{"name": "q", "state": "polling"}],
    "streamShards": [{"streamShard": "s"}],
    "shards": [{"shardId": "a", "state": "healthy"}],
    "held": [],
    "moves": [],
    "feed": None,
    "cache": {"state": "ok"},
    "troubles": [],
    "citrus": "ok",
}


def stream_shard(name: str = "s", **members: Any) -> dict[str, Any]:
    """Return a row of `/fleet`."""
    row = {"streamShard": name, "state": "reading", "owner": "me", "lagSeconds": 0.1, "seenSecondsAgo": 0.5}
    return row | members


def fleet(*stream_shards: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Return the report of a fleet of this replica and another one with the members *others*."""
    me = {"replica": "me", "isThis": True, "held": [], "deadLetters": 0, "isClockApart": False}
    other = {"replica": "b", "isThis": False, "held": [], "deadLetters": None, "isClockApart": False} | others
    return {"streamShards": stream_shards or [stream_shard()], "replicas": [me, other]}


def held(target: str, reason: str, age_s: float) -> dict[str, Any]:
    """Return a held target."""
    return {"target": target, "reason": reason, "ageSeconds": age_s}


def causes_of(state: dict[str, Any], report: dict[str, Any] | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """Return the causes that are found, with their subjects."""
    found = find_problems(QUIET | state, report or fleet(), NOW)
    return [(one.cause, one.subjects) for one in found]


def test_nothing_is_wrong_in_a_quiet_fleet() -> None:
    """Without a cache, Citrus or a queue too."""
    assert causes_of({}) == []
    assert causes_of({"cache": None, "citrus": None, "queues": []}) == []


def test_lost_shard_is_one_problem_and_not_a_held_target_as_well() -> None:
    """Whatever the number of readers that hold it; a shard that works and is held is another matter."""
    shards = [{"shardId": "a", "state": "lost", "lastAnswer": {"at": "2026-11-27T11:00:00+00:00"}}]
    holds = [held("shard a", "shard_unavailable", 5.0)] * 3 + [held("shard b", "shard_unavailable", 9.0)]
    found = find_problems(QUIET | {"shards": shards, "held": holds}, fleet(), NOW)
    assert found == [
        FoundProblem(ProblemCause.SHARD_LOST, ("shard a",), since=NOW - timedelta(hours=1)),
        FoundProblem(
            ProblemCause.TARGET_HELD, ("shard b",), reason="shard_unavailable", since=NOW - timedelta(seconds=9)
        ),
    ]


def test_held_targets_are_folded_by_reason_over_all_replicas() -> None:
    """A target that several name is one, the one that waits longest first."""
    report = fleet(held=[held("tenant t", "moving", 50.0), held("tenant z", "gap", 1.0)])
    found = find_problems(
        QUIET | {"held": [held("tenant t", "moving", 3.0), held("tenant u", "moving", 70.0)]}, report, NOW
    )
    assert [(one.reason, one.subjects) for one in found] == [
        ("gap", ("tenant z",)),
        ("moving", ("tenant u", "tenant t")),
    ]


def test_held_target_waits_since_the_first_replica_held_it() -> None:
    """What the report tells of this replica is older than what it knows itself."""
    report = fleet(held=[held("tenant t", "moving", 50.0), held("tenant t", "moving", 20.0)])
    report["replicas"][0]["held"] = [held("tenant u", "moving", 90.0)]
    found = find_problems(QUIET | {"held": [held("tenant t", "moving", 0.5)]}, report, NOW)
    assert [(one.subjects, one.since) for one in found] == [(("tenant t",), NOW - timedelta(seconds=50))]

    young = [held(f"tenant {age_s}", "moving", age_s) for age_s in (0.25, 0.5)]
    (problem,) = find_problems(QUIET | {"held": young}, fleet(), NOW)
    assert problem.since == NOW - timedelta(seconds=0.5)


def test_only_the_hold_of_a_lost_shard_is_part_of_its_loss() -> None:
    """A tenant on it, or the shard for another reason, is held besides."""
    shards = [{"shardId": "a", "state": "lost"}, {"shardId": "b", "state": "healthy"}, {"shardId": "c"}]
    holds = [held("shard a", "moving", 1.0), held("shard c", "shard_unavailable", 1.0)]
    assert causes_of({"shards": shards, "held": holds}) == [
        (ProblemCause.SHARD_LOST, ("shard a",)),
        (ProblemCause.TARGET_HELD, ("shard a",)),
        (ProblemCause.TARGET_HELD, ("shard c",)),
    ]


def test_lost_shards_are_lost_since_the_first_of_them_answered_last() -> None:
    """One that has never answered tells no time."""
    answers = [None, {"error": "refused"}, {"at": "2026-11-27T11:30:00+00:00"}, {"at": "2026-11-27T11:00:00+00:00"}]
    shards = [{"shardId": str(at), "state": "lost", "lastAnswer": one} for at, one in enumerate(answers)]
    (problem,) = find_problems(QUIET | {"shards": shards}, fleet(), NOW)
    assert problem == FoundProblem(
        ProblemCause.SHARD_LOST, tuple(f"shard {at}" for at in range(4)), since=NOW - timedelta(hours=1)
    )
    (problem,) = find_problems(QUIET | {"shards": shards[:2]}, fleet(), NOW)
    assert problem.since is None


def test_numbers_are_sums() -> None:
    """Of errors by place, which is named once; of records with a wrong key, and dead letters of all replicas."""
    places = [("stream_shard", "s", "11:30"), ("stream_shard", "s", "11:00"), ("queue", "q", "11:45")]
    troubles = [
        {"target": target, "about": about, "count": 2, "since": f"2026-11-27T{since}:00+00:00"}
        for target, about, since in places
    ]
    streams = [{"streamShard": "s", "wrongKeys": 3}, {"streamShard": "t", "wrongKeys": 4}, {"streamShard": "u"}]
    report = fleet(deadLetters=5)
    report["replicas"][0]["deadLetters"] = 2
    assert find_problems(QUIET | {"troubles": troubles, "streamShards": streams}, report, NOW) == [
        FoundProblem(ProblemCause.INTERNAL_ERROR, ("stream shard s", "queue q"), 6, since=NOW - timedelta(hours=1)),
        FoundProblem(ProblemCause.WRONG_KEYS, ("stream shard s", "stream shard t"), 7),
        FoundProblem(ProblemCause.DEAD_LETTERS, number=7),
    ]


def test_dependency_that_does_not_answer_is_one_problem() -> None:
    """Citrus and the cache have no parts to count; a cache that is not known yet is none."""
    state = {"citrus": "TimeoutError", "cache": {"state": "unreachable"}}
    found = find_problems(QUIET | state, fleet(), NOW)
    causes = (ProblemCause.CITRUS_FAILING, ProblemCause.CACHE_FAILING)
    assert found[1:] == [FoundProblem(cause, number=1) for cause in causes]  # behind the outage of both
    assert causes_of({"cache": {}}) == []


def test_each_part_of_a_worker_has_its_cause() -> None:
    """An error in place of a state is trouble."""
    trouble = {"target": "stream_shard", "about": "s", "count": 4, "since": "2026-11-27T11:00:00+00:00"}
    state = {
        "ready": "stream_unavailable",
        "queues": [{"name": "q", "state": "no answer"}],
        "citrus": "TimeoutError",
        "cache": {"state": "unreachable"},
        "troubles": [trouble],
        "streamShards": [{"streamShard": "s", "wrongKeys": 3}],
        "shards": [{"shardId": "a", "state": "degraded"}],
        "moves": [{"tenant": "t", "error": "no room", "notedAt": NOW}],
    }
    assert dict(causes_of(state, fleet(deadLetters=12, isClockApart=True))) == {
        ProblemCause.OUTAGE: ("Kinesis or DynamoDB", "SQS", "Citrus", "Redis"),
        ProblemCause.NOT_READY: ("stream unavailable",),
        ProblemCause.QUEUE_FAILING: ("queue q",),
        ProblemCause.CITRUS_FAILING: (),
        ProblemCause.CLOCK_APART: ("replica b",),
        ProblemCause.CACHE_FAILING: (),
        ProblemCause.INTERNAL_ERROR: ("stream shard s",),
        ProblemCause.WRONG_KEYS: ("stream shard s",),
        ProblemCause.SHARD_DEGRADED: ("shard a",),
        ProblemCause.MOVE_FAILED: ("tenant t",),
        ProblemCause.DEAD_LETTERS: (),
    }


def test_move_has_stopped_once_its_command_has_ended_or_without_progress_for_a_quarter_of_an_hour() -> None:
    """One that was killed left no error; of a cleanup nothing tells whether its command runs."""
    moves = [{"tenant": str(minutes), "notedAt": NOW - timedelta(minutes=minutes)} for minutes in (1, 15, 16)]
    moves += [{"tenant": str(runs), "isRunning": runs, "notedAt": NOW} for runs in (True, False)]
    (problem,) = find_problems(QUIET | {"moves": moves}, fleet(), NOW)
    assert (problem.cause, problem.subjects) == (ProblemCause.MOVE_FAILED, ("tenant 16", "tenant False"))
    assert problem.since == NOW - timedelta(minutes=16)


def test_dependencies_that_fail_together_are_told_first() -> None:
    """One alone, or one of two shards, is a problem of its own."""
    gone = {"queues": [{"name": "q", "state": "no answer"}], "citrus": "no answer"}
    shards = [{"shardId": "a", "state": "lost"}, {"shardId": "b", "state": "healthy"}]
    unread = {"streamShards": [{"streamShard": "s", "trouble": "no answer"}], "cache": {"state": "unreachable"}}
    assert causes_of(gone | {"shards": shards})[0] == (ProblemCause.OUTAGE, ("SQS", "Citrus"))
    assert causes_of(gone | unread | {"shards": shards[:1]})[0] == (
        ProblemCause.OUTAGE,
        ("Kinesis or DynamoDB", "SQS", "Citrus", "Redis", "every Postgres shard"),
    )
    assert causes_of({"ready": "stream_unavailable", "cache": unread["cache"]})[0] == (
        ProblemCause.OUTAGE,
        ("Kinesis or DynamoDB", "Redis"),
    )
    assert ProblemCause.OUTAGE not in dict(causes_of({"citrus": "no answer", "shards": shards}))
    nothing: dict[str, Any] = {"citrus": "no answer", "queues": [], "streamShards": [], "shards": []}
    assert ProblemCause.OUTAGE not in dict(causes_of(nothing))
    some = [*unread["streamShards"], {"streamShard": "t"}]
    assert ProblemCause.OUTAGE not in dict(causes_of({"citrus": "no answer", "streamShards": some}))


def test_stream_that_is_not_answered_is_not_read_late() -> None:
    """More replicas would not help; another replica that reads nothing fails likewise, one that reads is late."""
    own = [{"streamShard": name, "trouble": "no answer"} for name in ("a", "b", "new", "old")] + [
        {"streamShard": "mine"}
    ]
    rows = [
        stream_shard("a", lagSeconds=75.0),
        stream_shard("b", lagSeconds=9.0),  # reads failed for a moment
        stream_shard("new", lagSeconds=None),
        stream_shard("old", lagSeconds=10.0),
        stream_shard("mine", lagSeconds=80.0, recordsPerSecond=5.0),
        stream_shard("c", owner="b", lagSeconds=75.0, recordsPerSecond=0.0),
        stream_shard("d", owner="b", lagSeconds=75.0, recordsPerSecond=9.0),
    ]
    assert causes_of({"streamShards": own}, fleet(*rows)) == [
        (ProblemCause.STREAM_FAILING, ("stream shard a", "stream shard new", "stream shard old", "stream shard c")),
        (ProblemCause.STREAM_LAG, ("stream shard mine", "stream shard d")),
    ]
    assert causes_of({}, fleet(rows[5])) == [(ProblemCause.STREAM_LAG, ("stream shard c",))]


def test_stream_shard_is_unread_late_or_of_a_silent_replica() -> None:
    """A lag that nobody has renewed is not known, and not high; one that has ended is nothing."""
    report = fleet(
        stream_shard("a", owner=None, state="unowned"),
        stream_shard("b", owner="gone", lagSeconds=500.0, seenSecondsAgo=30.0),
        stream_shard("c", lagSeconds=75.0),
        stream_shard("d", owner=None, state="ended"),
        stream_shard("e", lagSeconds=60.0, seenSecondsAgo=10.0),
        stream_shard("f", lagSeconds=None, seenSecondsAgo=None),
        stream_shard("g", owner=None, seenSecondsAgo=30.0),
        stream_shard("h", owner="gone", seenSecondsAgo=10.1),
        stream_shard("i", lagSeconds=59.9),
    )
    assert causes_of({}, report) == [
        (ProblemCause.STREAM_SHARD_UNREAD, ("stream shard a", "stream shard g")),
        (ProblemCause.REPLICA_SILENT, ("replica gone",)),
        (ProblemCause.STREAM_LAG, ("stream shard c", "stream shard e")),
    ]


def test_feed_that_has_stopped_is_not_behind_as_well() -> None:
    """A destination that is a little behind, as at any load, is no problem."""

    def destination(name: str, lag_s: float, *stopped: str) -> dict[str, Any]:
        return {"name": name, "lagSeconds": lag_s, "stoppedShards": stopped}

    feed = [
        destination("a", 900.0, "shard-1"),
        destination("b", 301.0),
        destination("c", 299.0),
        destination("d", 0.0, "s"),
    ]
    assert causes_of({"feed": {"destinations": feed}}) == [
        (ProblemCause.FEED_STOPPED, ("destination a", "destination d")),
        (ProblemCause.FEED_BEHIND, ("destination b",)),
    ]
    assert causes_of({"feed": {"destinations": feed[2:3]}}) == []
    late = [destination("b", 301.0), destination("e", 400.0)]
    (problem,) = find_problems(QUIET | {"feed": {"destinations": late}}, fleet(), NOW)
    assert problem.since == NOW - timedelta(seconds=400)


def test_problem_keeps_its_first_time_and_is_shown_for_an_hour_when_it_is_over() -> None:
    """The worst comes first, and what is over last."""
    problems = Problems()
    lost = FoundProblem(ProblemCause.SHARD_LOST, ("shard a",))
    letters = FoundProblem(ProblemCause.DEAD_LETTERS, number=7)
    later, last = NOW + timedelta(minutes=5), NOW + timedelta(minutes=5) + OVER_FOR
    problems.note([lost], NOW)
    problems.note([letters, lost], later)
    assert [(one["cause"], one["count"], one["since"][11:16], one["isOver"]) for one in problems.view(later)] == [
        ("shard_lost", 1, "12:00", False),
        ("dead_letters", 7, "12:05", False),
    ]
    problems.note([letters], last)
    assert [(one["cause"], one["at"][11:16], one["isOver"]) for one in problems.view(last)] == [
        ("dead_letters", "12:05", False),  # no further one has come
        ("shard_lost", "12:05", True),
    ]
    problems.note([letters._replace(number=8)], last + timedelta(seconds=1))
    assert [(one["cause"], one["at"][11:16]) for one in problems.view(last)] == [("dead_letters", "13:05")]


def test_what_nobody_sees_is_not_over() -> None:
    """A held target is held although its reader has lost its lease; it was last seen before."""
    problems = Problems()
    holding = FoundProblem(ProblemCause.TARGET_HELD, ("tenant t",), reason="moving")
    lost = FoundProblem(ProblemCause.SHARD_LOST, ("shard a",))
    problems.note([holding, lost], NOW)
    later = NOW + timedelta(minutes=1)
    problems.note([FoundProblem(ProblemCause.REPLICA_SILENT, ("replica b",))], later)
    assert [(one["cause"], one["at"][11:16], one["isOver"]) for one in problems.view(later)] == [
        ("replica_silent", "12:01", False),
        ("target_held", "12:00", False),
        ("shard_lost", "12:00", True),
    ]
    problems.note([], later)
    assert all(one["isOver"] for one in problems.view(later))


def test_begin_of_a_replica_is_not_told_afterwards() -> None:
    """While it lasts it is: nothing is read."""
    problems = Problems()
    problems.note(find_problems(QUIET | {"ready": "stream_opening"}, fleet(), NOW), NOW)
    assert [one["subjects"] for one in problems.view(NOW)] == [("stream opening",)]
    problems.note([], NOW)
    assert problems.view(NOW) == []


def test_wrong_keys_of_long_ago_are_no_problem_of_now() -> None:
    """Their number is that of the replica's life."""
    problems = Problems()
    keys = FoundProblem(ProblemCause.WRONG_KEYS, ("stream shard s",), 3)
    problems.note([keys], NOW)
    seen = []
    for minutes in (10, 11, 60, 61):
        now = NOW + timedelta(minutes=minutes)
        problems.note([keys], now)
        seen.append([one["isOver"] for one in problems.view(now)])
    problems.note([keys._replace(number=4)], NOW + timedelta(minutes=70))
    assert (seen, [one["isOver"] for one in problems.view(NOW + timedelta(minutes=70))]) == (
        [[False], [True], [True], []],
        [False],
    )


def test_view_names_a_bounded_number_of_subjects_and_the_way_out() -> None:
    """A reason has its own advice, as held targets have."""
    problems = Problems()
    subjects = tuple(f"tenant t{number}" for number in range(500))
    problems.note([FoundProblem(ProblemCause.TARGET_HELD, subjects, reason="moving")], NOW)
    (one,) = problems.view(NOW, SITE)
    assert (one["count"], len(one["subjects"])) == (500, SUBJECTS_MAX)
    assert (one["advice"][:13], one["runbook"]) == ("Wait for the ", f"{SITE}/moving.html")


def test_view_has_all_members_of_a_problem() -> None:
    """It began before it was found first; the last time is that of the last look."""
    problems, later = Problems(), NOW + timedelta(minutes=1)
    for now, since in ((NOW, NOW - timedelta(hours=1)), (later, NOW), (later, None)):
        problems.note([FoundProblem(ProblemCause.SHARD_LOST, ("shard a",), since=since)], now)
    meaning = MEANINGS[ProblemCause.SHARD_LOST]
    assert problems.view(later, SITE) == [
        {
            "cause": "shard_lost",
            "reason": None,
            "severity": "critical",
            "problem": "Postgres shard lost",
            "count": 1,
            "subjects": ("shard a",),
            "since": "2026-11-27T11:00:00.000+00:00",
            "at": "2026-11-27T12:01:00.000+00:00",
            "isOver": False,
            **meaning.advice.members(SITE),
        }
    ]


def test_dead_letters_of_the_last_hour_are_shown_while_there_are_any() -> None:
    """However long ago their number has grown."""
    problems, later = Problems(), NOW + 2 * OVER_FOR
    for now in (NOW, later):
        problems.note([FoundProblem(ProblemCause.DEAD_LETTERS, number=7)], now)
    assert [(one["at"][11:16], one["isOver"]) for one in problems.view(later)] == [("12:00", False)]


def test_problems_of_one_cause_are_in_the_order_of_their_reasons() -> None:
    """Whichever was found first."""
    problems = Problems()
    reasons = ("moving", "gap")
    problems.note([FoundProblem(ProblemCause.TARGET_HELD, ("tenant t",), reason=one) for one in reasons], NOW)
    assert [one["reason"] for one in problems.view(NOW)] == ["gap", "moving"]


def test_every_cause_has_a_meaning_and_a_page_with_its_heading() -> None:
    """A link leads to the file, and to a heading in it."""
    assert MEANINGS.keys() == set(ProblemCause)
    for meaning in MEANINGS.values():
        path, _, anchor = meaning.advice.runbook.partition("#")
        text = (ROOT / path).read_text(encoding="utf-8").lower()
        headings = {
            line.lstrip("# ").replace(" ", "-").replace("`", "") for line in text.splitlines() if line[:1] == "#"
        }
        assert anchor in headings, meaning.advice.runbook
