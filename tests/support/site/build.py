"""`python -m support.site.build [--pictures]`: build the documentation site into site/, and check it.

The generator gets a copy of docs/, and beside it the files of the repository that its pages link to: pages as pages,
any other file as a page with its text. So every link of the site leads to a page of the site, and none to another host.
docs/architecture.md and docs/adr/ are for maintainers, and files of the repository like any other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from support.browser.chromium import PHONE_WIDTH, BrowserTab, Scheme, open_browser
from support.requires import ROOT, TOOLS

LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
FILE_NAME = re.compile(r"[\w./-]+\.md")
LANGUAGES = {".yaml": "yaml", ".service": "ini", ".toml": "toml", ".sql": "sql", ".py": "python"}
OUTSIDE = "repository"  # the folder of what is not a page of the site by itself
FOR_MAINTAINERS = {PurePosixPath("docs/adr"), PurePosixPath("docs/architecture.md")}
FENCE = "````"  # longer than any in the files
# Elements and attributes that a browser loads or follows at once, without a click.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


# What the theme loads from another host, so that the search works from files; ours takes its place.
FOREIGN_WORKER = "https://unpkg.com/iframe-worker/shim"
OWN_WORKER = Path(__file__).with_name("file_worker.js")


class Staged(dict[PurePosixPath, bytes]):
    """The files for the generator, by their path in its folder."""


def stage(root: Path) -> Staged:
    """Return the files of docs/ below *root*, and those that its pages link to, with their links changed."""
    staged = Staged()
    waiting = site_files(root)
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if path.suffix != ".md":
            place = staged_path(root, path)
            staged[place] = path.read_bytes() if place.suffix != ".md" else page_of_file(root, path).encode()
            continue
        text = path.read_text(encoding="utf-8")
        more = [target for target in linked_files(path, text) if target not in seen]
        seen.update(more)
        waiting += more
        staged[staged_path(root, path)] = change_links(root, path, text).encode()
    return staged


def site_files(root: Path) -> list[Path]:
    """Return the files that are in the site whether a page links to them or not."""
    files = [path for path in sorted((root / "docs").rglob("*")) if path.is_file()]
    return [path for path in files if staged_path(root, path).parts[0] != OUTSIDE]


def staged_path(root: Path, path: Path) -> PurePosixPath:
    """Return the place of a file of the repository: outside of docs/, and for maintainers, all are pages."""
    relative = PurePosixPath(path.relative_to(root).as_posix())
    if relative.parts[0] == "docs" and FOR_MAINTAINERS.isdisjoint([relative, *relative.parents]):
        return relative.relative_to("docs")
    return PurePosixPath(OUTSIDE) / (relative if relative.suffix == ".md" else f"{relative}.md")


def linked_files(page: Path, text: str) -> Iterator[Path]:
    for match in LINK.finditer(text):
        if match["path"] and not urlsplit(match["path"]).scheme:
            yield (page.parent / match["path"]).resolve()


def change_links(root: Path, page: Path, text: str) -> str:
    """Return *text*, of *page*, with links to the places of the staged files; a file name becomes the heading there."""
    folder = staged_path(root, page).parent

    def change(match: re.Match[str]) -> str:
        if not match["path"] or urlsplit(match["path"]).scheme:
            return match[0]
        target = (page.parent / match["path"]).resolve()
        place = os.path.relpath(staged_path(root, target), folder)
        anchor = (match["anchor"] or "").removeprefix("#")
        words = heading_of(target, anchor) if FILE_NAME.fullmatch(match["text"]) else match["text"]
        return f"[{words}]({place}{match['anchor'] or ''})"

    return LINK.sub(change, text)


def heading_of(page: Path, anchor: str) -> str:
    headings: list[str] = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return headings[slugs.index(anchor) if anchor in slugs else 0]


def page_of_file(root: Path, path: Path) -> str:
    name = path.relative_to(root).as_posix()
    language = LANGUAGES.get(path.suffix, "text")
    return f"# {name}\n\n{FENCE}{language}\n{path.read_text(encoding='utf-8').rstrip()}\n{FENCE}\n"


def build(root: Path, work: Path, site: Path) -> None:
    """Build the site of *root* into *site*, strictly, with files in *work*. Raises CalledProcessError."""
    shutil.rmtree(work, ignore_errors=True)
    source = work / "source"
    for place, content in stage(root).items():
        path = source / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    text = (root / "mkdocs.yml").read_text(encoding="utf-8")
    config = work / "mkdocs.yml"
    config.write_text(text.replace("\ndocs_dir: docs\n", "\ndocs_dir: source\n"), encoding="utf-8")
    env = {**os.environ, "NO_COLOR": "1"}
    subprocess.run(
        [TOOLS / "zensical", "build", "--strict", "--clean", "--config-file", config], check=True, cwd=work, env=env
    )
    use_own_worker(work / "site")
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(work / "site", site)


def use_own_worker(site: Path) -> None:
    script = site / "assets" / "javascripts" / OWN_WORKER.name
    shutil.copy(OWN_WORKER, script)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(FOREIGN_WORKER, os.path.relpath(script, page.parent)), encoding="utf-8")


class _PageReader(HTMLParser):
    """Collects the ids of a page, its links, and the addresses that a browser loads for it."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") != "canonical":
            self.loaded.append(given[LOADED[tag]])


