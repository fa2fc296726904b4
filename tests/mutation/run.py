"""Mutate the pure modules, run the unit tests on each mutant, and print what became of them, by module.

`make mutants` runs this; ARGS are modules or patterns of modules. Verdicts stay in mutants/: a further run of all
tries only new, changed and surviving mutants. With `--tests` the chosen modules alone are mutated, and these tests run
in place of all unit tests: `ARGS="operations.waves --tests tests/unit/operations"`. With `--survivors` the text of each
survivor follows the table.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mutation import operators
from support.pure_modules import is_marked_pure, worker_modules
from support.requires import ROOT

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
COPY = ROOT / "mutants"  # mutmut's copy of the project
VERDICT_SUFFIXES = frozenset({".meta", ".spans"})
STATS = COPY / "mutmut-stats.json"  # the tests that reach each function
KILLED = frozenset({"killed", "timeout", "segfault"})


class Survivor(NamedTuple):
    """The text of a mutant: its module, its function, and the lines before and after."""

    module: str
    function: str
    was: str
    becomes: str


def pure_modules() -> dict[str, Path]:
    """Return by name the worker's modules that are marked as pure; the embedded stack is not the worker."""
    return {
        f"simplu_worker.{name}": path.relative_to(ROOT)
        for name, path in worker_modules().items()
        if is_marked_pure(path) and not name.startswith("local.")
    }


def chosen_modules(patterns: list[str], modules: dict[str, Path]) -> list[str]:
    """Return the names that a pattern is, matches, or is the package of; all without patterns."""
    chosen = []
    for name in modules:
        short = name.removeprefix("simplu_worker.")
        candidates = (name, short, short.rsplit(".", 1)[-1])
        wanted = [pattern.removesuffix(".py").replace("/", ".") for pattern in patterns]
        if not patterns or any(
            fnmatch.fnmatch(candidate, pattern) or candidate.startswith(pattern + ".")
            for pattern in wanted
            for candidate in candidates
        ):
            chosen.append(name)
    return chosen


def equivalent_mutants() -> set[Survivor]:
    listed: list[dict[str, str]] = tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    return {Survivor(entry["module"], entry["function"], entry["was"], entry["becomes"]) for entry in listed}


def mutant_text(name: str, path: Path) -> Survivor:
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    lines = get_diff_for_mutant(name, path=path).splitlines()
    changed: dict[str, list[str]] = {"-": [], "+": []}
    for line in lines[2:]:
        if line[:1] in changed and not line.startswith(("---", "+++")):
            changed[line[0]].append(line[1:].strip())
    module, _, function = name.rpartition(".")
    function = function.split("__mutmut_")[0].removeprefix("x_").replace("xǁ", "").replace("ǁ", ".")
    was, becomes = (" / ".join(changed[sign]) for sign in "-+")
    return Survivor(module.removeprefix("simplu_worker."), function, was, becomes)


def verdict_of(exit_code: int | None) -> str:
    from mutmut.stats import status_by_exit_code

    return str(status_by_exit_code[exit_code])


