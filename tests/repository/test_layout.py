"""What a stranger relies on to find a room: small packages, one meaning a class name, pure modules that are pure."""

from __future__ import annotations

import ast
from collections import defaultdict

import pytest
from support.pure_modules import MARK, PACKAGE, impurities, is_marked_pure, worker_modules
from support.requires import ROOT

FOLDER_MAX_COUNT = 15  # modules in a package, `__init__` left out
MODULES = worker_modules()
# Modules that do no I/O in their own lines and are not pure all the same.
NOT_PURE = {
    "__main__": "runs the command line",
    "commands.check.cli": "runs a command",
    "commands.process_end": "ends the process",
    "config.settings": "reads the variables of the process",
    "shards.schema.sql_files": "reads the SQL files when it is imported",
    "telemetry.tracing.spans": "has the tracer of the process",
}


@pytest.mark.parametrize("name", MODULES)
def test_module_is_pure_exactly_where_its_docstring_has_the_mark(name: str) -> None:
    """A module marked "Pure." does no I/O and reads no clock; one that does neither has the mark."""
    found = impurities(MODULES[name].read_text(encoding="utf-8"))
    if is_marked_pure(MODULES[name]):
        assert found == set()
    else:
        assert found or name in NOT_PURE, f"expected {MARK!r} in the docstring of {name}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import re\nx = re.compile('a')", set()),
        ("def f():\n    from asyncio import sleep", {"asyncio"}),
        ("import os.path", {"os.path"}),
        ("from simplu_worker.metrics import instruments", {"simplu_worker.metrics"}),
        ("async def f(): ...", {"a coroutine"}),
        ("import sys\nsys.stdout.write('a')", {"stdout"}),
        ("def f(path): print(path)", {"print"}),
    ],
)
def test_impurities_are_imports_coroutines_and_the_console(source: str, expected: set[str]) -> None:
    """At any depth."""
    assert impurities(source) == expected


def test_packages_are_small() -> None:
    """A folder is one subject; a longer list is several."""
    sizes = {
        folder: len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        for folder in (PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir()))
    }
    assert {str(folder.relative_to(ROOT)): size for folder, size in sizes.items() if size > FOLDER_MAX_COUNT} == {}


def test_class_name_has_one_meaning() -> None:
    """No two modules define a class of the same name."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(name)
    assert {name: sorted(where) for name, where in places.items() if len(where) > 1} == {}
