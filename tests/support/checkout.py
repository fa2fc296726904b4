"""A copy of the repository as a newcomer has it, and commands that run in it as in a shell of theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.requires import ROOT, require_package_index, required_program

from simplu_worker.config.loading import KNOWN_VARIABLES

PATIENCE_S = 480


def checkout_files() -> list[str]:
    git = required_program("git", how="apt-get install git")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted({path for path in done.stdout.split("\0") if (ROOT / path).is_file()})


def copy_files(paths: list[str], folder: Path) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / path)
    return folder


def newcomer_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a shell without settings of the worker; programs of ours for it go to *folder*.

    Its python3 is the one of the tests, outside of any environment, and uv is there, as it is several times as fast.
    """
    folder.mkdir(exist_ok=True)
    programs = {"python3": vars(sys)["_base_executable"], "uv": required_program("uv", how="python3 run.py setup")}
    for name, path in programs.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{path}" "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in KNOWN_VARIABLES}
    # Modules are compiled where they are imported: to compile all of them takes pip half of its time. The value of an
    # option that begins with "no" is reversed, as pip's documentation says of configuration.
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PIP_NO_COMPILE": "0", "PATH": path}


def run_lines(
    lines: str, *, folder: Path, environment: dict[str, str], status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run *lines* in a shell that ends at the first one that fails, and expect its exit *status*."""
    command = ["sh", "-euc", lines]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    if done.returncode not in (0, status):
        require_package_index(done.stderr)
    assert done.returncode == status, f"$ {lines}\n{done.stdout}{done.stderr}"
    return done
