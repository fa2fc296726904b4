"""What people read names what is there: metrics, alerts, commands, files."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from fnmatch import filter as matching
from functools import cache
from pathlib import Path

import pytest
from support.requires import ROOT

from simplu_worker.cli import app

PACKAGE = ROOT / "simplu_worker"
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
COMMAND_PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("runbook/*.md"))]
ALWAYS_THERE = {"--help", "-h", "--version"}
TREES = ("simplu_worker", "simplu_local", "tests", "benchmarks", "deploy", "docs", "requirements")
PATH = re.compile(r"[\w*-][\w.*-]*(?:/[\w.*-]+)*(?:/|\.(?:cjs|html|md|py|service|sql|toml|txt|yaml))")
LONG_PAGE_LINES = 300
# Two screens of 1280 x 900: as a page of the site, with its picture, 3,100 characters take 1,540 pixels of the 1,800.
README_MAX_CHARACTERS, README_MAX_LINES = 3_500, 45
DOCS_URL = "https://docs.example.com/simplu-worker"  # users put their own in its place
PLACEHOLDER = "NNNN"  # in the name of a file that does not exist yet


def modules() -> list[Path]:
    """Return the files of the worker."""
    return sorted(PACKAGE.rglob("*.py"))


def headings(page: Path) -> list[str]:
    """Return the headings of *page*, code left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def anchor_of(heading: str) -> str:
    """Return the anchor that a heading has on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands_of(node: object, name: str = "") -> dict[str, set[str]]:
    """Return the options of every command that does something, by its words."""
    inner = [word for word in node if word not in ALWAYS_THERE]  # type: ignore[attr-defined]
    if inner:
        return {
            words: options
            for word in inner
            for words, options in commands_of(node[word], f"{name} {word}".strip()).items()  # type: ignore[index]
        }
    arguments = node.assemble_argument_collection()  # type: ignore[attr-defined]
    return {name: {option for argument in arguments for option in argument.names} | ALWAYS_THERE}


@cache
def program_commands() -> dict[str, set[str]]:
    """Return the options of every command of the program, by its words."""
    return commands_of(app)


def command_lines(page: Path) -> list[str]:
    """Return what follows `simplu-worker` wherever *page* shows a command line."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(
        r"\bsimplu-worker ([a-z][^\n`'|)<;…]*)", "\n".join(re.findall(r"```sh\n.*?```|`[^`\n]+`", text, re.DOTALL))
    )


@cache
def tree() -> list[str]:
    """Return the files and folders of the repository that pages may name, as paths from its root."""
    found = [path for name in TREES for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts)


def places_of(name: str, folders: Sequence[str]) -> list[str]:
    """Return the paths that *name* can mean on a page, after *folders* were named in the same paragraph.

    A path begins at the root or at `simplu_worker/`, is in one of *folders* or beside one, or is the end of exactly one
    path: in the package, or else in the rest of the tree.
    """
    begins = ["", "simplu_worker/", *(f"{folder}/" for folder in folders)]
    begins += [f"{folder.rpartition('/')[0]}/" for folder in folders if "/" in folder]
    for begin in begins:
        if found := matching(tree(), begin + name):
            return found
    ends = matching(tree(), f"*/{name}")
    own = [path for path in ends if path.startswith("simplu_worker/")]
    only = own or ends
    return only if len(only) == 1 or "*" in name else []


def unknown_paths(text: str) -> Iterator[str]:
    """Yield each path in *text*, a page, that is not in the tree."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n(?=\s*\n|\||\d+\. |- )", plain):
        folders: list[str] = []
        for quoted in re.findall(r"`([^`\n]+)`", paragraph):
            if PATH.fullmatch(quoted) and PLACEHOLDER not in quoted:
                places = places_of(quoted.rstrip("/"), folders)
                if not places:
                    yield quoted
                folders += [place for place in places if (ROOT / place).is_dir()]


def packages() -> list[str]:
    """Return every package of the worker, as its path from the root of the repository."""
    return sorted(path.parent.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("__init__.py"))


def unlisted_packages(page: str) -> list[str]:
    """Return the packages without a row in the table of folders, and without a name in the row of their parent."""
    rows = dict(re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", page, flags=re.MULTILINE))
    return [
        package
        for package in packages()
        if package not in rows and f"`{Path(package).name}/`" not in rows.get(Path(package).parent.as_posix(), "")
    ]


def drawing() -> str:
    """Return the drawing of the packages in docs/architecture.md."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return page.partition("\n## The packages\n")[2].split("```")[1]


