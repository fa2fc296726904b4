"""Skip a test that needs a tool which is not installed, or fail it where every tool must be installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".venv-tools" / "bin"

# Parts of what uv and pip write when they do not reach the index.
_UNREACHABLE = ("error sending request", "Failed to fetch", "dns error", "after connection broken by")
_IS_MISSING = " is not installed; to install it: "


def require(name: str, *, found: bool, how: str) -> None:
    """Skip the running test unless *found*; with REQUIRE_ALL=1 fail it. *how* is the way to install *name*."""
    if found:
        return
    reason = f"{name}{_IS_MISSING}{how}"
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"REQUIRE_ALL=1, and {reason}", pytrace=False)
    pytest.skip(reason)


def required_program(name: str, *, how: str) -> str:
    """Return the path of the program *name*, in the PATH or an environment of ours; skip or fail as `require` does."""
    path = shutil.which(name) or shutil.which(name, path=f"{TOOLS}{os.pathsep}{Path(sys.executable).parent}")
    require(name, found=path is not None, how=how)
    return path or ""


def require_package_index(errors: str) -> None:
    """Skip or fail as `require` does if *errors*, of a command of uv or pip that failed, are about the network."""
    is_reached = not any(sign in errors for sign in _UNREACHABLE)
    require("the package index", found=is_reached, how="a network that reaches it")


def missing_tool(reason: str) -> str | None:
    """Return the tool for which `require` skipped a test with *reason*; None for another reason."""
    name, is_missing, _ = reason.removeprefix("Skipped: ").partition(_IS_MISSING)
    return name if is_missing else None
