"""Write the lists of closed sets in docs/ from `simplu_worker.vocabulary`: `python -m support.vocabulary_lists`.

A list of bare words stands between `<!-- NameOfEnum -->` and `<!-- end -->`, and is made. Where each word has its own
explanation, `<!-- each NameOfEnum -->` stands in or directly above the row or table, which must name all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from support.requires import ROOT

from simplu_worker import vocabulary
from simplu_worker.status import words

_MADE: Final = re.compile(r"<!-- ([A-Z]\w+) -->(.*?)<!-- end -->", re.DOTALL)
_EACH: Final = re.compile(r"<!-- each (\w+) -->\n?")


def pages() -> list[Path]:
    texts = {page: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))}
    return [page for page, text in texts.items() if _MADE.search(text) or _EACH.search(text)]


def render_page(page: str) -> str:
    return _MADE.sub(lambda match: f"<!-- {match[1]} -->{_list(match[1])}<!-- end -->", page)


def unexplained(page: str) -> Iterator[str]:
    for match in _EACH.finditer(page):
        start = page.rfind("\n", 0, match.start()) + 1
        is_row = not match[0].endswith("\n")
        end = page.find("\n" if is_row else "\n\n", match.end())
        block = page[start : end if end >= 0 else len(page)]
        for word in _words(match[1]):
            if f"`{word}`" not in block:
                yield f"{match[1]}: {word}"


def _list(name: str) -> str:
    return ", ".join(f"`{word}`" for word in _words(name))


def _words(name: str) -> list[str]:
    found: type[StrEnum] = getattr(vocabulary, name, None) or getattr(words, name)
    return [word.value for word in found]


if __name__ == "__main__":
    for one in pages():
        one.write_text(render_page(one.read_text(encoding="utf-8")), encoding="utf-8")