def layers() -> dict[str, list[list[str]]]:
    """Return the layers of each package by import-linter's contracts, the upper ones first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    return {
        contract["containers"][0]: [layer.split(" | ") for layer in contract["layers"]]
        for contract in contracts
        if contract["type"] == "layers"
    }


def test_metrics_are_all_described() -> None:
    """docs/monitoring.md has every metric that is defined, and no other."""
    tree = ast.parse((PACKAGE / "metrics" / "instruments.py").read_text(encoding="utf-8"))
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    defined = {name for name in names if re.fullmatch(r"simplu_[a-z_]+", name)}
    described = set(re.findall(r"`(simplu_[a-z_]+)", (DOCS / "monitoring.md").read_text(encoding="utf-8")))
    assert described == defined


def test_alerts_have_a_runbook_each() -> None:
    """docs/monitoring.md has a section for each alert, and none for an alert that is gone."""
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    page = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    section = page.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, flags=re.MULTILINE) == re.findall(r"- alert: (\w+)", rules)


def source_of(path: str) -> Path:
    """Return the page from which the site's build makes *path*, an `.html`."""
    assert path.endswith(".html"), path
    page = DOCS / f"{path.removesuffix('.html')}.md"
    return page if page.exists() else page.with_name("README.md")


def test_runbook_urls_lead_to_pages_and_headings_that_exist() -> None:
    """The link of an alert ends at the heading of that alert."""
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    alerts = re.findall(r"- alert: (\w+)$.*?runbook_url: (\S+)$", rules, flags=re.MULTILINE | re.DOTALL)
    assert len(alerts) == rules.count("- alert: ")
    for alert, url in alerts:
        path, _, anchor = url.removeprefix(f"{DOCS_URL}/").partition("#")
        assert anchor in map(anchor_of, headings(source_of(path))), url
        assert anchor == alert.lower()


def test_links_of_dashboards_lead_to_pages_and_headings_that_exist() -> None:
    """Each panel leads to the heading that explains it."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "deploy" / "grafana").glob("*.json")]
    urls = {url for text in texts for url in re.findall(rf'"{DOCS_URL}/([^"]+)"', text)}
    assert len(urls) > 10
    for url in urls:
        path, _, anchor = url.partition("#")
        assert source_of(path).exists(), url
        assert not anchor or anchor in map(anchor_of, headings(source_of(path))), url


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda page: page.name)
def test_command_lines_name_commands_and_options_that_exist(page: Path) -> None:
    """What a newcomer copies works: each command and each option is the program's."""
    commands = program_commands()
    for line in command_lines(page):
        words = line.split()
        known = [words[:count] for count in (2, 1) if " ".join(words[:count]) in commands]
        assert known, f"no such command: simplu-worker {line}"
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= commands[" ".join(known[0])], f"simplu-worker {line}"


def test_page_of_commands_names_every_command() -> None:
    """A command that nobody finds is not there."""
    named = {" ".join(line.split()[:count]) for line in command_lines(DOCS / "commands.md") for count in (1, 2)}
    assert not program_commands().keys() - named


