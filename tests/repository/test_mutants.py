"""The list of equivalent mutants is about lines of pure modules that are there."""

from __future__ import annotations

import tomllib

from support.pure_modules import is_marked_pure, worker_modules
from support.requires import ROOT

LISTED = ROOT / "tests" / "mutation" / "equivalent.toml"


def test_equivalent_mutants_are_of_lines_that_are_there() -> None:
    modules = worker_modules()
    gone = []
    for mutant in tomllib.loads(LISTED.read_text(encoding="utf-8"))["mutant"]:
        path = modules.get(mutant["module"])
        lines = path.read_text(encoding="utf-8").splitlines() if path and is_marked_pure(path) else []
        there = {line.strip() for line in lines}
        if mutant["was"] not in there and not there.issuperset(mutant["was"].split(" / ")):
            gone.append((mutant["module"], mutant["function"], mutant["was"]))
    assert gone == []
