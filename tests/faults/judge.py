"""Judge a history of real processes by what the worker promises. Pure: it imports nothing of the product.

A history is a sequence of JSON objects. `what` tells what each is about, `at` when it was, in seconds:

| what | members |
|---|---|
| `placed`, `moved` | `tenant`, `shard`: the tenant's home from now on |
| `put` | an accepted operation: `key`, `tenant`, `request`, `operation`, `type`, `id`, `data` |
| `answer` | of the HTTP API: `tenant`, `request`, `status`, `error`, `until` (when it came) |
| `promoted` | a standby that nothing had waited for: `shard`, `until`, and the requests that it has `lost` |
| `event` | what a receiver of the feed accepted: `event` |
| `tenant`, `operation`, `resource` | a row in the end: `shard`, `tenant`, and its columns |
| `usage` | how many operations the `shard` has counted of the `tenant` |
| `dead letter` | `text` |
| `logged` | warnings and errors of a worker: `log`, `level`, `event`, `count`, and the `first` one with its members |
| `mover` | one has ended: `tenant`, `shard`, `status`, and what it wrote: `said`, `errors` |

The order of the lines is that of `put` and `event`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from support.feed.follower import Event, Follower

Line = Mapping[str, Any]
Request = tuple[str, str]  # tenant and request
Resource = tuple[str, str, str]  # tenant, type, id

SHOWN: Final = 3
DECIDED: Final = frozenset({"succeeded", "failed"})
LIVE: Final = frozenset({"active", "fenced"})
GONE_BACK: Final = frozenset({"pending", "unknown", "rejected"})  # not `held`, which tells nothing of the operation
CHANGES: Final = {"create": "created", "update": "updated", "patch": "patched", "delete": "deleted"}
REPLACED: Final = "simplu.tenant.replaced"
UNFINISHED: Final = (
    "operations lost",
    "resources lost",
    "resources with other content",
    "resources that should not be there",
    "events missing",
    "tenants with other usage",
)
# Events with which programs log their own defects, by docs/events.md; others tell of the faults.
DEFECTS: Final = frozenset(
    {"command.crashed", "control.failed", "http.failed", "loop.failed", "move.crashed", "worker.crashed"}
)
CRASHES: Final = ("Traceback (most recent call last)", "command.crashed", "move.crashed")


class Promise(StrEnum):
    """What the worker promises."""

    ONCE = "exactly once"
    ORDER = "order by key"
    SHARD = "right shard"
    ANSWERS = "answers never go back"
    FEED = "feed complete and in order"
    FORESEEN = "no error that nobody foresaw"
    END = "comes to its end"  # not judged here: workers stop and start, movers finish


class Violation(NamedTuple):
    """A promise that a history breaks."""

    promise: Promise
    text: str


@dataclass(frozen=True)
class Expected:
    """What an operation has to come to, by its place in the order of all puts."""

    number: int
    put: Line
    error: str | None
    data: Any  # of the result of a `read`


@dataclass
class _Plan:
    """What has to be there in the end, by the puts alone."""

    operations: dict[Request, Expected] = field(default_factory=dict)
    resources: dict[Resource, Any] = field(default_factory=dict)


def judge(history: Iterable[Line]) -> list[Violation]:
    lines: defaultdict[str, list[Line]] = defaultdict(list)
    for line in history:
        lines[line["what"]].append(line)
    plan = _plan_of(lines["put"])
    homes = {line["tenant"]: line["shard"] for line in (*lines["placed"], *lines["moved"])}
    found: defaultdict[tuple[Promise, str], list[Any]] = defaultdict(list)
    parts = (
        _judge_operations(plan, lines["operation"], homes),
        _judge_resources(plan, lines["resource"], homes),
        _judge_usage(plan, lines["usage"], lines["promoted"]),
        _judge_shards(lines, homes),
        _judge_answers(plan, lines["answer"], lines["promoted"]),
        _judge_feed(plan, lines),
        ((Promise.ONCE, "dead letters", line["text"]) for line in lines["dead letter"]),
        _judge_logs(lines["logged"], lines["mover"]),
    )
    for part in parts:
        for promise, kind, example in part:
            found[promise, kind].append(example)
    return [
        Violation(promise, f"{len(examples)} {kind}, such as {examples[:SHOWN]}")
        for (promise, kind), examples in found.items()
    ]


_Finding = tuple[Promise, str, Any]


def _plan_of(puts: Iterable[Line]) -> _Plan:
    plan = _Plan()
    for number, put in enumerate(puts):
        request = put["tenant"], put["request"]
        if request in plan.operations:
            continue
        key = put["tenant"], put["type"], put["id"]
        error = None
        if (put["operation"] == "create") == (key in plan.resources):
            error = "already_exists" if put["operation"] == "create" else "not_found"
        data = plan.resources.get(key) if put["operation"] == "read" else None
        plan.operations[request] = Expected(number, put, error, data)
        if error is not None:
            continue
        match put["operation"]:
            case "create" | "update":
                plan.resources[key] = put["data"]
            case "patch":
                plan.resources[key] = _merged(plan.resources[key], put["data"])
            case "delete":
                del plan.resources[key]
    return plan


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


def _judge_operations(plan: _Plan, rows: Iterable[Line], homes: Mapping[str, str]) -> Iterator[_Finding]:
    at_home: defaultdict[Request, list[Line]] = defaultdict(list)
    for row in rows:
        request = row["tenant"], row["request"]
        if request not in plan.operations:
            yield Promise.ONCE, "operations that were never put", row
        elif row["shard"] == homes[row["tenant"]]:
            at_home[request].append(row)
    order: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for request, expected in plan.operations.items():
        several = at_home[request]
        if not several:
            yield Promise.ONCE, "operations lost", expected.put
            continue
        if len(several) > 1:
            yield Promise.ONCE, "operations applied twice", several
        row, put = several[0], expected.put
        got = row["operation"], row["type"], row["id"], row["status"], row["error"], _result_data(row)
        status = "failed" if expected.error else "succeeded"
        wanted = put["operation"], put["type"], put["id"], status, expected.error, expected.data
        if got != wanted:
            yield Promise.ORDER, "operations with another outcome than in the order put", (row, wanted)
        place = row["completed_at"], row["position"]
        if place <= order[put["key"]]:
            yield Promise.ORDER, "operations completed before one that was put earlier under their key", row
        order[put["key"]] = place


def _result_data(row: Line) -> Any:
    return row["result"]["data"] if row["operation"] == "read" and row["result"] is not None else None


def _judge_resources(plan: _Plan, rows: Iterable[Line], homes: Mapping[str, str]) -> Iterator[_Finding]:
    missing = dict(plan.resources)
    for row in rows:
        if homes.get(row["tenant"]) != row["shard"]:
            continue
        key = row["tenant"], row["type"], row["id"]
        if key not in missing:
            yield Promise.ONCE, "resources that should not be there", row
        elif (wanted := missing.pop(key)) != row["data"]:
            yield Promise.ORDER, "resources with other content", (row, wanted)
    for key, wanted in missing.items():
        yield Promise.ONCE, "resources lost", (key, wanted)


def _judge_usage(plan: _Plan, rows: Iterable[Line], promotions: Iterable[Line]) -> Iterator[_Finding]:
    """Judge what is counted for bills. A promotion that lost operations has lost their usage, too."""
    wanted, found = Counter(tenant for tenant, _ in plan.operations), Counter[str]()
    for row in rows:
        found[row["tenant"]] += row["count"]
    if found != wanted and not any(one["lost"] for one in promotions):
        yield Promise.ONCE, "tenants with other usage", (found, wanted)


def _judge_shards(lines: Mapping[str, list[Line]], homes: Mapping[str, str]) -> Iterator[_Finding]:
    states = {(row["tenant"], row["shard"]): row["state"] for row in lines["tenant"]}
    for tenant, home in homes.items():
        live = [shard for (one, shard), state in states.items() if one == tenant and state in LIVE]
        if live != [home]:
            yield Promise.SHARD, "tenants with other homes", (tenant, live, home)
    for kind in ("operation", "resource"):
        for row in lines[kind]:
            if (row["tenant"], row["shard"]) not in states:
                yield Promise.SHARD, f"{kind}s on a shard where their tenant never was", row


def _judge_answers(plan: _Plan, answers: Iterable[Line], promotions: Iterable[Line]) -> Iterator[_Finding]:
    """Judge what the HTTP API answered. An answer may go back once a promotion has lost the operation."""
    lost: defaultdict[str, list[Line]] = defaultdict(list)
    for promotion in promotions:
        for request in promotion["lost"]:
            lost[request].append(promotion)
    decided: dict[Request, Line] = {}
    for answer in sorted(answers, key=lambda one: float(one["at"])):
        request = answer["tenant"], answer["request"]
        earlier = decided.get(request)
        if earlier is not None and earlier["until"] <= answer["at"] and answer["status"] in GONE_BACK:
            excuses = lost[answer["request"]]
            if not any(one["at"] <= answer["until"] and earlier["at"] <= one["until"] for one in excuses):
                yield Promise.ANSWERS, "answers that went back", (earlier, answer)
        if answer["status"] not in DECIDED:
            continue
        decided[request] = answer
        error = plan.operations[request].error
        if (answer["status"], answer.get("error")) != ("failed" if error else "succeeded", error):
            yield Promise.ANSWERS, "answers with another outcome than in the order put", answer


def _judge_logs(logged: Iterable[Line], movers: Iterable[Line]) -> Iterator[_Finding]:
    for line in logged:
        is_crash = line["level"] == "critical" or "exception" in line["first"] or "traceback" in line["first"]
        if is_crash or line["event"] in DEFECTS:
            yield Promise.FORESEEN, "kinds of crashes in the workers' logs", line
    for line in movers:
        if any(one in line["said"] + line.get("errors", "") for one in CRASHES):
            yield Promise.FORESEEN, "movers that crashed", line


def _judge_feed(plan: _Plan, lines: Mapping[str, list[Line]]) -> Iterator[_Finding]:
    follower = Follower()
    replaced: dict[str, float] = {}  # the last time by tenant
    for line in lines["event"]:
        follower.take(Event.of(line["event"]))
        if line["event"]["type"] == REPLACED:
            replaced[line["event"]["simplutenant"]] = line["at"]
    wanted = {
        request: one
        for request, one in plan.operations.items()
        if one.error is None and one.put["operation"] in CHANGES
    }
    yield from _judge_held(follower, wanted, {one["shard"] for one in lines["promoted"] if one["lost"]})
    held = {(_tenant_of(event), event.request) for event in follower.holding.values()}
    completed = {(row["tenant"], row["request"]): row["completed_at"] / 1e6 for row in lines["operation"]}
    for (tenant, request), expected in wanted.items():
        # What was replaced before it was read has no event of its own.
        is_replaced = completed.get((tenant, request), 0.0) <= replaced.get(tenant, -1.0)
        if (tenant, request) not in held and not is_replaced:
            yield Promise.FEED, "events missing", expected.put
    for gap in follower.gaps:
        yield Promise.FEED, "gaps", gap


def _judge_held(
    follower: Follower, wanted: Mapping[Request, Expected], gone_back: AbstractSet[str]
) -> Iterator[_Finding]:
    held: set[Request] = set()
    order: defaultdict[tuple[str, str], int] = defaultdict(lambda: -1)
    for event in follower.holding.values():
        if event.request is None:
            continue
        request = _tenant_of(event), event.request
        if request in held:
            yield Promise.FEED, "events under two ids", event
        held.add(request)
        if (expected := wanted.get(request)) is None:
            yield Promise.FEED, "events of no change", event
            continue
        if event.type != f"simplu.resource.{CHANGES[expected.put['operation']]}":
            yield Promise.FEED, "events of another type", event
        # Events that a promotion took back may come again behind those of the shard to which the tenant has moved.
        comes_again = event.shard in gone_back and event.id in follower.taken_back
        line = event.key, event.shard if comes_again else ""
        if expected.number <= order[line]:
            yield Promise.FEED, "events in another order than put", event
        order[line] = expected.number


def _tenant_of(event: Event) -> str:
    return event.key.split("/")[0]


def is_of_an_end_before_its_time(violation: Violation) -> bool:
    """Return whether a history breaks the promise while sources still have what was put, and no more later."""
    return any(f" {kind}, such as " in violation.text for kind in UNFINISHED)


def read_history(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines()]
