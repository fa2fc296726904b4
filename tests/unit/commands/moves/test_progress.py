"""The lines about moves while they go on."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from simplu_worker.commands.moves.runner import MoveProgress, MoveRate
from simplu_worker.commands.output import CountProgress
from simplu_worker.transfers.moving.types import MoveStatus
from simplu_worker.vocabulary import MovePhase

MIB = 2**20


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def copied(row_count: int, row_total: int = 0, phase: MovePhase = MovePhase.COPY) -> MoveStatus:
    return MoveStatus(phase, row_count, row_count * 1024, row_total)


def test_figures_have_rows_bytes_rate_and_the_rows_left() -> None:
    rate = MoveRate(100.0)
    figures = [
        rate.note(status, now)
        for status, now in [
            (MoveStatus(MovePhase.PREPARE), 100.0),
            (MoveStatus(MovePhase.COPY, 50_000, 10 * MIB, 100_000), 101.0),  # most of it by an earlier command
            (MoveStatus(MovePhase.COPY, 60_000, 12 * MIB, 100_000), 103.0),
            (MoveStatus(MovePhase.VERIFY, 100_100, 20 * MIB, 100_000), 111.0),
        ]
    ]
    assert [(one.describe(), one.left_s) for one in figures] == [
        ("0 rows, 0.0 MiB, 0 rows/s", None),
        ("50,000 rows, 10.0 MiB, 50,000 rows/s", 1.0),
        ("60,000 rows, 12.0 MiB, 5,000 rows/s", 8.0),
        ("100,100 rows, 20.0 MiB, 5,010 rows/s", None),
    ]


def test_time_left_is_not_known_while_nothing_is_copied() -> None:
    clock = Clock()
    with MoveProgress(1, as_json=True, clock=clock) as progress:
        show = progress.watch("one")
        for count in (1000, 2000):
            clock.now += 1
            show(copied(count, 5000))
        assert progress.describe("one").endswith("about 3 s left")
        clock.now += 90
        assert progress.describe("one") == "copy: 2,000 rows, nothing new for 90 s"
        assert progress.describe_all() == "0 of 1 ended, 2,000 rows, 2.0 MiB, 0 rows/s"
        show(copied(3000, 5000))
        assert "left" in progress.describe("one")


def test_interrupted_moves_tell_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for error, text in (
        (asyncio.CancelledError(), "interrupted: 0 of 2 ended, 0 rows, 0.0 MiB, 0 rows/s; the same command"),
        (ValueError(), ""),
    ):
        with contextlib.suppress(type(error)), MoveProgress(2, as_json=False):
            raise error
        assert capsys.readouterr().err[: len(text) or None] == text
    with contextlib.suppress(asyncio.CancelledError), CountProgress("letters", 9) as count:
        count.show(4)
        raise asyncio.CancelledError
    assert capsys.readouterr().err == "interrupted: letters: 4 of 9\n"


def test_lines_of_json_come_for_each_tenant_never_in_the_pause(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with MoveProgress(2, as_json=True, clock=clock) as progress:
        one, two = progress.watch("one"), progress.watch("two")
        one(copied(100, 1000))
        clock.now += 2
        one(copied(500, 1000))
        two(copied(10, phase=MovePhase.CATCH_UP))
        one(copied(600, 1000))
        clock.now += 2
        one(copied(1000, phase=MovePhase.LAST_DELTA))
        two(copied(20, phase=MovePhase.REHEARSE))
    output = capsys.readouterr()
    assert output.err == ""
    assert [json.loads(line) for line in output.out.splitlines()] == [
        {
            "tenant": "one",
            "phase": "copy",
            "rows": 500,
            "bytes": 512_000,
            "rowsPerSecond": 200.0,
            "secondsLeft": 2.5,
        },
        {"tenant": "two", "phase": "catch up", "rows": 10, "bytes": 10_240, "rowsPerSecond": 5.0},
        {"tenant": "two", "phase": "rehearse", "rows": 20, "bytes": 20_480, "rowsPerSecond": 5.0},
    ]


def test_lines_for_people_have_all_and_the_one_that_went_on(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with MoveProgress(2, as_json=False, clock=clock) as progress:
        one, two = progress.watch("one"), progress.watch("two")
        clock.now += 2
        one(copied(1024, 3072))
        two(copied(1024, 3072))
    output = capsys.readouterr()
    assert output.out == ""
    figures = "1,024 rows, 1.0 MiB, 512 rows/s, about 4 s left"
    assert output.err == f"0 of 2 ended, {figures}; one: copy: {figures}\n"
