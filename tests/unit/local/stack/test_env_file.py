"""`stack --env-file` takes a new file, or one that a stack has written; it keeps the settings of others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from simplu_local.stack.stack import _remove_stale_file, run_stack


def test_stack_keeps_a_file_that_none_has_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = "CITRUS_SERVER_URL=https://citrus.example.com\n# STACK_POSTGRES_URLS=\n"
    file = tmp_path / "worker.env"
    file.write_text(settings)
    assert asyncio.run(run_stack(file, 1)) == 1
    assert file.read_text() == settings
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("--env-file: expected a new file, or one of an earlier stack, got another one: ")


@pytest.mark.parametrize("content", ["", "AWS_REGION=eu-central-1\nSTACK_POSTGRES_URLS=''\n"])
def test_file_of_an_earlier_stack_is_removed(tmp_path: Path, content: str) -> None:
    file = tmp_path / "stack.env"
    file.write_text(content)
    _remove_stale_file(file)
    assert not file.exists()
    _remove_stale_file(file)
