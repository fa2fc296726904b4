from __future__ import annotations

import asyncio

import pytest

from simplu_worker.commands.output import NOTE_AFTER_S, CountProgress, note_what_is_awaited

AFTER_S = 0.01


def test_people_are_told_within_three_seconds() -> None:
    assert NOTE_AFTER_S <= 2.5


async def test_each_cause_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    causes = iter(["refused", "refused", "timed out", "timed out", "refused"])
    said = asyncio.Event()

    def describe() -> str:
        cause = next(causes, None)
        if cause is None:
            said.set()
        return cause or "refused"

    with CountProgress("put", 1) as progress, note_what_is_awaited(describe, progress, after_s=AFTER_S):
        await said.wait()
    await asyncio.sleep(3 * AFTER_S)
    assert capsys.readouterr().err.split("\n") == ["refused", "timed out", "refused", ""]


async def test_nothing_is_said_while_there_is_progress(capsys: pytest.CaptureFixture[str]) -> None:
    looks = 0
    looked_often = asyncio.Event()

    class Moving(CountProgress):
        @property
        def done(self) -> int:
            nonlocal looks
            looks += 1
            if looks == 5:
                looked_often.set()
            return looks

        @done.setter
        def done(self, _: int) -> None: ...

    with note_what_is_awaited(lambda: "stuck", Moving("put", 1), after_s=AFTER_S / 10):
        await looked_often.wait()
    assert capsys.readouterr().err == ""
