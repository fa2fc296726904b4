"""The examples of a page that a test takes out of it: blocks of code below a comment `<!-- what: name -->`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_EXAMPLE = re.compile(r"(?ms)^<!-- (?P<what>\w+): (?P<name>[^>]*?) -->\n```\w+\n(?P<text>.*?)^```$")


_MARK = re.compile(r"<!-- (?!end -->|each |[A-Z])")  # those of `support.vocabulary_lists` are none


class Example(NamedTuple):
    """A block of a page: *what* to do with it, such as to run it or to compare it, and with which name."""

    what: str
    name: str
    text: str


def page_examples(page: Path) -> list[Example]:
    """Return the examples of *page* in their order. Every other comment but for lists of words is an error."""
    text = page.read_text(encoding="utf-8")
    examples = [Example(**found.groupdict()) for found in _EXAMPLE.finditer(text)]
    assert len(examples) == len(_MARK.findall(text)), "expected a block of code below each comment"
    return examples
