"""Variables, metrics, benchmarks and files in the code of a page are there: what a reader copies works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry.sdk import environment_variables
from support.exported_metrics import metric_names
from support.requires import ROOT

from simplu_worker.config.misspellings import KNOWN_VARIABLES

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
VARIABLE = re.compile(r"(?<![\w%$./-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b(?![./-])")
METRIC = re.compile(r"\bsimplu_[a-z_]+")
FILE = re.compile(r"(?<![\w./~-])(?:deploy|requirements|docs|tests|benchmarks)/[\w./@-]*[\w/]")
BENCHMARK = re.compile(r"run\.py bench ([a-z_]+)")
# Words that look like variables: of messages, of Kinesis and the KCL, of other programs; and places for a name.
OTHER_WORDS = {
    *(
        "SHARD_CREATION",
        "SHARD_DESTRUCTION",
        "ADMIN_ACCOUNT_CREATION",
        "UPDATE_RESOURCE_ID",
        "TRIM_HORIZON",
        "SHARD_END",
    ),
    *("SHARD_END", "CLIENT_VERSION_UPGRADE_FROM_2X", "CAPABILITY_IAM", "ON_ERROR_STOP", "RLIMIT_NOFILE"),
    *("REQUIRE_ALL", "SIMULATION_BUDGET_S", "STACK_INITIAL_DATA", "WRITE_PICTURES"),
    *("NAME_FILE", "REQUEST_ID"),
    *("AWS_CA_BUNDLE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"),
}
# Names that look like metrics: the package, and the schemas of an adoption.
OTHER_NAMES = {"simplu_worker", "simplu_local", "simplu_adoption", "simplu_adoption_log"}

OF_OPENTELEMETRY = {name for name in vars(environment_variables) if name.startswith("OTEL_")}

any_page = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)


def code_of(text: str) -> str:
    """Return the code of a page: its blocks, and what is between backticks in a line."""
    return "\n".join(re.findall(r"```.*?\n```|`[^`\n]+`", text, re.DOTALL))


def unknown_variables(text: str) -> set[str]:
    """Return the variables in the code of a page that the worker does not have."""
    return set(VARIABLE.findall(code_of(text))) - KNOWN_VARIABLES - OF_OPENTELEMETRY - OTHER_WORDS


def unknown_metrics(text: str) -> set[str]:
    """Return the metrics in the code of a page that the worker does not export, with or without their suffix."""
    series = metric_names()
    whole = series | {re.sub(r"_(?:bucket|sum|count|total)$", "", name) for name in series}
    return set(METRIC.findall(code_of(text))) - whole - OTHER_NAMES


def missing_files(text: str) -> set[str]:
    """Return the files of the repository that the commands of a page name and that are not there."""
    commands = "\n".join(re.findall(r"```sh\n.*?\n```", text, re.DOTALL))
    return {path for path in FILE.findall(commands) if not (ROOT / path).exists()}


def unknown_benchmarks(text: str) -> set[str]:
    """Return the benchmarks that a page names and that are not there."""
    folder = ROOT / "benchmarks"
    return {
        name
        for name in BENCHMARK.findall(code_of(text))
        if not ((folder / name).is_dir() or (folder / f"{name}.py").exists())
    }


@any_page
def test_names_in_the_code_of_a_page_exist(page: Path) -> None:
    """On each page; the changelog alone is history."""
    text = page.read_text(encoding="utf-8")
    assert unknown_variables(text) == set()
    assert unknown_metrics(text) == set()
    assert unknown_benchmarks(text) == set()
    assert missing_files(text) == set()


def test_names_that_do_not_exist_are_found() -> None:
    """The check above has teeth."""
    text = (
        "`KINESIS_STREM_NAME` `SHARD_CREATION` `$HTTP_PORT`\n`simplu_lag` `simplu_operations_total`\n"
        "```sh\ncp deploy/none.yaml requirements/worker.txt /etc/docs/x\nAPI_TOKN=x\n```\n"
    )
    assert unknown_variables(text) == {"KINESIS_STREM_NAME", "API_TOKN"}
    assert unknown_metrics(text) == {"simplu_lag"}
    assert missing_files(text) == {"deploy/none.yaml"}
    assert unknown_benchmarks("`python3 run.py bench none`, `run.py bench kcl`, `run.py bench scale`") == {"none"}


def test_words_that_are_no_variables_are_each_on_a_page() -> None:
    """An exception for a word that is gone would hide a variable that is misspelt so."""
    named = {word for page in PAGES for word in VARIABLE.findall(code_of(page.read_text(encoding="utf-8")))}
    assert named >= OTHER_WORDS
