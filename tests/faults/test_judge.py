"""The judge of histories: what it needs, and for each promise histories that break it."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from faults.judge import Promise, is_of_an_end_before_its_time, judge

TENANT, HOME, OTHER = "smile-berlin", "shard-1", "shard-2"
Lines = list[dict[str, Any]]


def put(number: int, operation: str, data: Any = None) -> dict[str, Any]:
    return {
        "what": "put",
        "at": float(number),
        "key": f"{TENANT}-note",
        "tenant": TENANT,
        "request": f"r-{number}",
        "operation": operation,
        "type": "note",
        "id": "n",
        "data": data,
    }


def row(number: int, operation: str, *, error: str | None = None, data: Any = None) -> dict[str, Any]:
    return {
        "what": "operation",
        "shard": HOME,
        "tenant": TENANT,
        "request": f"r-{number}",
        "operation": operation,
        "type": "note",
        "id": "n",
        "status": "failed" if error else "succeeded",
        "error": error,
        "result": {"data": data} if operation == "read" else None,
        "completed_at": 1_000_000 * (number + 1),
        "position": 0,
    }


def answer(number: int, at: float, status: str, **members: Any) -> dict[str, Any]:
    line = {"what": "answer", "at": at, "until": at + 0.1, "tenant": TENANT, "request": f"r-{number}"}
    return line | {"status": status} | members


def event(number: int, kind: str, **members: Any) -> dict[str, Any]:
    usual = {
        "id": f"e-{number}",
        "type": f"simplu.resource.{kind}",
        "partitionkey": f"{TENANT}/note/n",
        "simplushard": HOME,
        "simplutenant": TENANT,
        "simpluincarnation": "a",
        "simpluposition": f"{number + 1}-0",
        "simplurequest": f"r-{number}",
    }
    return {"what": "event", "at": number + 2.0, "event": usual | members}


RIGHT: Lines = [
    {"what": "placed", "at": 0.0, "tenant": TENANT, "shard": OTHER},
    put(0, "create", {"a": 1, "b": {"c": 1, "d": 1}}),
    put(1, "patch", {"a": None, "b": {"c": 2}}),
    put(2, "read"),
    put(1, "patch", {"a": None, "b": {"c": 2}}),  # sent again
    put(3, "create", {}),
    answer(1, 1.5, "pending"),
    {"what": "moved", "at": 1.6, "tenant": TENANT, "shard": HOME},
    answer(1, 2.5, "succeeded"),
    answer(1, 2.7, "held", reason="moving"),
    answer(3, 4.5, "failed", error="already_exists"),
    {"what": "mover", "at": 1.6, "tenant": TENANT, "shard": HOME, "status": 1, "said": "", "errors": "a fault"},
    {"what": "logged", "log": "worker-0.log", "level": "error", "event": "stream.unavailable", "count": 2, "first": {}},
    {"what": "tenant", "shard": HOME, "tenant": TENANT, "state": "active"},
    {"what": "tenant", "shard": OTHER, "tenant": TENANT, "state": "moved"},
    row(0, "create"),
    row(0, "create") | {"shard": OTHER},  # left behind by the move
    row(1, "patch"),
    row(2, "read", data={"b": {"c": 2, "d": 1}}),
    row(3, "create", error="already_exists"),
    {"what": "resource", "shard": HOME, "tenant": TENANT, "type": "note", "id": "n", "data": {"b": {"c": 2, "d": 1}}},
    {"what": "usage", "shard": HOME, "tenant": TENANT, "count": 3},
    {"what": "usage", "shard": OTHER, "tenant": TENANT, "count": 1},
    event(0, "created", simplushard=OTHER),
    event(1, "patched"),
    event(1, "patched"),  # sent again
]
PROMOTION = {"what": "promoted", "at": 2.8, "until": 2.9, "shard": HOME, "lost": ["r-1"]}


def of(what: str, number: int = 0) -> Callable[[Lines], dict[str, Any]]:
    return lambda lines: [one for one in lines if one["what"] == what][number]


def without(what: str, number: int) -> Callable[[Lines], None]:
    return lambda lines: lines.remove(of(what, number)(lines))


def changed(what: str, number: int, **members: Any) -> Callable[[Lines], None]:
    return lambda lines: of(what, number)(lines).update(members)


def added(*more: dict[str, Any]) -> Callable[[Lines], None]:
    return lambda lines: lines.extend(more)


BROKEN: dict[str, tuple[Promise, Callable[[Lines], None]]] = {
    "operations lost": (Promise.ONCE, without("operation", 2)),
    "operations applied twice": (Promise.ONCE, added(row(3, "create", error="already_exists"))),
    "operations that were never put": (Promise.ONCE, added(row(9, "create"))),
    "tenants with other usage": (Promise.ONCE, changed("usage", 0, count=4)),
    "resources lost": (Promise.ONCE, without("resource", 0)),
    "resources that should not be there": (Promise.ONCE, added(dict(of("resource")(RIGHT), id="another"))),
    "dead letters": (Promise.ONCE, added({"what": "dead letter", "text": "letter"})),
    "operations with another outcome": (Promise.ORDER, changed("operation", 4, status="succeeded", error=None)),
    "operations with another outcome than in the order put": (
        Promise.ORDER,
        changed("operation", 3, result={"data": {"a": 1, "b": {"c": 1, "d": 1}}}),
    ),
    "operations completed before one": (Promise.ORDER, changed("operation", 3, completed_at=500_000)),
    "resources with other content": (Promise.ORDER, changed("resource", 0, data={"a": 1})),
    "tenants with other homes": (Promise.SHARD, changed("tenant", 1, state="active")),
    "resources on a shard": (Promise.SHARD, added(dict(of("resource")(RIGHT), shard="shard-3"))),
    "operations on a shard": (Promise.SHARD, added(row(0, "create") | {"shard": "shard-3"})),
    "answers that went back": (Promise.ANSWERS, added(answer(1, 3.0, "unknown"))),
    "answers that went back to pending": (Promise.ANSWERS, added(answer(1, 3.0, "pending"))),
    "answers with another outcome": (Promise.ANSWERS, added(answer(1, 3.0, "failed", error="not_found"))),
    "events missing": (Promise.FEED, without("event", 0)),
    "events under two ids": (Promise.FEED, added(event(1, "patched", id="another"))),
    "events of no change": (Promise.FEED, added(event(3, "created"))),
    "events of another type": (Promise.FEED, changed("event", 0, event=event(0, "deleted")["event"])),
    "events in another order": (
        Promise.FEED,
        lambda lines: lines.append(lines.pop(lines.index(event(0, "created", simplushard=OTHER)))),
    ),
    "gaps": (Promise.FEED, added(event(5, "created", type="simplu.gap"))),
    "kinds of crashes in the workers' logs": (Promise.FORESEEN, changed("logged", 0, event="loop.failed")),
    "kinds of crashes": (Promise.FORESEEN, changed("logged", 0, level="warning", first={"exception": {}})),
    "movers that crashed": (Promise.FORESEEN, changed("mover", 0, errors="Traceback (most recent call last):\n")),
}


def test_history_in_which_each_promise_is_kept_has_no_violation() -> None:
    assert judge(RIGHT) == []


@pytest.mark.parametrize("kind", BROKEN)
def test_history_that_breaks_a_promise_is_found(kind: str) -> None:
    promise, damage = BROKEN[kind]
    lines = copy.deepcopy(RIGHT)
    damage(lines)
    found = judge(lines)
    assert {one.promise for one in found} == {promise}, found
    assert any(kind.removesuffix(" to pending") in one.text for one in found), found


def test_answer_may_go_back_after_a_promotion_that_lost_the_operation() -> None:
    assert judge([*RIGHT, PROMOTION, answer(1, 3.0, "unknown"), answer(1, 3.5, "succeeded")]) == []
    for wrong in (
        [PROMOTION, answer(3, 4.7, "unknown")],
        [PROMOTION | {"at": 3.8, "until": 3.9}, answer(1, 3.0, "unknown")],
    ):
        assert [one.promise for one in judge([*RIGHT, *wrong])] == [Promise.ANSWERS]


def test_events_that_a_promotion_took_back_are_not_held() -> None:
    reset = event(0, "patched", id="reset", type="simplu.reset", simpluincarnation="b")
    again = event(6, "patched", id="e-6", simpluincarnation="b", simplurequest="r-1")
    follow = [*RIGHT, PROMOTION, reset, again]
    assert judge(follow) == []
    again["event"]["simplurequest"] = "r-9"
    assert {one.promise for one in judge(follow)} == {Promise.FEED}


def test_what_is_late_is_told_from_what_is_wrong() -> None:
    late = [line for line in RIGHT if line not in (row(1, "patch"), event(1, "patched"))]
    assert judge(late)
    assert all(map(is_of_an_end_before_its_time, judge(late)))
    assert not any(map(is_of_an_end_before_its_time, judge([*RIGHT, row(1, "patch")])))


def test_judge_shares_no_code_with_the_product() -> None:
    program = "import faults.judge, sys; print([one for one in sys.modules if one.startswith('simplu_')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
