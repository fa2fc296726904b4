"""The cases that the tests of both clients share, and scripts of the batcher in their form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from simplu_client.batcher import Answer, Batcher, Limits, Record
from support.requires import ROOT

CASES = ROOT / "clients" / "cases"
# Small ones, as in clients/typescript/test/cases.mjs. Times have no unit in the cases.
LIMITS = Limits(max_count=600, max_bytes=10_000_000, give_up_s=1000, base_s=100, max_s=500)
ANSWERS = {"refused": Answer(None), "unknown": Answer(None, is_unknown=True)}
SCRIPT_STEPS = 60

Step = dict[str, Any]


def read_cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    return cases


class Run:
    """A batcher that runs steps; operations are numbers, and a record is named by its first one."""

    def __init__(self) -> None:
        self.batcher: Batcher[int] = Batcher(LIMITS)
        self.added = 0
        self.in_requests: dict[int, Record[int]] = {}

    def do(self, step: Mapping[str, Any]) -> Step:
        """Do a step; return what it was answered, as members of the step."""
        match step["do"]:
            case "add":
                numbers, keys = range(step.get("count", 0)), range(step.get("keys", 0))
                others = [(step["key"], step["bytes"]) for _ in numbers] + [(f"k{key}", step["bytes"]) for key in keys]
                for key, size_bytes in step.get("operations") or others:
                    self.batcher.add(self.added, key, size_bytes)
                    self.added += 1
                return {}
            case "room":
                return {"expect": self.batcher.has_room(step["key"], step["bytes"])}
            case "batch":
                batch = self.batcher.next_batch(step["now"])
                self.in_requests |= {record[0].item: record for record in batch}
                if "expectCount" in step:
                    counts = {"expectCount": len(batch), "expectOperations": sum(map(len, batch))}
                    return {name: value for name, value in counts.items() if name in step}
                return {"expect": [[one.item for one in record] for record in batch]}
            case "settle":
                batch = [self.in_requests.pop(number) for number in step["batch"]]
                answers = [ANSWERS.get(answer, Answer(answer)) for answer in step["answers"]]
                settled = self.batcher.settle(batch, answers, now=step["now"], draw=step.get("draw", 0))
                found: Step = {"accepted": [one.item for one in settled.accepted]}
                found["givenUp"] = [[one.item, one.may_be_sent] for one in settled.given_up]
                return {name: value for name, value in found.items() if value or name in step}
            case "next":
                return {"expect": self.batcher.next_at()}
            case "drain":
                return {"expect": [[one.item, one.may_be_sent] for one in self.batcher.drain()]}
        raise ValueError(step)


def make_script(seed: int) -> list[Step]:
    random, run, now, steps = Random(seed), Run(), 0.0, list[Step]()
    requests: list[list[int]] = []
    for step in _random_steps(random, requests):
        now += random.choice((0, 1, 30, 400))
        timed = step | ({"now": now} if step["do"] in {"batch", "settle"} else {})
        found = run.do(timed)
        if step["do"] == "batch" and found["expect"]:
            requests.append([record[0] for record in found["expect"]])
        if step["do"] != "next" or found["expect"] != float("-inf"):
            steps.append(timed | found)
    return steps


def _random_steps(random: Random, requests: list[list[int]]) -> Iterator[Step]:
    shards = [f"s{number}" for number in range(3)]
    for _ in range(SCRIPT_STEPS):
        draw = random.random()
        if draw < 0.25:
            keys = random.choices("abcdef", k=random.randrange(1, 5))
            yield {"do": "add", "operations": [[key, random.choice((1, 100_000, 900_000))] for key in keys]}
        elif draw < 0.5 or not requests:
            yield {"do": "batch"}
        elif draw < 0.9:
            batch = requests.pop(random.randrange(len(requests)))
            answers = random.choices((*shards, "refused", "unknown"), k=len(batch))
            yield {"do": "settle", "batch": batch, "answers": answers, "draw": random.choice((0, 0.25, 0.5))}
        else:
            yield random.choice(({"do": "next"}, {"do": "room", "key": random.choice("abc"), "bytes": 900_000}))
    yield {"do": "drain"}
