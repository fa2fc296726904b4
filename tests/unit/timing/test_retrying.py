"""Calls that are repeated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from simplu_worker.errors import RetryableError
from simplu_worker.timing.waits import retry


@pytest.fixture(autouse=True)
def _without_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2):
        yield


async def test_repetition_neither_logs_the_arguments_nor_adds_a_metric() -> None:
    answers = iter((RetryableError("not now"), "an answer"))

    async def ask(_secret: str) -> str:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    with capture_logs() as events:
        assert await retry(ask, "pass-word") == "an answer"
    assert events == []
    assert [family.name for family in REGISTRY.collect() if "stamina" in family.name] == []