def find_problems(site: Path) -> list[str]:
    """Return the links of the site without a target, and the addresses of other hosts that a page loads."""
    pages: dict[Path, _PageReader] = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = _PageReader()
        pages[path].feed(path.read_text(encoding="utf-8"))
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        problems += [f"{name} loads {address}" for address in page.loaded if urlsplit(address).netloc]
        if name != "404.html":  # its links are absolute: it is shown for any address
            problems += [
                f"{name} links to {link}" for link in page.links + page.loaded if not _leads(path, link, pages)
            ]
    return problems


def _leads(page: Path, link: str, pages: Mapping[Path, _PageReader]) -> bool:
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return True
    target = (page.parent / unquote(url.path)).resolve() if url.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return False
    fragment = unquote(url.fragment)
    return not fragment or target not in pages or fragment in pages[target].ids | {"__skip"}


def pages_of_docs(site: Path) -> list[Path]:
    """Return the pages of the site that are in docs/: not the one of errors, which needs a server for its style."""
    pages = [path for path in sorted(site.rglob("*.html")) if OUTSIDE not in path.relative_to(site).parts]
    return [path for path in pages if path.name != "404.html"]


# The site as a reader sees it: each page in a real Chromium, from files, in two widths and in light and dark.
WIDE = 1280
LOCAL = ("file:", "data:", "blob:", "about:")
BACKGROUNDS = {"light": "default", "dark": "slate"}  # the theme's names


class Look(NamedTuple):
    """A window of *width* CSS pixels, and the colours of the reader's system."""

    width: int
    scheme: Scheme

    @property
    def name(self) -> str:
        return f"{self.width}-{self.scheme}"


LOOKS = (Look(PHONE_WIDTH, "light"), Look(PHONE_WIDTH, "dark"), Look(WIDE, "light"), Look(WIDE, "dark"))
# What is wider than the window has to be in an element that scrolls: the page itself never does sideways. A phone makes
# its window (innerWidth) as wide as such a page.
OUTSIDE_OF_WINDOW = """(width) => {
    const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const isReached = (element) => {
        for (let outer = element.parentElement; outer; outer = outer.parentElement) if (scrolls(outer)) return true;
        return false;
    };
    const wide = [...document.querySelectorAll("article *")]
        .filter((element) => element.getBoundingClientRect().width > 0)
        .filter((element) => element.getBoundingClientRect().right > width + 1 && !isReached(element));
    const names = wide.map((element) => `${element.tagName} ${element.textContent.trim().slice(0, 40)}`);
    if (document.documentElement.scrollWidth > width) names.push("the page");
    return names.slice(0, 3);
}"""
SCHEME = "document.body.dataset.mdColorScheme"
BROKEN_IMAGES = "[...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)"


async def find_faults(tab: BrowserTab, page: Path, look: Look) -> list[str]:
    await tab.show_as(*look)
    tab.faults.clear()
    tab.requests.clear()
    await tab.visit(page.as_uri())
    outside = await tab.evaluate(f"({OUTSIDE_OF_WINDOW})({look.width})")
    faults = [f"outside of the window: {name}" for name in outside]
    faults += [f"not shown: {source}" for source in await tab.evaluate(BROKEN_IMAGES)]
    faults += [f"asks another host: {url}" for url in tab.requests if not url.startswith(LOCAL)]
    if (shown := await tab.evaluate(SCHEME)) not in {BACKGROUNDS[look.scheme], None}:
        faults.append(f"expected the colours {BACKGROUNDS[look.scheme]}, got {shown}")
    return faults + tab.faults


async def look_at(pages: list[Path], site: Path, folder: Path) -> list[str]:
    """Open each page in a browser, in each look; keep its pictures in *folder*, and return what is wrong."""
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as files:
        async with open_browser(Path(files)) as tab:
            for look in LOOKS:
                for page in pages:
                    found = await find_faults(tab, page, look)
                    faults += [f"{page.relative_to(site)}, {look.name}: {fault}" for fault in found]
                    picture = folder / look.name / page.relative_to(site).with_suffix(".webp")
                    picture.parent.mkdir(parents=True, exist_ok=True)
                    picture.write_bytes(await tab.take_picture())
    return faults


def main() -> None:
    """Build and check; end with status 1 and every problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="look at each page in a Chromium, and keep pictures")
    arguments = parser.parse_args()
    site = ROOT / "site"
    try:
        build(ROOT, ROOT / ".site", site)
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)
    problems = find_problems(site)
    if arguments.pictures:
        folder = ROOT / ".site" / "pictures"
        try:
            problems += asyncio.run(look_at(pages_of_docs(site), site, folder))
        except pytest.skip.Exception as missing:
            sys.exit(str(missing))
        print(f"{folder}: the pages in {', '.join(look.name for look in LOOKS)}")  # noqa: T201
    for problem in problems:
        print(problem, file=sys.stderr)  # noqa: T201
    print(f"{site / 'index.html'}: {len(problems)} problems")  # noqa: T201
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
