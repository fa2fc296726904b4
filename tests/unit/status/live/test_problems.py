from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from simplu_worker.status.causes import CAUSES, HELD, advice_members, cause_of
from simplu_worker.status.problems import OPEN_MAX, OVER_FOR, OVER_MAX, FoundProblem, Problems, find_problems
from simplu_worker.status.words import ProblemCause
from simplu_worker.vocabulary import HoldReason

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
    "counts": {"tenantsSplit": 0, "recordsLost": 0, "controlBlocked": 0},
    "retentionSeconds": None,
    "certificateEnd": None,
}


def stream_shard(name: str = "s", **members: Any) -> dict[str, Any]:
    row = {"streamShard": name, "state": "reading", "owner": "me", "lagSeconds": 0.1, "isSilent": False}
    return row | members


def fleet(*stream_shards: dict[str, Any], **others: Any) -> dict[str, Any]:
    me = {"replica": "me", "isThis": True, "held": [], "deadLetters": 0, "unable": None}
    other = me | {"replica": "b", "isThis": False, "deadLetters": None} | others
    return {"streamShards": stream_shards or [stream_shard()], "replicas": [me, other]}


def view(problems: Problems, now: datetime, site: str | None = None) -> list[dict[str, Any]]:
    return [one.json() for one in problems.view(now, site)]


def shown(problems: Problems, now: datetime) -> list[tuple[str, str | None, str, str, bool]]:
    rows = view(problems, now)
    return [(one["cause"], one["subject"], one["since"][11:16], one["at"][11:16], one["isOver"]) for one in rows]


def test_replica_that_can_do_nothing_is_named_without_its_holds() -> None:
    unable = fleet(unable="citrus_refuses_key", held=[held("shard a", "shard_unavailable", 60.0)])
    assert dict(causes_of({}, unable)) == {ProblemCause.REPLICA_UNABLE: ("replica b: citrus refuses key",)}


def held(target: str, reason: str, age_s: float) -> dict[str, Any]:
    return {"target": target, "reason": reason, "ageSeconds": age_s}


def causes_of(state: dict[str, Any], report: dict[str, Any] | None = None) -> list[tuple[str, tuple[str, ...]]]:
    found = find_problems(QUIET | state, report or fleet(), NOW)
    kinds = [(kind, [one.subject for one in same]) for kind, same in groupby(found, key=lambda one: one.kind)]
    return [(cause, tuple(one for one in subjects if one is not None)) for (cause, _), subjects in kinds]


def test_nothing_is_wrong_in_a_quiet_fleet() -> None:
    assert causes_of({}) == []
    assert causes_of({"cache": None, "citrus": None, "queues": []}) == []


def test_lost_shard_is_one_problem_and_not_a_held_target_as_well() -> None:
    shards = [{"shardId": "a", "state": "lost", "lastAnswer": {"at": "2026-11-27T11:00:00+00:00"}}]
    holds = [held("shard a", "shard_unavailable", 5.0)] * 3 + [held("shard b", "shard_unavailable", 9.0)]
    found = find_problems(QUIET | {"shards": shards, "held": holds}, fleet(), NOW)
    assert found == [
        FoundProblem(ProblemCause.SHARD_LOST, "shard a", since=NOW - timedelta(hours=1)),
        FoundProblem(ProblemCause.TARGET_HELD, "shard b", reason="shard_unavailable", since=NOW - timedelta(seconds=9)),
    ]


def test_held_targets_are_those_of_all_replicas() -> None:
    report = fleet(held=[held("tenant t", "moving", 50.0), held("tenant z", "gap", 1.0)])
    found = find_problems(
        QUIET | {"held": [held("tenant t", "moving", 3.0), held("tenant u", "moving", 70.0)]}, report, NOW
    )
    assert [(one.reason, one.subject, (NOW - (one.since or NOW)).seconds) for one in found] == [
        ("gap", "tenant z", 1),
        ("moving", "tenant u", 70),
        ("moving", "tenant t", 50),
    ]


