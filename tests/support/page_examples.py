"""The examples of a page that a test takes out of it: blocks of code below a comment `<!-- what: name -->`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

_LIST_OF_WORDS: Final = re.compile(r"<!-- (?:[A-Z]\w+|end|each \w+) -->")  # support.vocabulary_lists
_EXAMPLE = re.compile(r"(?ms)^<!-- (?P<what>\w+): (?P<name>[^>]*?) -->\n```\w+\n(?P<text>.*?)^```$")


class Example(NamedTuple):
    """A block of a page: *what* to do with it, such as to run it or to compare it, and with which name."""

    what: str
    name: str
    text: str


def page_examples(page: Path) -> list[Example]:
    """Return the examples of *page* in their order. Any other comment is an error, but for those of lists of words."""
    text = page.read_text(encoding="utf-8")
    examples = [Example(**found.groupdict()) for found in _EXAMPLE.finditer(text)]
    comment_count = text.count("<!-- ") - len(_LIST_OF_WORDS.findall(text))
    assert len(examples) == comment_count, "expected a block of code below each comment"
    return examples
