"""The documentation site builds without a warning, every link leads somewhere, and nothing comes from another host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest
from support.browser.chromium import open_browser
from support.requires import ROOT, required_program
from support.site.build import (
    build,
    change_links,
    find_problems,
    linked_files,
    page_of_file,
    pages_of_docs,
    site_files,
    stage,
    staged_path,
)
from support.site.look import LOCAL, LOOKS, WIDE, find_faults

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    required_program("zensical", how="python3 run.py tools")
    folder = tmp_path_factory.mktemp("site")
    build(ROOT, folder / "work", folder / "site")
    return folder / "site"


def pages_of_site() -> list[Path]:
    return [path for path in site_files(ROOT) if path.suffix == ".md"]


def test_navigation_has_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in pages_of_site())


@pytest.mark.slow(8)
def test_site_has_no_broken_link_and_loads_nothing_from_elsewhere(site: Path) -> None:
    assert find_problems(site) == []


@pytest.mark.slow(1)
def test_search_works_from_files(site: Path) -> None:
    text = (site / "search.js").read_text(encoding="utf-8")
    items = json.loads(text.partition("=")[2].strip().rstrip(";"))["items"]
    found = {item["location"].partition("#")[0] for item in items}
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in pages_of_site()}
    assert {page.replace("README", "index") for page in pages} <= found
    workers = [
        re.findall(r'src="([^"]*file_worker\.js)"', page.read_text(encoding="utf-8")) for page in site.rglob("*.html")
    ]
    assert {len(one) for one in workers} == {1}


# The search is a dialog in a shadow tree, which the theme makes at the first click.
RESULTS = """[...document.querySelectorAll("*")].flatMap((element) =>
    [...(element.shadowRoot?.querySelectorAll("[role=option]") ?? [])].map((one) => one.href))"""


def without_word(word: str, paths: Iterable[str]) -> list[str]:
    return [path for path in paths if word not in Path(path).read_text(encoding="utf-8").lower()]


@pytest.mark.slow(4)
async def test_person_finds_a_page_by_the_search_without_a_server(site: Path, tmp_path: Path) -> None:
    async with open_browser(tmp_path) as tab:
        await tab.visit((site / "index.html").as_uri())
        await tab.evaluate("document.querySelector('.md-search__button').click()")
        await tab.wait_for("[...document.querySelectorAll('*')].some((element) => element.shadowRoot?.activeElement)")
        await tab.type("fencing")
        await tab.wait_for(f"({RESULTS}).length")
        addresses = await tab.evaluate(RESULTS)
        found = {urlsplit(address).path: address for address in addresses}
        assert without_word("fencing", found) == []
        assert str(site / "glossary.html") in found
        await tab.visit(found[str(site / "glossary.html")])
        assert "fencing token" in await tab.evaluate("document.body.innerText")
        assert (tab.faults, [url for url in tab.requests if not url.startswith(LOCAL)]) == ([], [])


@pytest.mark.slow(10)
async def test_pages_fit_a_phone_and_follow_the_colours_of_the_system(site: Path, tmp_path: Path) -> None:
    phone = next(look for look in LOOKS if look.width < WIDE)
    async with open_browser(tmp_path) as tab:
        # To read the index of the search takes longer than all that is looked at here.
        await tab.call("Network.setBlockedURLs", urls=["*search.js", "*file_worker.js"])
        pages = [page for page in pages_of_docs(site) if page.parent == site]  # those of the folders have less in them
        faults = {page.name: found for page in pages if (found := await find_faults(tab, page, phone))}
        faults |= {look.name: await find_faults(tab, site / "concepts.html", look) for look in LOOKS}
    assert faults == {look.name: [] for look in LOOKS}


def test_files_outside_of_docs_become_pages(tmp_path: Path) -> None:
    for name, text in {
        "docs/a/b.md": "# B\n[c.md](../c.md#part-2) [c.md](../c.md) [C](../c.md) [no](../../R.md)"
        " [f](../../deploy/f.yaml) [here](#y) [web](https://example.org/x.md)",
        "docs/c.md": "# The C\n## Part 2!\n",
        "docs/adr/1.md": "# One\n[c](../c.md) [2](2.md)",
        "docs/adr/2.md": "# Two\n",
        "docs/adr/3.md": "# Three, without a link\n",
        "R.md": "# R\n[d](docs/c.md) [1](docs/adr/1.md)",
        "deploy/f.yaml": "key: 1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    staged = {str(place): content.decode() for place, content in stage(tmp_path).items()}
    assert staged == {
        "a/b.md": "# B\n[Part 2!](../c.md#part-2) [The C](../c.md) [C](../c.md) [no](../repository/R.md)"
        " [f](../repository/deploy/f.yaml.md) [here](#y) [web](https://example.org/x.md)",
        "c.md": "# The C\n## Part 2!\n",
        "repository/R.md": "# R\n[d](../c.md) [1](docs/adr/1.md)",
        "repository/docs/adr/1.md": "# One\n[c](../../../c.md) [2](2.md)",
        "repository/docs/adr/2.md": "# Two\n",
        "repository/deploy/f.yaml.md": "# deploy/f.yaml\n\n````yaml\nkey: 1\n````\n",
    }
    page = tmp_path / "docs" / "a" / "b.md"
    assert len(list(linked_files(page, page.read_text()))) == 5
    assert staged_path(tmp_path, page) == PurePosixPath("a/b.md")
    assert change_links(tmp_path, page, "no link") == "no link"
    assert page_of_file(tmp_path, tmp_path / "deploy" / "f.yaml").startswith("# deploy/f.yaml\n")
