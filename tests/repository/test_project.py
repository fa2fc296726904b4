"""What is installed and released: pins with hashes, versions; and what code may rely on: no asserts, pure modules."""

from __future__ import annotations

import ast
import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.pure_modules import is_marked_pure, worker_modules
from support.requires import ROOT

FILES = sorted((ROOT / "requirements").glob("*.txt"), key=lambda path: path.name)
PIN = re.compile(r"(?P<name>[a-z0-9.-]+)(?:\[[a-z0-9,-]+\])?==(?P<version>[^ ]+)(?: ; [^\\]+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Return version and remaining words of each pin of *path* by name; any other line fails the test."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, tuple[str, list[str]]] = {}
    for logical_line in text.replace("\\\n", "\x00").splitlines():
        first, *rest = (part.strip() for part in logical_line.split("\x00"))
        pin = PIN.fullmatch(first)
        assert pin, f"{path.name}: expected name==version, got {first!r}"
        found[canonicalize_name(pin["name"])] = (pin["version"], rest)
    return found


def wanted() -> dict[str, list[str]]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups: dict[str, list[Any]] = project["dependency-groups"]
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    worker: list[str] = project["project"]["dependencies"] + extras["cache"] + extras["tracing"]
    embedded: dict[str, Any] = tomllib.loads((ROOT / "simplu_local" / "pyproject.toml").read_text())["project"]
    local = worker + embedded["dependencies"] + groups["build"]
    dev = local + groups["test"] + groups["lint"] + groups["measure"]
    image = groups["build"] + [one for one in groups["image"] if isinstance(one, str)]
    return {"worker": worker, "local": local, "dev": dev, "image": image}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_requirements_have_nothing_but_hashed_pins_in(path: Path) -> None:
    without = {name: rest for name, (_, rest) in pins(path).items() if not rest or not all(map(HASH.fullmatch, rest))}
    assert without == {}


@pytest.mark.parametrize("name", wanted())
def test_requirements_satisfy_the_project_in(name: str) -> None:
    pinned = pins(ROOT / "requirements" / f"{name}.txt")
    unsatisfied = []
    for requirement in map(Requirement, wanted()[name]):
        version, _ = pinned.get(canonicalize_name(requirement.name), ("", []))
        if not version or not requirement.specifier.contains(version):
            unsatisfied.append(str(requirement))
    assert unsatisfied == []


@pytest.mark.parametrize(("smaller", "larger"), [("worker", "local"), ("local", "dev")])
def test_requirements_agree_between(smaller: str, larger: str) -> None:
    pinned = [{n: v for n, (v, _) in pins(ROOT / "requirements" / f"{s}.txt").items()} for s in (smaller, larger)]
    assert pinned[0].items() <= pinned[1].items()


MIGRATIONS = ROOT / "simplu_worker" / "shards" / "sql" / "migrations"
DIGESTS = ROOT / "tests" / "repository" / "released_migrations.sha256"


def test_released_migrations_never_change() -> None:
    lines = DIGESTS.read_text(encoding="utf-8").splitlines() if DIGESTS.exists() else []
    released = {name: digest for digest, name in (line.split() for line in lines)}
    now = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MIGRATIONS.glob("*.sql")}
    assert {name: now.get(name) for name in released} == released
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert bool(released) == bool(re.search(r"^## \[\d", changelog, flags=re.MULTILINE))


PRODUCT = [path for folder in ("simplu_worker", "simplu_local", "clients") for path in (ROOT / folder).rglob("*.py")]


def test_product_has_no_assert_for_python_to_leave_out() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


LISTED = ROOT / "tests" / "mutation" / "equivalent.toml"


def test_equivalent_mutants_are_of_pure_modules() -> None:
    pure = {name for name, path in worker_modules().items() if is_marked_pure(path)}
    listed = tomllib.loads(LISTED.read_text(encoding="utf-8"))["mutant"]
    assert {mutant["module"] for mutant in listed} - pure == set()
