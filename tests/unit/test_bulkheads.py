"""An exception that nobody foresaw is counted, logged without its message, shown for a while, and tried again later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from simplu_worker import bulkheads
from simplu_worker.bulkheads import (
    SOUND_AFTER_S,
    FailureCount,
    contain,
    current_troubles,
    keep_running,
    note_trouble,
    translate,
)
from simplu_worker.errors import InternalError, PermanentError, RetryableError, WorkerError
from simplu_worker.vocabulary import TargetKind

SHARD = TargetKind.SHARD


@pytest.fixture(autouse=True)
def no_troubles() -> Iterator[None]:
    bulkheads._troubles.clear()
    yield
    bulkheads._troubles.clear()


def _fail(exc: Exception) -> None:
    raise exc


def count_of(target: TargetKind) -> float:
    return REGISTRY.get_sample_value("simplu_internal_errors_total", {"target": target}) or 0.0


async def test_trouble_is_counted_logged_and_shown_without_its_message() -> None:
    before = count_of(SHARD)
    with capture_logs() as logs, contain(SHARD, "shard-1", "probe"):
        _fail(ValueError("the name of a patient"))
    (line,) = logs
    (trouble,) = current_troubles()

    assert count_of(SHARD) == before + 1
    assert (line["event"], line["log_level"], line["shard_id"], line["queue"]) == (
        "loop.failed",
        "error",
        "shard-1",
        None,
    )
    assert "patient" not in str(line)
    assert "test_bulkheads.py" in str(line["traceback"])
    assert (trouble.target, trouble.name, trouble.loop, trouble.count) == (SHARD, "shard-1", "probe", 1)


async def test_trouble_of_one_loop_is_one_with_a_count() -> None:
    for _ in range(3):
        note_trouble(SHARD, "shard-1", "probe", ValueError())
    note_trouble(SHARD, "shard-2", "probe", ValueError())

    assert [(one.name, one.count) for one in current_troubles()] == [("shard-2", 1), ("shard-1", 3)]


async def test_trouble_is_gone_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    note_trouble(SHARD, "shard-1", "probe", ValueError())
    loop = asyncio.get_running_loop()
    later = loop.time() + SOUND_AFTER_S + 1
    monkeypatch.setattr(loop, "time", lambda: later)

    assert current_troubles() == []


async def test_process_without_memory_ends() -> None:
    with pytest.raises(MemoryError), contain(SHARD, "shard-1", "probe"):
        raise MemoryError
    with pytest.raises(ExceptionGroup), contain(SHARD, "shard-1", "probe"):
        raise ExceptionGroup("of a task group", [ValueError(), MemoryError()])


async def test_foreseen_error_passes_and_a_foreign_one_becomes_an_internal_error() -> None:
    with pytest.raises(PermanentError), translate(SHARD, "shard-1", "apply", WorkerError):
        raise PermanentError("refused")
    with pytest.raises(InternalError) as raised, translate(SHARD, "shard-1", "apply", WorkerError):
        raise KeyError("the name of a patient")
    assert isinstance(raised.value, RetryableError)
    assert isinstance(raised.value.__cause__, KeyError)
    assert "patient" not in str(raised.value)


def failing(times: int, calls: list[float], *, then: Callable[[], None]) -> Callable[[], asyncio.Future[None]]:
    async def work() -> None:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) <= times:
            raise ZeroDivisionError
        then()

    return work  # type: ignore[return-value]


@pytest.mark.slow
async def test_loop_runs_again_after_what_it_raises() -> None:
    calls: list[float] = []
    await keep_running(SHARD, "shard-1", "loop", failing(1, calls, then=lambda: None), draw=lambda: 0.0)

    assert len(calls) == 2
    assert calls[1] - calls[0] >= 0.5


async def test_back_off_grows_to_a_minute_and_begins_anew_after_a_good_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, now = asyncio.get_running_loop(), 1000.0
    monkeypatch.setattr(loop, "time", lambda: now)
    failures = FailureCount()

    assert [failures.next_delay_s(1.0) for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    now += SOUND_AFTER_S + 1
    assert failures.next_delay_s(1.0) == 1.0