def read_verdicts(modules: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    from mutmut.mutation.data import SourceFileMutationData

    for module, path in modules.items():
        data = SourceFileMutationData(path=path)
        data.load()
        for mutant, exit_code in data.exit_code_by_key.items():
            yield module, mutant, verdict_of(exit_code)


def package_of(module: str) -> str:
    return "/".join(module.split(".")[:-1][:2]) or module


def print_table(modules: dict[str, Path], *, by_package: bool, show_survivors: bool) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    equivalent = equivalent_mutants()
    used: set[Survivor] = set()
    survivors: list[tuple[str, Survivor]] = []
    shown: set[str] = set()
    untried_count = 0
    for module, mutant, verdict in read_verdicts(modules):
        if verdict == "not checked":
            untried_count += 1
            continue
        name = module.removeprefix("simplu_worker.")
        shown.add(name)
        outcome = "killed" if verdict in KILLED else "survived"
        if outcome == "survived":
            text = mutant_text(mutant, modules[module])
            if text in equivalent:
                outcome = "equivalent"
                used.add(text)
            else:
                survivors.append((verdict, text))
        counts[package_of(name) if by_package else name][outcome] += 1
    rows = sorted(counts.items())
    rows.append(("all", sum((count for _, count in rows), Counter[str]())))
    unit = "package" if by_package else "module"
    print(f"| {unit} | mutants | killed | survived | equivalent | score |\n|---|---|---|---|---|---|")
    for name, count in rows:
        effective = count["killed"] + count["survived"]
        score = f"{100 * count['killed'] / effective:.1f} %" if effective else "–"
        cells = [f"`{name}`" if name != "all" else name, str(count.total())]
        cells += [str(count[outcome]) for outcome in ("killed", "survived", "equivalent")]
        print(f"| {' | '.join([*cells, score])} |")
    if show_survivors:
        for verdict, text in survivors:
            print(f"\n{text.module} {text.function} ({verdict})\n  - {text.was}\n  + {text.becomes}")
    if untried_count:
        print(f"Not tried yet, and not counted: {untried_count} mutants", file=sys.stderr)
    for text in sorted(mutant for mutant in equivalent - used if mutant.module in shown):
        print(f"Listed as equivalent, and no survivor of this run: {text}", file=sys.stderr)


def forget_stale_copies() -> None:
    """Remove stale tests, SQL, modules and their verdicts from mutmut's copy of the project, where mutmut leaves them.

    The tests that reach each function are found anew: mutmut would find them for new tests only, and a function with
    another name, or with another caller, would have none.
    """
    STATS.unlink(missing_ok=True)
    shutil.rmtree(COPY / "tests", ignore_errors=True)
    for path in sorted((COPY / "simplu_worker").rglob("*"), reverse=True):  # what is in a folder before the folder
        is_verdict = path.suffix in VERDICT_SUFFIXES
        origin = ROOT / path.relative_to(COPY).with_suffix("" if is_verdict else path.suffix)
        if path.is_dir():
            if not origin.is_dir():
                path.rmdir()
        elif not origin.exists():
            path.unlink()
        elif not is_verdict and path.suffix != ".py":
            shutil.copy2(origin, path)


def forget_survivals(modules: dict[str, Path]) -> list[str]:
    """Have the mutants that survived the last run tried again; return their names, and those without a verdict."""
    from mutmut.mutation.data import SourceFileMutationData

    survivors = []
    for path in modules.values():
        data = SourceFileMutationData(path=path)
        data.load()
        for mutant, exit_code in data.exit_code_by_key.items():
            if exit_code is None or verdict_of(exit_code) not in KILLED:
                data.exit_code_by_key[mutant] = None
                survivors.append(mutant)
        if data.exit_code_by_key:
            data.save()
    return survivors


def run_mutmut(modules: dict[str, Path], names: list[str], max_children: int, tests: list[str]) -> None:
    """Generate the mutants and try those that *names* match; without names those that have no verdict.

    Without *tests* all unit tests are theirs.
    """
    from mutmut import __main__ as mutmut
    from mutmut import stats
    from mutmut.configuration import config

    if not sys.stdout.isatty():
        mutmut.print_status = stats.print_status = lambda *_, **__: None
    mutmut.print_stats = lambda *_, **__: None  # it counts all mutants again after each
    config().only_mutate = [str(path) for path in modules.values()]
    if tests:
        config().pytest_add_cli_args_test_selection = tests
    mutmut._run(names, max_children)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as shards/apply or 'operations.*'; all without one")
    parser.add_argument("--tests", nargs="+", default=[], help="such as tests/unit/operations")
    parser.add_argument("--again", action="store_true", help="try only what survived the last run, or has no verdict")
    parser.add_argument("--survivors", action="store_true", help="print the text of each survivor")
    parser.add_argument("--packages", action="store_true", help="print a row for each package, not for each module")
    parser.add_argument("--table", action="store_true", help="print the table of the last run, without a run")
    parser.add_argument("--max-children", type=int, default=os.cpu_count() or 1)
    arguments: Any = parser.parse_args()
    os.chdir(ROOT)
    os.environ["CI"] = "1"  # hypothesis then tries the same examples in each run
    modules = pure_modules()
    chosen = chosen_modules(arguments.modules, modules)
    if not chosen:
        parser.error(f"expected the name of a pure module, got {' '.join(arguments.modules)}")
    if not arguments.table:
        operators.install()
        COPY.mkdir(exist_ok=True)
        forget_stale_copies()
        names = [f"{name}.*" for name in chosen] if arguments.modules else []
        survivors = forget_survivals({name: modules[name] for name in chosen}) if arguments.again or not names else []
        mutated = {name: modules[name] for name in chosen} if arguments.tests else modules
        run_mutmut(mutated, survivors if arguments.again else names, arguments.max_children, arguments.tests)
    print_table(
        {name: modules[name] for name in chosen}, by_package=arguments.packages, show_survivors=arguments.survivors
    )


if __name__ == "__main__":
    main()