def test_numbers_are_sums() -> None:
    places = [("stream_shard", "s", "11:30"), ("stream_shard", "s", "11:00"), ("queue", "q", "11:45")]
    troubles = [
        {"target": target, "about": about, "count": 2, "since": f"2026-11-27T{since}:00+00:00"}
        for target, about, since in places
    ]
    report = fleet(deadLetters=5)
    report["replicas"][0]["deadLetters"] = 2
    assert find_problems(QUIET | {"troubles": troubles}, report, NOW) == [
        FoundProblem(ProblemCause.INTERNAL_ERROR, "stream shard s", 4, since=NOW - timedelta(hours=1)),
        FoundProblem(ProblemCause.INTERNAL_ERROR, "queue q", 2, since=NOW - timedelta(minutes=15)),
        FoundProblem(ProblemCause.DEAD_LETTERS, number=7),
    ]


def test_each_part_of_a_worker_has_its_cause() -> None:
    trouble = {"target": "stream_shard", "about": "s", "count": 4, "since": "2026-11-27T11:00:00+00:00"}
    state = {
        "ready": "stream_unavailable",
        "queues": [{"name": "q", "state": "no answer"}],
        "citrus": "TimeoutError",
        "cache": {"state": "unreachable"},
        "troubles": [trouble],
        "shards": [{"shardId": "a", "state": "degraded"}],
        "moves": [{"tenant": "t", "error": "no room", "notedAt": NOW}],
    }
    assert dict(causes_of(state, fleet(deadLetters=12))) == {
        ProblemCause.NOT_READY: ("stream unavailable",),
        ProblemCause.QUEUE_FAILING: ("queue q",),
        ProblemCause.CITRUS_FAILING: (),
        ProblemCause.CACHE_FAILING: (),
        ProblemCause.INTERNAL_ERROR: ("stream shard s",),
        ProblemCause.SHARD_DEGRADED: ("shard a",),
        ProblemCause.MOVE_FAILED: ("tenant t",),
        ProblemCause.DEAD_LETTERS: (),
    }


def test_move_has_stopped_with_its_command_or_without_progress() -> None:
    moves = [{"tenant": str(minutes), "notedAt": NOW - timedelta(minutes=minutes)} for minutes in (1, 15, 16)]
    moves += [{"tenant": str(runs), "isRunning": runs, "notedAt": NOW} for runs in (True, False)]
    assert find_problems(QUIET | {"moves": moves}, fleet(), NOW) == [
        FoundProblem(ProblemCause.MOVE_FAILED, "tenant 16", since=NOW - timedelta(minutes=16)),
        FoundProblem(ProblemCause.MOVE_FAILED, "tenant False", since=NOW),
    ]


def test_stream_that_is_not_answered_is_not_read_late() -> None:
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
    report = fleet(
        stream_shard("a", owner=None, state="unowned"),
        stream_shard("b", owner="gone", lagSeconds=None, isSilent=True),
        stream_shard("c", lagSeconds=75.0),
        stream_shard("d", owner=None, state="ended"),
        stream_shard("e", lagSeconds=60.0),
        stream_shard("f", lagSeconds=None),
        stream_shard("g", owner=None),
        stream_shard("h", owner="gone", isSilent=True),
        stream_shard("i", lagSeconds=59.9),
    )
    assert causes_of({}, report) == [
        (ProblemCause.STREAM_SHARD_UNREAD, ("stream shard a", "stream shard g")),
        (ProblemCause.REPLICA_SILENT, ("replica gone",)),
        (ProblemCause.STREAM_LAG, ("stream shard c", "stream shard e")),
    ]


def test_feed_that_has_stopped_is_not_behind_as_well() -> None:
    def destination(name: str, lag_s: float, *stopped: str) -> dict[str, Any]:
        return {"name": name, "lagSeconds": lag_s, "stoppedShards": stopped}

    feed = [
        destination("a", 900.0, "shard-1"),
        destination("b", 301.0),
        destination("c", 299.0),
        destination("d", 0.0, "s"),
    ]
    assert causes_of({"feed": {"destinations": feed}}) == [
        (ProblemCause.FEED_STOPPED, ("destination a",)),
        (ProblemCause.FEED_BEHIND, ("destination b",)),
        (ProblemCause.FEED_STOPPED, ("destination d",)),
    ]
    assert causes_of({"feed": {"destinations": feed[2:3]}}) == []
    (problem,) = find_problems(QUIET | {"feed": {"destinations": [destination("e", 400.0)]}}, fleet(), NOW)
    assert problem.since == NOW - timedelta(seconds=400)


