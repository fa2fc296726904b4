"""The rule of CONTRIBUTING for pure modules: the docstring of a module has "Pure." exactly when its code does no I/O.

Pure code reads no clock and makes no random choice: times and draws are arguments. A module may import the types of one
that does I/O.
"""

from __future__ import annotations

import ast
from pathlib import Path

from support.requires import ROOT

PACKAGE = ROOT / "simplu_worker"
MARK = "Pure."
IMPURE_MODULES = frozenset(
    {
        "aiobotocore",
        "aiohttp",
        "asyncio",
        "asyncpg",
        "botocore",
        "ctypes",
        "cyclopts",
        "importlib",
        "logging",
        "opentelemetry",
        "os",
        "pathlib",
        "prometheus_client",
        "random",
        "redis",
        "rich",
        "secrets",
        "socket",
        "stamina",
        "structlog",
        "subprocess",
        "time",
    }
)
IMPURE_OWN = ("simplu_worker.metrics",)
IMPURE_NAMES = frozenset({"input", "open", "print", "stderr", "stdin", "stdout"})


def worker_modules() -> dict[str, Path]:
    """Return the files of the package by their dotted names below it."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def is_marked_pure(path: Path) -> bool:
    """Return whether the module's docstring has the mark."""
    return MARK in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


def impurities(source: str) -> set[str]:
    """Return what keeps a module from being pure: imports at any depth, coroutines, the console, files."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names if _is_impure(alias.name))
            case ast.ImportFrom(module=str(module)) if _is_impure(module):
                found.add(module)
            case ast.AsyncFunctionDef() | ast.Await():
                found.add("a coroutine")
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in IMPURE_NAMES:
                found.add(name)
    return found


def _is_impure(module: str) -> bool:
    return module.partition(".")[0] in IMPURE_MODULES or module.startswith(IMPURE_OWN)
