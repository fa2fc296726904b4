"""Skip a test whose tool is not on this machine, or fail it where everything has to be there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".venv-tools" / "bin"


def require(name: str, *, found: bool, how: str) -> None:
    """Skip the running test unless *found*; with REQUIRE_ALL=1 fail it. *how* says how to get what is missing."""
    if found:
        return
    reason = f"{name} is not here; to have it: {how}"
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"REQUIRE_ALL=1, and {reason}", pytrace=False)
    pytest.skip(reason)


def required_program(name: str, *, how: str) -> str:
    """Return the path of the program *name*, from the PATH or from .venv-tools; skip or fail as `require` does."""
    path = shutil.which(name) or shutil.which(name, path=str(TOOLS))
    require(name, found=path is not None, how=how)
    return path or ""
