"""Answers about operations, as the clients understand them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

import pytest
from simplu_client.errors import Failure, OperationFailedError, OperationRejectedError
from simplu_client.outcomes import AskAgain, judge
from support.clients.cases import read_cases
from support.requires import ROOT

from simplu_worker import vocabulary


@pytest.mark.parametrize("case", read_cases("outcomes"), ids=lambda case: case["name"])
def test_answer_means_what_the_case_says(case: dict[str, Any]) -> None:
    sent_at = datetime.fromisoformat(case["sentAt"]) if "sentAt" in case else None
    verdict = judge(case["http"], case["answer"], sent_at)
    assert type(verdict).__name__ == case["expect"]
    assert getattr(verdict, "result", None) == case.get("result")
    match verdict:
        case AskAgain():
            assert verdict.status == case["word"]
        case OperationFailedError():
            assert verdict.error == case["word"]
        case OperationRejectedError():
            assert verdict.reason == case["word"]


def test_failures_are_those_of_the_worker() -> None:
    failures = {failure.value for failure in vocabulary.Failure}
    assert set(get_args(Failure)) == failures
    source = (ROOT / "clients" / "typescript" / "src" / "errors.ts").read_text(encoding="utf-8")
    listed = source.partition("FAILURES = [")[2].partition("]")[0]
    assert {word.strip(' \n"') for word in listed.split(",")} - {""} == failures