def test_incident_is_one_target_s_with_its_own_begin_and_end() -> None:
    problems = Problems()
    one, other = (FoundProblem(ProblemCause.SHARD_LOST, f"shard {name}") for name in "ab")
    letters = FoundProblem(ProblemCause.DEAD_LETTERS, number=7)
    minutes = [NOW + timedelta(minutes=number) for number in range(8)]
    problems.note([one], minutes[0])
    problems.note([one, letters], minutes[1])
    problems.note([letters], minutes[2])
    problems.note([letters, other], minutes[5])
    assert shown(problems, minutes[5]) == [
        ("shard_lost", "shard b", "12:05", "12:05", False),
        ("dead_letters", None, "12:01", "12:01", False),  # no further one has come
        ("shard_lost", "shard a", "12:00", "12:01", True),
    ]
    problems.note([one], minutes[7])
    assert shown(problems, minutes[7])[:3] == [
        ("shard_lost", "shard a", "12:07", "12:07", False),
        ("shard_lost", "shard b", "12:05", "12:05", True),
        ("shard_lost", "shard a", "12:00", "12:01", True),
    ]
    assert [one[4] for one in shown(problems, minutes[7] + OVER_FOR)] == [False]  # only what is not over


def test_incidents_that_are_over_are_bounded_by_cause() -> None:
    problems = Problems()
    problems.note([FoundProblem(ProblemCause.SHARD_LOST, "shard a")], NOW)
    problems.note(
        [FoundProblem(ProblemCause.TARGET_HELD, f"tenant {number}", reason="moving") for number in range(500)], NOW
    )
    problems.note([], NOW)
    assert [one[0] for one in shown(problems, NOW)].count("target_held") == OVER_MAX
    assert "shard_lost" in [one[0] for one in shown(problems, NOW)]


def test_begin_of_a_replica_is_not_told_afterwards() -> None:
    problems = Problems()
    problems.note(find_problems(QUIET | {"ready": "stream_opening"}, fleet(), NOW), NOW)
    assert [one["subject"] for one in view(problems, NOW)] == ["stream opening"]
    problems.note([], NOW)
    assert view(problems, NOW) == []


def test_counted_problem_of_long_ago_is_over() -> None:
    problems = Problems()
    lost = FoundProblem(ProblemCause.RECORDS_LOST, number=3)
    problems.note([lost], NOW)
    seen = []
    for minutes in (10, 11, 1440, 1441):
        now = NOW + timedelta(minutes=minutes)
        problems.note([lost], now)
        seen.append([one["isOver"] for one in view(problems, now)])
    problems.note([lost._replace(number=4)], NOW + timedelta(minutes=1442))
    assert (seen, [one["isOver"] for one in view(problems, NOW + timedelta(minutes=1442))]) == (
        [[False], [True], [True], []],
        [False],
    )


def test_view_names_a_bounded_number_of_targets_and_the_way_out() -> None:
    problems = Problems()
    since = [NOW - timedelta(seconds=number) for number in range(500)]
    problems.note(
        [FoundProblem(ProblemCause.TARGET_HELD, f"tenant {at}", reason="moving", since=at) for at in since], NOW
    )
    one, *_, last = rows = view(problems, NOW, SITE)
    assert (one["count"], len(rows), last["subject"]) == (500, OPEN_MAX, f"tenant {since[-OPEN_MAX]}")
    assert (one["advice"][:13], one["runbook"]) == ("Wait for the ", f"{SITE}/moving.html")


