from __future__ import annotations

import json

import msgspec
import pytest

from simplu_worker.aws.sqs_queue import QueueAttributes
from simplu_worker.consumers.sqs.receive.redrive_rules import RedriveRules, parse_redrive_policy, redrive_problems

RULES = RedriveRules(retry_delays_s=(1, 5, 15), grace_s=25.0)
QUEUE = QueueAttributes(
    visibility_timeout_s=30,
    max_message_bytes=None,
    retention_s=345_600,
    visible_count=0,
    in_flight_count=0,
    delayed_count=0,
    redrive_policy=None,
)


def policy(receives: object, target: str = "letters") -> str:
    return json.dumps({"deadLetterTargetArn": f"arn:aws:sqs:r:1:{target}", "maxReceiveCount": receives})


def problems(target_retention_s: int | None = None, **members: object) -> list[str]:
    target = None if target_retention_s is None else msgspec.structs.replace(QUEUE, retention_s=target_retention_s)
    return [
        text.split()[0].rstrip(":")
        for text in redrive_problems(msgspec.structs.replace(QUEUE, **members), target, RULES)
    ]


@pytest.mark.parametrize(
    ("found", "members"),
    [
        ([], {}),
        ([], {"redrive_policy": policy(1000)}),
        ([], {"redrive_policy": policy(100)}),
        (["maxReceiveCount"], {"redrive_policy": policy(3)}),
        (["maxReceiveCount"], {"redrive_policy": policy("3")}),
        (["maxReceiveCount"], {"redrive_policy": policy(4)}),
        (["visibility"], {"visibility_timeout_s": 24}),
        ([], {"visibility_timeout_s": 25}),
        ([], {"target_retention_s": 345_600}),
        ([], {"redrive_policy": policy(1000), "target_retention_s": 345_600, "retention_s": None}),
        ([], {"redrive_policy": policy(1000), "target_retention_s": 1_209_600}),
        (["letters"], {"redrive_policy": policy(1000), "target_retention_s": 345_600}),
        ([], {"redrive_policy": policy(1000), "target_retention_s": 345_601}),
        (["letters"], {"redrive_policy": policy(1000), "retention_s": 1_209_600, "target_retention_s": 1_209_599}),
        ([], {"redrive_policy": policy(1000), "retention_s": 1_209_600, "target_retention_s": 1_209_600}),
        ([], {"redrive_policy": policy(1000, "letters.fifo"), "target_retention_s": 345_600}),
        (["maxReceiveCount", "visibility"], {"redrive_policy": policy(1), "visibility_timeout_s": 1}),
    ],
)
def test_unfit_settings_are_told(found: list[str], members: dict[str, object]) -> None:
    assert problems(**members) == found  # type: ignore[arg-type]


@pytest.mark.parametrize("receives", [1, 4, 10, 99])
def test_policy_without_room_for_trouble_says_so(receives: int) -> None:
    (text,) = redrive_problems(msgspec.structs.replace(QUEUE, redrive_policy=policy(receives)), None, RULES)
    assert f"down for longer than about {2 * receives} min" in text


@pytest.mark.parametrize(
    ("delays_s", "expected"),
    [
        ((), 1),
        ((1, 5, 15), 1),
        ((60,), 1),
        ((61,), 2),
        ((30, 30, 30), 2),
        ((30, 31, 60, 1), 3),
        ((61, 60), 2),
        ((300, 300), 3),
    ],
)
def test_tries_cost_a_receive_where_a_message_leaves_flight(delays_s: tuple[float, ...], expected: int) -> None:
    rules = RedriveRules(delays_s, 25.0)
    assert rules.receive_count == expected
    queue = msgspec.structs.replace(QUEUE, redrive_policy=policy(expected - 1))
    (text,) = redrive_problems(queue, None, rules)
    assert f"is lower than the {expected} receives" in text


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", policy("many"), '{"maxReceiveCount": 3}'])
def test_policy_that_cannot_be_read_is_none(text: str | None) -> None:
    assert parse_redrive_policy(text) is None


def test_target_whose_retention_is_unknown_is_fit() -> None:
    queue = msgspec.structs.replace(QUEUE, redrive_policy=policy(1000))
    assert list(redrive_problems(queue, msgspec.structs.replace(QUEUE, retention_s=None), RULES)) == []
