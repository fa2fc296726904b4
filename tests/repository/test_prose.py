"""Plain English in the package: docstrings, comments, messages and the page hold none of the banned marks."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.requires import ROOT

PACKAGE = ROOT / "simplu_worker"
# Their SHA-256 is stored on every shard: a changed comment would ask every shard for an upgrade.
UNCHANGEABLE = (PACKAGE / "shards" / "sql" / "migrations", PACKAGE / "shards" / "sql" / "business_types")
MARKS = {
    "a program does not speak: it contains, returns, reports": r"tell|tells|telling|told|say|says|saying|said",
    "the subject is a thing with a name": r"who|whoever|whom|whomever|whose|nobody|somebody|anybody|everybody"
    r"|no one|someone|anyone|everyone",
    "a noun in place of a clause": r"what(?:ever)? (?:is|was|are|were|has|have|had|it|they|there|came|comes|goes|went"
    r"|can|could|does|did|will|would|belongs|stands|stays|remains)",
    "the field's word": r"owe|owes|owed|owing|in hand|anew|let go|lets go|letting go|at work|fares|faring|amiss"
    r"|by itself|by themselves|meanwhile|lives|for ever|leave word|last word",
}
PATTERN = re.compile("|".join(rf"\b(?:{words})\b" for words in MARKS.values()), re.IGNORECASE)
CODE = re.compile(r"`[^`]*`")
WORD = re.compile(r"[A-Za-z]{2,}")
# Texts that may hold a mark, by file: the part around it, and why.
ALLOWED: dict[str, dict[str, str]] = {}


def python_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment, and of each string constant of three words or more."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(WORD.findall(node.value)) > 2:
            yield node.lineno, node.value


def sql_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        _, mark, comment = line.partition("--")
        if mark:
            yield number, comment


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of everything in a file that people read."""
    if path.suffix == ".py":
        yield from python_texts(path)
    elif path.suffix == ".sql":
        yield from sql_texts(path)
    else:
        yield 1, path.read_text(encoding="utf-8")


def marks_in(path: Path) -> Iterator[str]:
    """Yield each mark in a file that is not allowed there, with its line."""
    allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix(), {})
    for line, text in texts_of(path):
        plain = CODE.sub("``", text)
        for match in PATTERN.finditer(plain):
            around = plain[max(0, match.start() - 40) : match.end() + 40]
            if not any(part in around for part in allowed):
                yield f"line {line + plain[: match.start()].count(chr(10))}: {match[0]!r} in {around!r}"


FILES = sorted(
    path
    for suffix in ("py", "sql", "html", "js")
    for path in PACKAGE.rglob(f"*.{suffix}")
    if not any(path.is_relative_to(folder) for folder in UNCHANGEABLE)
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_text_is_plain_english(path: Path) -> None:
    """CONTRIBUTING, "Plain English": a named subject, a noun in place of a clause, the field's word."""
    assert list(marks_in(path)) == []


def test_every_exception_is_needed() -> None:
    """An allowed text that is gone leaves the list."""
    unneeded = [
        (name, part)
        for name, parts in ALLOWED.items()
        for part in parts
        if not any(part in CODE.sub("``", text) for _, text in texts_of(PACKAGE / name))
    ]
    assert unneeded == []
