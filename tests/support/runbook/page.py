"""A page of docs/runbook/ as steps that a test carries out: commands of its own text, and what they are to print.

A comment above each block of commands names its kind:

- `<!-- run -->`: run it once. It ends with status 0, or with that of `<!-- run: 1 -->`.
- `<!-- repeat -->`: run it until it ends with status 0 and prints what is expected.
- `<!-- elsewhere -->`: a program or a machine that no test has; each line has a stand-in.

A block of text below one of them has lines that its output contains, in this order; `…` in a line is any text. Lines
between them, frames of tables and repeated spaces make no difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

KINDS = ("run", "repeat", "elsewhere")
ANYTHING = "…"
_BLOCK = re.compile(
    r"(?ms)^(?:<!-- (?P<kind>\w+)(?:: (?P<status>\d+))? -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$"
)
_FRAME = re.compile(r"[\s│┃]+")


@dataclass(frozen=True, slots=True)
class Step:
    """One block of commands. *status* is its exit status; *expected* the lines to look for."""

    kind: str
    text: str
    status: int = 0
    expected: str = ""


def read_steps(page: Path) -> list[Step]:
    """Return the steps of *page*. Every block of commands has to be one: each is below a comment."""
    page_text = page.read_text(encoding="utf-8")
    steps: list[Step] = []
    for kind, status, language, text in _BLOCK.findall(page_text):
        if language == "text":
            last = steps.pop()
            assert not last.expected, f"{page.name}: expected one block of output for a block of commands"
            steps.append(Step(last.kind, last.text, last.status, text))
        else:
            assert kind in KINDS, f"{page.name}: expected one of {KINDS} above a block, got {kind!r}"
            steps.append(Step(kind, text, int(status or 0)))
    assert page_text.count("<!-- ") == len(steps), f"{page.name}: expected a block of commands below each comment"
    return steps


def lines_elsewhere(steps: list[Step]) -> set[str]:
    return {line for step in steps if step.kind == "elsewhere" for line in step.text.splitlines()}


def first_missing_line(expected: str, output: str) -> str | None:
    """Return the first line of *expected* that *output* does not contain after the lines before it; None if all are."""
    lines = iter([_plain(line) for line in output.splitlines()])
    for line in expected.splitlines():
        pattern = re.compile(".*".join(re.escape(_plain(part)) for part in line.split(ANYTHING)))
        if not any(pattern.search(one) for one in lines):
            return line
    return None


def _plain(line: str) -> str:
    return _FRAME.sub(" ", line).strip()
