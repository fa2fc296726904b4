"""The stages of `.ci/nightly`: which are due, which files they cover, and that `.ci/run` leaves out no other test."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import PurePosixPath

import pytest
from msgspec import structs
from support.checkout import checkout_files
from support.ci.covered import ALWAYS, Repository
from support.ci.results import Result, describe, digest_of, due_stages, figures_of
from support.ci.run import covered_by, files_of, open_repository
from support.ci.stages import STAGES, Stage
from support.requires import ROOT
from support.site.build import stage as stage_site

NOT_RUN = ("deploy/", "requirements/")  # shown or installed
RESULT = Result("old", 3, "2026-11-27", "0123456789abcdef", 60, "5 passed")
SMALL = {
    "tests/conftest.py": "import support.servers\n@fixture\ndef server(): ...\n@fixture\ndef _own(): ...\n",
    "tests/support/servers.py": "",
    "tests/a/conftest.py": "",
    "tests/a/test_b.py": "",
    "worker/__init__.py": "",
    "worker/one/__init__.py": "",
    "worker/one/two.py": "import worker.three\n",
    "worker/three.py": "",
    "worker/one/query.sql": "",
    "simplu_worker/__init__.py": "",
    "simplu_worker/__main__.py": "",
    "simplu_local/__init__.py": "",
    "simplu_local/start.py": "ARGV = [python, '-m', 'simplu_worker', 'run']\nNAME = 'simplu-worker'\n",
    "tests/targets/one.py": "",
    "docs/a.md": "",
    "docs/b.md": "",
    "requirements/dev.txt": "",
}
IN_EACH = {"tests/conftest.py", "tests/a/conftest.py", "tests/a/test_b.py", "requirements/dev.txt"}
WHOLE_WORKER = {"simplu_worker/__init__.py", "simplu_worker/__main__.py"}
TWO = {"worker/__init__.py", "worker/one/__init__.py", "worker/one/two.py", "worker/three.py"}


@cache
def repository() -> Repository:
    """Return the files that a commit made now would have."""
    return open_repository(checkout_files())


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({}, ["a", "b"]),
        ({"a": "1"}, ["b"]),
        ({"a": "1", "b": "2"}, []),
        ({"a": "1", "b": "1"}, ["b"]),
        ({"a": "2", "b": "1"}, ["a", "b"]),
        ({"a": "1", "b": "2", "gone": "3"}, []),
    ],
)
def test_stage_is_due_without_a_result_of_the_same_files(results: dict[str, str], expected: list[str]) -> None:
    recorded = {name: structs.replace(RESULT, digest=digest) for name, digest in results.items()}
    assert due_stages({"a": "1", "b": "2"}, recorded) == expected


@pytest.mark.parametrize(
    ("digest", "result", "expected"),
    [
        ("old", RESULT, "peers: passed on 2026-11-27 at 0123456789ab, none of its 3 files changed since"),
        ("new", RESULT, "peers: due, its files have changed since it passed on 2026-11-27 at 0123456789ab"),
        ("new", None, "peers: due, it has no result"),
    ],
)
def test_line_says_why_a_stage_runs_or_not(digest: str, result: Result | None, expected: str) -> None:
    assert describe("peers", digest, result) == expected


def test_digest_is_of_names_contents_and_the_declaration() -> None:
    same = [digest_of("d", {"a": "1", "b": "2"}), digest_of("d", {"b": "2", "a": "1"})]
    others = [digest_of("e", {"a": "1", "b": "2"}), digest_of("d", {"a": "2", "b": "1"}), digest_of("d", {"a": "1"})]
    assert len({*same}) == 1
    assert len({*same, *others}) == 4


def test_figures_are_those_that_programs_print() -> None:
    tests = "created: 2/2 workers\n======= 190 passed, 1 skipped in 342.17s (0:05:42) ========\n"
    fuzz = "records  coverage        154 inputs, none failed\nhttp     coverage      1,083 inputs, none failed\n"
    assert figures_of([tests, fuzz]) == "190 passed, 1 skipped, 1,237 inputs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from worker.one import two\n", TWO),
        ("def test():\n    import worker.three\n", {"worker/__init__.py", "worker/three.py"}),
        ("argv = [python, '-m', 'worker.one.two']\n", TWO),
        ("argv = ['-m', 'simplu_worker']\n", WHOLE_WORKER),
        ("run('simplu-worker')\n", WHOLE_WORKER),
        ("NAME = 'simplu_worker'\n", set()),
        (
            "import simplu_local.start\n",
            WHOLE_WORKER | {"simplu_local/__init__.py", "simplu_local/start.py"},
        ),
        ("import_module(f'targets.{name}')\n", {"tests/targets/one.py"}),
        ("files('worker.one')\n", {"worker/__init__.py", "worker/one/__init__.py", "worker/one/query.sql"}),
        ("PAGE = ROOT / 'docs' / 'a.md'\n", {"docs/a.md"}),
        ("PAGES = ROOT / 'docs'\n", {"docs/a.md", "docs/b.md"}),
        ("PAGE = ROOT / 'docs' / name / 'a.md'\n", {"docs/a.md", "docs/b.md"}),
        ("'''See docs/a.md.'''\n", set()),
        ("async def test(server): ...\n", {"tests/support/servers.py"}),
        ("async def test(_own): ...\n", set()),
    ],
)
def test_file_covers_what_it_imports_starts_and_opens(text: str, expected: set[str]) -> None:
    files = SMALL | {"tests/a/test_b.py": text}
    assert Repository(files, files.__getitem__).closure(["tests/a/test_b.py"]) == IN_EACH | expected


def test_every_test_file_is_of_one_stage_or_runs_in_each_run() -> None:
    files = checkout_files()
    owners = Counter(path for stage in STAGES for path in files_of(stage, files))
    assert {path: count for path, count in owners.items() if count != 1} == {}
    assert {path for path in owners if not PurePosixPath(path).name.startswith("test_")} == set()
    patterns = {(stage.name, pattern) for stage in STAGES for pattern in stage.tests if pattern[0] != "!"}
    used = {(name, one) for name, one in patterns if files_of(Stage(name, (one,)), files)}
    assert patterns == used


@pytest.mark.slow(13)
def test_stage_covers_what_its_tests_import() -> None:
    files = repository().files
    for stage in STAGES:
        covered = covered_by(stage, repository())
        sources = {path for path in covered - {*ALWAYS} if path.endswith(".py") and not path.startswith(NOT_RUN)}
        places = {(path, place) for path in sources for place in places_imported(path) & files}
        assert {(path, place) for path, place in places if place not in covered} == set(), stage.name
        assert {*files_of(stage, sorted(files))} <= covered, stage.name


@cache
def places_imported(path: str) -> set[str]:
    """Return the places where the modules that a file imports may be."""
    nodes = [*ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in froms} | {f"{one.module}.{two.name}" for one in froms for two in one.names}
    places = {name.replace(".", "/") for name in names}
    return {f"{top}{place}{end}" for top in ("", "tests/") for place in places for end in (".py", "/__init__.py")}


@pytest.mark.slow
def test_site_covers_the_files_that_its_pages_show() -> None:
    site = next(stage for stage in STAGES if stage.name == "site")
    outside = {str(place).removeprefix("repository/") for place in stage_site(ROOT) if place.parts[0] == "repository"}
    covered = covered_by(site, repository())
    shown = {path if path in repository().files else path.removesuffix(".md") for path in outside}
    assert shown
    assert shown - covered == set()
