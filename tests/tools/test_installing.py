"""docs/installing.md is true: its commands are run in a copy of the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.checkout import checkout_files, copy_files, newcomer_environment, run_lines
from support.imported_modules import NEEDS
from support.page_examples import page_examples
from support.requires import ROOT

from simplu_worker import __version__

PAGE = ROOT / "docs" / "installing.md"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLACE = "/opt/simplu-worker"  # where the page installs the wheel
WRONG_CONFIGURATION = 78


@pytest.mark.nightly
def test_commands_of_the_page_install_the_worker_and_remove_it(tmp_path: Path) -> None:
    checkout = copy_files(checkout_files(), tmp_path / "checkout")
    place = tmp_path / "place"
    environment = newcomer_environment(tmp_path / "bin")
    examples = page_examples(PAGE)
    output, problems = "", ""
    for what, _, text in examples:
        lines = text.replace(PLACE, str(place))
        match what:
            case "run":
                output += run_lines(lines, folder=checkout, environment=environment).stdout
            case "refused":
                done = run_lines(lines, folder=checkout, environment=environment, status=WRONG_CONFIGURATION)
                problems = done.stderr
            case "problems":
                assert problems == text
            case "systemd":
                pass  # tests/tools/test_systemd.py runs these
            case _:
                raise AssertionError(f"expected a known kind of example, got {what}")
    assert {example.what for example in examples} == {"run", "refused", "problems", "systemd"}
    assert output.splitlines().count(__version__) == 2
    assert "Usage: simplu-worker COMMAND" in output
    assert not place.exists()
    assert not (checkout / ".venv").exists()


def test_page_names_the_pythons_and_the_extras_of_the_project() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = re.search(r"Python ([\d., or]+) with", page)
    assert named is not None
    classified = re.findall(r"Python :: (\d\.\d+)", " ".join(PROJECT["classifiers"]))
    assert re.findall(r"\d\.\d+", named[1]) == classified
    extras = page.partition("| extra | for |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", extras, flags=re.MULTILINE) == list(PROJECT["optional-dependencies"])
    assert {*NEEDS, "local"} == PROJECT["optional-dependencies"].keys()
