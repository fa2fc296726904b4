"""What people read names what is there: metrics, alerts, commands, files."""

from __future__ import annotations

import re
import subprocess
from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml
from support.commands_page import PAGE, program_commands, render_page
from support.requires import ROOT

from simplu_worker.status import problems
from simplu_worker.status.causes import CAUSES, HELD
from simplu_worker.status.words import ProblemCause, Severity
from simplu_worker.vocabulary import CitrusEndpoint, HoldReason

PACKAGE = ROOT / "simplu_worker"
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), ROOT / "benchmarks" / "NOTES.md", ROOT / "tests" / "README.md", *DOCS.rglob("*.md")]
)
COMMAND_PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("runbook/*.md"))]
ALWAYS_THERE = {"--help", "-h", "--version"}
DOCS_URL = "https://docs.example.com/simplu-worker"  # users put their own in its place


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def command_lines(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(
        r"\bsimplu-worker ([a-z][^\n`'|)<;…]*)", "\n".join(re.findall(r"```sh\n.*?```|`[^`\n]+`", text, re.DOTALL))
    )


def test_alerts_have_a_runbook_each() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    page = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    section = page.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, flags=re.MULTILINE) == re.findall(r"- alert: (\w+)", rules)


def source_of(path: str) -> Path:
    assert path.endswith(".html"), path
    page = DOCS / f"{path.removesuffix('.html')}.md"
    return page if page.exists() else page.with_name("README.md")


def test_runbook_urls_lead_to_pages_and_headings_that_exist() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    alerts = re.findall(r"- alert: (\w+)$.*?runbook_url: (\S+)$", rules, flags=re.MULTILINE | re.DOTALL)
    assert len(alerts) == rules.count("- alert: ")
    for alert, url in alerts:
        path, _, anchor = url.removeprefix(f"{DOCS_URL}/").partition("#")
        assert anchor in map(anchor_of, headings(source_of(path))), url
        assert anchor == alert.lower()


def test_causes_lead_to_headings_that_exist() -> None:
    for cause in (*CAUSES.values(), *HELD.values()):
        path, _, anchor = cause.runbook.partition("#")
        assert not anchor or anchor in map(anchor_of, headings(ROOT / path)), cause.runbook


def test_links_of_dashboards_lead_to_headings_that_exist() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "deploy" / "grafana").glob("*.json")]
    urls = {url for text in texts for url in re.findall(rf'"{DOCS_URL}/([^"]+)"', text)}
    assert len(urls) > 10
    for url in urls:
        path, _, anchor = url.partition("#")
        assert source_of(path).exists(), url
        assert not anchor or anchor in map(anchor_of, headings(source_of(path))), url


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda page: page.name)
def test_command_lines_name_commands_and_options_that_exist(page: Path) -> None:
    commands = {command.words: {*command.options, *ALWAYS_THERE} for command in program_commands()}
    for line in command_lines(page):
        words = line.split()
        known = [words[:count] for count in (2, 1) if " ".join(words[:count]) in commands]
        assert known, f"no such command: simplu-worker {line}"
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= commands[" ".join(known[0])], f"simplu-worker {line}"


def test_page_describes_every_request_to_the_shard_manager() -> None:
    page = (DOCS / "shard-manager.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| `[A-Z]+ /api/", page, flags=re.MULTILINE)) == len(CitrusEndpoint)


def test_page_of_commands_is_the_generated_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render_page(page) == page


def test_table_has_every_command_that_plans_first() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Commands that change data\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.+?`) \| .+ \|$", section, flags=re.MULTILINE)
    named = {re.sub(r" --.*", "", name) for cell in cells for name in re.findall(r"`([a-z -]+)`", cell)}
    commands = program_commands()
    assert named == {command.words for command in commands if "--apply" in command.options}
    assert not [command for command in commands if {"--dry-run", "--yes"} & set(command.options)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in map(anchor_of, headings(target)), link


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    script = (ROOT / "run.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in script for name in re.findall(r"run\.py ([a-z]+)", text))


def test_images_are_used_and_have_a_text() -> None:
    shown = {
        (page.parent / path).resolve()
        for page in PAGES
        for words, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        if words
    }
    assert shown == {path.resolve() for path in (DOCS / "images").iterdir()}


@pytest.mark.parametrize("name", ["demo.svg", "fleet.svg", "status-1280-light.webp"])
def test_recorded_pictures_are_younger_than_half_a_year(name: str) -> None:
    """Record them anew: `cd tests && ../.venv/bin/python -m support.pictures`; that of the page as its head says."""

    def last_change(*paths: str) -> date:
        command = ["git", "log", "-1", "--format=%as", "HEAD", "--", *paths]
        return date.fromisoformat(
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        )

    assert last_change() - last_change(f"docs/images/{name}") < timedelta(days=180)


(GROUP,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
SEVERITIES = {rule["alert"]: rule["labels"]["severity"] for rule in GROUP["rules"]}
ALL = [*CAUSES.values(), *HELD.values()]
WITHOUT_CAUSE = {"WorkerAbsent"}  # no replica is there to tell it


def test_every_cause_and_reason_has_words() -> None:
    assert (set(CAUSES), set(HELD)) == (set(ProblemCause), set(HoldReason))


def test_alerts_are_as_bad_as_their_causes() -> None:
    told = [one for one in ALL if one.alerts]
    assert [one.alerts for one in told if SEVERITIES[one.alerts[0]] != one.severity] == []
    assert {name for one in told for name in one.alerts} <= SEVERITIES.keys()
    assert [key for key, one in CAUSES.items() if one.severity is Severity.CRITICAL and not one.alerts] == []


def test_critical_alerts_are_causes_that_the_page_shows() -> None:
    told = {name for one in ALL for name in one.alerts}
    assert {name for name, severity in SEVERITIES.items() if severity == "critical"} - told == WITHOUT_CAUSE


def test_thresholds_of_page_and_alerts_agree() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in GROUP["rules"]}
    for alert, most in (
        ("NearRetention", problems.NEAR_RATIO),
        ("CertificateExpires", problems.CERTIFICATE_LEFT.total_seconds()),
        ("FeedBehind", problems.FEED_BEHIND_S),
        ("MoveStandsStill", problems.MOVE_STANDS.total_seconds()),
    ):
        numbers = [float(one) for one in re.findall(r"[<>] ([0-9.]+)", rules[alert])]
        assert most in numbers, alert