def test_operations_near_the_retention_are_told_first() -> None:
    hours = 3600.0
    shards = [{"shardId": "a", "state": "lost"}]
    own = {"streamShard": "s", **held("shard a", "shard_unavailable", 20 * hours)}
    others = {"streamShard": "t", **held("tenant x", "gap", 12.1 * hours)}
    report = fleet(stream_shard("s"), stream_shard("t"), stream_shard("u", lagSeconds=13 * hours), held=[others])
    state = QUIET | {"shards": shards, "held": [own], "retentionSeconds": 24 * hours}
    problems = Problems()
    problems.note(find_problems(state, report, NOW), NOW)
    first, *rest = view(problems, NOW)
    assert (first["cause"], first["severity"], first["advice"][:33]) == (
        "near_retention",
        "critical",
        "Raise the stream's retention firs",
    )
    assert [(one["cause"], one["subject"]) for one in (first, *rest)] == [
        ("near_retention", "stream shard u"),
        ("near_retention", "stream shard s"),
        ("near_retention", "stream shard t"),
        ("shard_lost", "shard a"),
        ("target_held", "tenant x"),
        ("stream_lag", "stream shard u"),
    ]
    fresh = [{**own, "ageSeconds": 12 * hours}]
    assert causes_of({"held": fresh, "retentionSeconds": 24 * hours}) == [("target_held", ("shard a",))]


def test_what_people_have_to_act_on_is_told() -> None:
    counts = {"tenantsSplit": 2, "recordsLost": 1, "controlBlocked": 5}
    state = {"ready": "credentials_expired", "counts": counts, "certificateEnd": NOW + timedelta(days=2)}
    assert {one.cause: one.subject or one.number for one in find_problems(QUIET | state, fleet(), NOW)} == {
        ProblemCause.CREDENTIALS_FAILING: "credentials expired",
        ProblemCause.TENANT_SPLIT: 2,
        ProblemCause.RECORDS_LOST: 1,
        ProblemCause.CONTROL_BLOCKED: 5,
        ProblemCause.CERTIFICATE_EXPIRES: None,
    }
    assert causes_of({"certificateEnd": NOW + timedelta(days=4)}) == []


def test_shard_that_takes_nothing_is_lost_whatever_its_state() -> None:
    shards = [
        {"shardId": name, "state": "healthy", "takesOperations": takes} for name, takes in (("a", False), ("b", True))
    ]
    holds = [held("tenant a", "moving", 5.0)]
    assert causes_of({"shards": shards, "held": holds}) == [
        (ProblemCause.SHARD_LOST, ("shard a",)),
        (ProblemCause.TARGET_HELD, ("tenant a",)),
    ]
    assert causes_of({"shards": shards[:1], "held": [held("a", "moving", 5.0)]})[1] == (
        ProblemCause.TARGET_HELD,
        ("a",),
    )


def test_own_holds_are_told_once_and_by_their_oldest() -> None:
    report = fleet(held=[held("tenant t", "moving", 0.5), held("tenant t", "moving", 0.25)])
    report["replicas"][0]["held"] = [
        held("tenant t", "moving", 99.0)
    ]  # of its lease's row: those of now are in the state
    (found,) = find_problems(QUIET | {"held": [held("tenant t", "moving", 0.125)]}, report, NOW)
    assert found.since == NOW - timedelta(seconds=0.5)


def test_stream_shard_that_nobody_reads_is_not_near_the_retention() -> None:
    state = {"retentionSeconds": 1.0}
    unread = fleet(stream_shard("a", owner=None, lagSeconds=9.0), stream_shard("b", lagSeconds=None))
    assert causes_of(state, unread) == [(ProblemCause.STREAM_SHARD_UNREAD, ("stream shard a",))]


def test_bounds_themselves_are_no_problem() -> None:
    end = {"certificateEnd": NOW + timedelta(days=3)}
    feed = {"feed": {"destinations": [{"name": "a", "lagSeconds": 300.0, "stoppedShards": ()}]}}
    assert causes_of(end | feed) == []


def test_incident_that_comes_back_at_once_has_not_been_over() -> None:
    problems = Problems()
    one, other = (FoundProblem(ProblemCause.SHARD_LOST, f"shard {name}") for name in "ab")
    problems.note([one, other], NOW)
    for seconds, present in ((10, [one]), (20, []), (25, [one]), (45, [one]), (50, []), (61, [other, one])):
        problems.note(present, NOW + timedelta(seconds=seconds))
    rows = view(problems, NOW + timedelta(seconds=61))
    assert [(one["subject"], one["since"][14:19], one["at"][14:19], one["isOver"]) for one in rows] == [
        ("shard b", "01:01", "01:01", False),
        ("shard a", "01:01", "01:01", False),
        ("shard a", "00:00", "00:45", True),
        ("shard b", "00:00", "00:00", True),
    ]


