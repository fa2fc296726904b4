"""The lists of closed sets in docs/ are those of the vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.vocabulary_lists import pages, render_page, unexplained


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_lists_are_made_from_the_vocabulary(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert render_page(page) == page
    assert list(unexplained(page)) == []
