"""What `check` calls odd, rule by rule."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import Secret

from simplu_worker.aws.sqs_queue import QueueAttributes
from simplu_worker.commands.check.checking import CheckedDependency, CheckReport, CheckStatus, verdict_on
from simplu_worker.commands.check.findings import CheckFacts, Finding, find_oddities
from simplu_worker.config.settings import Settings

HOUR = timedelta(hours=1)


def settings_with(**changes: object) -> Settings:
    values: dict[str, object] = {"api_token": Secret("a-token")}
    return Settings(**(values | changes))  # type: ignore[arg-type]


def queue_with(*, visibility_s: int = 30, receives: object = 1000, retention_s: int | None = None) -> QueueAttributes:
    target = '"deadLetterTargetArn": "arn:aws:sqs:eu-central-1:000000000000:moved"'
    redrive = None if receives is None else f'{{"maxReceiveCount": {receives}, {target}}}'
    return QueueAttributes(
        visibility_timeout_s=visibility_s,
        max_message_bytes=None,
        retention_s=retention_s,
        visible_count=0,
        in_flight_count=0,
        delayed_count=0,
        redrive_policy=redrive,
    )


@pytest.mark.parametrize(
    ("facts", "changes", "expected"),
    [
        (CheckFacts(queues={"queue q": queue_with(receives=None)}), {}, ["queue q: no redrive policy; nothing to do"]),
        (CheckFacts(queues={"queue q": queue_with(receives=1)}), {}, ["queue q: maxReceiveCount 1: SQS moves"]),
        (
            CheckFacts(queues={"queue q": queue_with(receives=2)}),
            {"sqs_retry_delays_seconds": (90, 90)},
            ["queue q: maxReceiveCount 2 is lower"],
        ),
        (CheckFacts(queues={"queue q": queue_with(receives=100)}), {}, []),
        (
            CheckFacts(
                queues={"queue q": queue_with(retention_s=86_400)},
                redrive_targets={"queue q": queue_with(retention_s=86_400)},
            ),
            {},
            ["queue q: moved keeps messages for 86400 s"],
        ),
        (CheckFacts(queues={"queue q": queue_with(visibility_s=24)}), {}, ["queue q: visibility timeout 24 s"]),
        (CheckFacts(queues={"queue q": queue_with(visibility_s=25)}), {}, []),
        (CheckFacts(retentions={"stream s": 336 * HOUR}), {}, []),
        (CheckFacts(retentions={"stream s": 337 * HOUR}), {}, ["stream s: keeps records for 337 h"]),
        (CheckFacts(retentions={"queue q": 24 * HOUR}), {"operation_retention_hours": 47}, ["queue q: keeps records"]),
        (
            CheckFacts(retentions={"queue q": 25 * HOUR}, dead_letters_retention=24 * HOUR),
            {},
            ["queue q: keeps records"],
        ),
        (CheckFacts(retentions={"queue q": 24 * HOUR}, dead_letters_retention=24 * HOUR), {}, []),
        (CheckFacts(), {"api_token": None}, ["API_TOKEN: not set"]),
        (CheckFacts(), {}, []),
    ],
)
def test_findings_name_what_is_odd_and_nothing_else(
    facts: CheckFacts, changes: dict[str, object], expected: list[str]
) -> None:
    found = [str(finding) for finding in find_oddities(facts, settings_with(**changes))]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


ODD = [Finding("queue q", "no redrive policy", "nothing to do")]


def verdict(*statuses: CheckStatus, odd: list[Finding] | None = None) -> str:
    rows = [CheckedDependency(f"shard {at}", "", status, "", 0.0) for at, status in enumerate(statuses)]
    return verdict_on(CheckReport(rows, odd or []))


def test_check_ends_with_what_failed_or_warns() -> None:
    ok, warning, failed, off = CheckStatus.OK, CheckStatus.WARNING, CheckStatus.FAILED, CheckStatus.OFF
    assert verdict(ok, off) == "nothing odd"
    assert verdict(ok, odd=ODD) == "nothing failed; see what is odd"
    assert verdict(warning, failed, failed) == "failed: shard 1, shard 2"
    assert verdict(ok, warning, odd=ODD) == "warning: shard 1"
