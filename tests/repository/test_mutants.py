"""The list of equivalent mutants is about pure modules that are there."""

from __future__ import annotations

import tomllib

from support.pure_modules import is_marked_pure, worker_modules
from support.requires import ROOT

LISTED = ROOT / "tests" / "mutation" / "equivalent.toml"


def test_equivalent_mutants_are_of_pure_modules() -> None:
    pure = {name for name, path in worker_modules().items() if is_marked_pure(path)}
    listed = tomllib.loads(LISTED.read_text(encoding="utf-8"))["mutant"]
    assert {mutant["module"] for mutant in listed} - pure == set()
