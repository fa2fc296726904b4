"""The options of commands that move tenants, the lines while moves go on, and what is printed at the end."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from simplu_worker.cli import app
from simplu_worker.commands.command_line import MoveBounds, MoveTerms
from simplu_worker.commands.moves import sum_rows
from simplu_worker.commands.output import CountProgress, TransferProgress
from simplu_worker.transfers.moving.checksums import LOG, Comparison, TypeSum


@pytest.mark.parametrize(
    ("words", "name", "options"),
    [
        ("tenants rollback b l --max-pause 2", "bounds", MoveBounds(2)),
        ("shards drain s --parallel 3", "terms", MoveTerms(parallel=3)),
        ("shards rebalance --to s --to t", "to", ("s", "t")),
        ("shards drain s --undo", "undo", True),
    ],
)
def test_options_of_moves(words: str, name: str, options: object) -> None:
    _, bound, _ = app.parse_args(words.split(), print_error=False, exit_on_error=False)
    assert bound.arguments[name] == options


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_interrupted_moves_tell_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for error, text in (
        (asyncio.CancelledError(), "interrupted: 0 of 2 ended, 0 rows; the same command continues"),
        (ValueError(), ""),
    ):
        with contextlib.suppress(type(error)), TransferProgress(2):
            raise error
        assert capsys.readouterr().err[: len(text) or None] == text
    with contextlib.suppress(asyncio.CancelledError), CountProgress("letters", 9) as count:
        count.show(4)
        raise asyncio.CancelledError
    assert capsys.readouterr().err == "interrupted: letters: 4 of 9\n"


def test_lines_for_people_have_all_and_the_one_that_went_on(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with TransferProgress(2, clock=clock) as progress:
        clock.now += 2
        progress.show("one", "copy", 1024, 3072)
        progress.show("two", "copy", 1024, 3072)
        progress.finish()
        clock.now += 2
        progress.show("two", "verify", 2048)
        progress.show("two", "verify", 2049)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "0 of 2 ended, 1,024 rows; one: copy, 1,024 of 3,072 rows",
        "1 of 2 ended, 3,072 rows; two: verify, 2,048 rows",
    ]


def test_table_has_each_type_those_that_differ_first() -> None:
    source = {"note": TypeSum(1, 20, 5), "patient": TypeSum(3, 600, -1), LOG: TypeSum(9, 0, 2**64 + 10)}
    target = source | {"note": TypeSum(1, 21, 6)}
    assert sum_rows(Comparison(source, target)) == [
        ("note", 1, "20 → 21", "0000000000000005 → 0000000000000006"),
        (LOG, 9, 0, "000000000000000a"),
        ("patient", 3, 600, "ffffffffffffffff"),
    ]
