"""The documentation site builds without a warning, every link leads somewhere, and nothing comes from another host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.requires import ROOT, required_program
from support.site.build import build, find_problems, site_files

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
def test_site_has_no_broken_link_and_loads_nothing_else(site: Path) -> None:
    assert find_problems(site) == []
