"""run.py finds a Python that really runs, and says what to do without one."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.requires import ROOT


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "new comer" / "requirements").mkdir(parents=True)
    path = shutil.copy2(ROOT / "run.py", tmp_path / "new comer")
    spec = importlib.util.spec_from_file_location("run_in_a_copy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def shim(path: Path, *, says: str = "", exit_status: int = 0) -> str:
    """Make *path* an executable that prints *says*, as an interpreter would when asked what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {exit_status}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"a/python3.13": 127, "a/python3.12": 0}, "a/python3.12"),
        ({"a/python3.13": 127, "b/python3.13": 0}, "b/python3.13"),
        ({"a/python3.11": 0, "b/python3.13": 0}, "b/python3.13"),
        ({"new comer/.venv/bin/python3.13": 0, "b/python3.12": 0}, "b/python3.12"),
        ({}, os.path.realpath(sys.executable)),
    ],
    ids=["one that fails is passed over", "and hides no other", "the newest", "not our own", "else the running one"],
)
def test_choice_is_of_the_pythons_that_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: dict[str, int], expected: str
) -> None:
    for path, status in there.items():
        shim(tmp_path / path, says="3.12", exit_status=status)
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / name) for name in ("new comer/.venv/bin", "a", "b")))
    assert script.find_python() == str(tmp_path / expected)


def test_script_has_the_syntax_of_python_3_6() -> None:
    ast.parse((ROOT / "run.py").read_text(), feature_version=(3, 6))
