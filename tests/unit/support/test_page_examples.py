"""The examples that tests take out of pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.page_examples import Example, page_examples


def test_examples_are_the_blocks_below_a_mark(tmp_path: Path) -> None:
    """In their order, without the blocks that have none."""
    page = tmp_path / "page.md"
    page.write_text("<!-- run: a b -->\n```sh\none\ntwo\n```\n\n```sh\nthree\n```\n\n<!-- shows: c -->\n```text\n```\n")
    assert page_examples(page) == [Example("run", "a b", "one\ntwo\n"), Example("shows", "c", "")]


def test_mark_without_a_block_fails(tmp_path: Path) -> None:
    """A mark that a blank line separates from its block would leave the example out."""
    page = tmp_path / "page.md"
    page.write_text("<!-- run: a -->\n\n```sh\none\n```\n")
    with pytest.raises(AssertionError, match="below each comment"):
        page_examples(page)
