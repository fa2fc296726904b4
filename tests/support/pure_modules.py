"""The modules of the worker, and which of them are pure: their docstring has the word "Pure."."""

from __future__ import annotations

import ast
from pathlib import Path

from support.requires import ROOT

PACKAGE = ROOT / "simplu_worker"
MARK = "Pure."


def worker_modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def is_marked_pure(path: Path) -> bool:
    return MARK in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
