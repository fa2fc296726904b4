"""The command that `stack` prints for another terminal."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from simplu_local.stack.stack import own_command


def test_own_command_is_found_by_a_shell_wherever_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "a venv").mkdir()
    (program := folder / "simplu-worker").write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    assert own_command(str(program)) == f"'{program}'"
    monkeypatch.setenv("PATH", str(folder))
    assert own_command(str(program)) == "simplu-worker"
    (other := tmp_path / "simplu-worker").write_text("#!/bin/sh\n")
    assert own_command(str(other)) == str(other)
    assert own_command("/x/simplu_worker/__main__.py") == f"{shlex.quote(sys.executable)} -m simplu_worker"