def test_glossary_has_the_words_of_the_field_that_names_are_made_of() -> None:
    """A reader who meets one of them finds its meaning; `CONTRIBUTING.md` has the list."""
    (rule,) = re.findall(
        r"(?ms)^- The field's word .*?: (.*?)\.\n- ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    )
    words = {" ".join(word.split()) for word in re.split("[,;]", rule)}
    words -= {word for word in words if word.startswith("as ")}
    rows = re.findall(r"(?m)^\| ([^|]+) \| .+ \|$", (DOCS / "glossary.md").read_text(encoding="utf-8"))[1:]
    assert len(words) > 10
    assert words - {*rows} == set()
    assert rows == sorted(rows, key=str.lower)


def test_readme_is_below_two_screens() -> None:
    """A reader decides by it: the problem, two commands that show and prove, a picture, links."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text) <= README_MAX_CHARACTERS
    assert text.count("\n") <= README_MAX_LINES
    places = [text.index(word) for word in ("`make demo`", "`make test`", "](docs/", "Citrus")]
    assert places == sorted(places)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    """Links within the repository are relative, and their files and anchors are there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in map(anchor_of, headings(target)), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_long_pages_begin_with_a_table_of_contents(page: Path) -> None:
    """A reader of over 300 lines finds each section from the top."""
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md" or text.count("\n") <= LONG_PAGE_LINES:
        return
    sections = re.findall(r"(?m)^## (.*)$", text)
    contents = text.partition("\n## ")[0]
    assert [title for title in sections if f"(#{anchor_of(title)})" not in contents] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_paths_that_are_named_exist(page: Path) -> None:
    """A module that moved or has another name is found by its path on the pages; only the changelog is history."""
    assert list(unknown_paths(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`shards/gateway.py`, `simplu_worker/cli.py`, `tests/unit/`, `ownership.py`", []),
        ("`shards/owed.py` and `lanes.py`", ["shards/owed.py", "lanes.py"]),
        ("`decode.py`", ["decode.py"]),
        ("`consumers/sqs/orders/`: `decode.py`; `control/`", []),
        ("`consumers/sqs/orders/`\n\n`handler.py`", ["handler.py"]),
        ("`test_pool_*.py`, `test_lanes_*.py`", ["test_lanes_*.py"]),
        ("`/status`, `asyncio.sleep`, `a/b`, `NNNN_name.sql`", []),
    ],
)
def test_unknown_paths_are_those_that_lead_to_no_file_or_to_several(text: str, expected: list[str]) -> None:
    """A short path is in a folder of its paragraph, or leads to one file only."""
    assert list(unknown_paths(text)) == expected


def test_methods_that_are_named_exist() -> None:
    """`Class.method` on the pages for maintainers is in the package."""
    methods = {
        (node.name, one.name)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for one in node.body
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = {
        match
        for page in [ROOT / "CONTRIBUTING.md", DOCS / "architecture.md", *(DOCS / "adr").iterdir()]
        for match in re.findall(r"`([A-Z][a-z][A-Za-z]+)\.([a-z_]+)`", page.read_text(encoding="utf-8"))
    }
    assert named
    assert not named - methods


def test_contributing_lists_every_package() -> None:
    """Each package has a row in the table of folders, or its name in the row of its parent."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert unlisted_packages(page) == []
    assert unlisted_packages(page.replace("`leases/`", "")) == ["simplu_worker/consumers/kinesis/leases"]


def test_drawing_of_the_packages_has_the_layers_that_import_linter_keeps() -> None:
    """The packages stand below each other in the order of the contracts, and those within a package on one line."""
    text = drawing()
    inner = layers()
    drawn = [re.findall(r"\b(\w+)(?:/|\.py)", line) for line in text.partition(" simplu_local/")[0].splitlines()]
    assert [sorted(names) for names in drawn if names] == [sorted(layer) for layer in inner.pop("simplu_worker")]
    for container, order in inner.items():
        line = " ► ".join(", ".join(layer) for layer in order)
        assert f"{container.rpartition('.')[2]}: {line}\n" in text


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    """`make X` is a target, and run.py knows it too, for those without make."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    script = (ROOT / "run.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in script for name in re.findall(r"run\.py ([a-z]+)", text))


def test_images_are_used_and_have_a_text() -> None:
    """Every picture is shown somewhere, with words for those who do not see it."""
    shown = {
        (page.parent / path).resolve()
        for page in PAGES
        for words, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        if words
    }
    assert shown == {path.resolve() for path in (DOCS / "images").iterdir()}