def test_number_that_grows_is_seen_again_and_begins_anew_once_over() -> None:
    problems = Problems()
    letters, lost = FoundProblem(ProblemCause.DEAD_LETTERS, number=7), FoundProblem(ProblemCause.RECORDS_LOST, number=3)
    for minutes, number in ((0, 7), (1, 7), (2, 8), (3, 8), (30, 6)):
        problems.note([letters._replace(number=number), lost], NOW + timedelta(minutes=minutes))
    later = NOW + timedelta(minutes=31)
    problems.note([letters, lost._replace(number=4)], later)
    rows = view(problems, later, SITE)
    assert [(one["cause"], one["since"][11:16], one["at"][11:16], one["count"], one["isOver"]) for one in rows] == [
        ("records_lost", "12:31", "12:31", 4, False),
        ("dead_letters", "12:00", "12:31", 7, False),
        ("records_lost", "12:00", "12:00", 3, True),
    ]
    assert rows[0]["runbook"] == rows[2]["runbook"] == f"{SITE}/monitoring.html#streamrecordslost"


def test_begin_that_becomes_known_later_counts() -> None:
    problems = Problems()
    problems.note([FoundProblem(ProblemCause.FEED_BEHIND, "a")], NOW)
    problems.note([FoundProblem(ProblemCause.FEED_BEHIND, "a", since=NOW - timedelta(hours=1))], NOW)
    assert [one["since"][11:16] for one in view(problems, NOW)] == ["11:00"]


def test_what_nobody_sees_is_kept_for_a_day_and_the_rest_is_over() -> None:
    problems = Problems()
    holding = FoundProblem(ProblemCause.TARGET_HELD, "tenant t", reason="moving")
    lost = FoundProblem(ProblemCause.SHARD_LOST, "shard a")
    late = FoundProblem(ProblemCause.STREAM_LAG, "stream shard s")
    blind = FoundProblem(ProblemCause.NOT_READY, "stream unavailable")
    problems.note([holding, lost, late], NOW)
    problems.note([blind], NOW + OVER_FOR)
    rows = view(problems, NOW + OVER_FOR)
    assert [(one["cause"], one["isOver"]) for one in rows] == [
        ("not_ready", False),
        ("stream_lag", False),
        ("target_held", False),
        ("shard_lost", True),
    ]
    problems.note([blind], NOW + OVER_FOR + timedelta(seconds=1))
    assert {one["cause"]: one["isOver"] for one in view(problems, NOW + OVER_FOR)} == {
        "not_ready": False,
        "stream_lag": True,
        "target_held": True,
        "shard_lost": True,
    }


def test_holds_are_told_by_reason_with_what_to_do() -> None:
    problems = Problems()
    reasons = ("unregistered", "moving", "gap")
    problems.note([FoundProblem(ProblemCause.TARGET_HELD, f"tenant {one}", reason=one) for one in reasons], NOW)
    problems.note([FoundProblem(ProblemCause.TARGET_HELD, f"tenant {one}", reason=one) for one in reasons], NOW)
    rows = view(problems, NOW)
    assert [(one["reason"], one["severity"], one["problem"], one["count"]) for one in rows] == [
        ("gap", "critical", "Held", 1),
        ("moving", "warning", "Held", 1),
        ("unregistered", "warning", "Held", 1),
    ]
    assert rows[2]["runbook"] == "docs/holding.md#holding"


def test_unknown_reason_has_the_words_of_any_hold() -> None:
    assert advice_members("other") == {}
    assert cause_of(ProblemCause.TARGET_HELD, "other") is CAUSES[ProblemCause.TARGET_HELD]
    assert cause_of(ProblemCause.TARGET_HELD, "gap") is HELD[HoldReason.GAP]


def test_page_is_a_link_where_the_site_is_known() -> None:
    assert advice_members("moving", SITE)["runbook"] == f"{SITE}/moving.html"
    assert advice_members("gap", SITE)["runbook"] == f"{SITE}/runbook/shard-held-for-gap.html"
