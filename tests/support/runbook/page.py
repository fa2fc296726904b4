"""A page of docs/runbook/ as steps that a test carries out: commands of its own text, and what they are to print.

Three kinds of blocks of commands, each below a comment (`support/page_examples.py`):

- `<!-- run: 0 -->`: run it once; the number is its exit status.
- `<!-- repeat: 0 -->`: run it until it ends with that status and prints what is expected.
- `<!-- elsewhere: systemd -->`: a program or a machine that no test has; each line has a stand-in.

A block `<!-- expect: lines -->` below one of them has lines that its output contains, in this order; `…` in a line is
any text. Lines between them, frames of tables and repeated spaces make no difference.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from support.page_examples import page_examples

KINDS = ("run", "repeat", "elsewhere")
ANYTHING = "…"
_FRAME = re.compile(r"[\s│┃]+")
_STAND_IN_ROW = re.compile(r"(?m)^\| `([^`]+)` \| (\d+) \| (.+) \|$")


@dataclass(frozen=True, slots=True)
class Step:
    """One block of commands. *status* is its exit status; *expected* the lines to look for."""

    kind: str
    text: str
    status: int = 0
    expected: str = ""


def read_steps(page: Path) -> list[Step]:
    """Return the steps of *page*. Every block of commands has to be one: each is below a comment."""
    steps: list[Step] = []
    for what, name, text in page_examples(page):
        if what == "expect":
            last = steps.pop()
            assert not last.expected, f"{page.name}: expected one block of output for a block of commands"
            steps.append(Step(last.kind, last.text, last.status, text))
        else:
            assert what in KINDS, f"{page.name}: expected a block of {KINDS} or expect, got {what}"
            steps.append(Step(what, text, 0 if what == "elsewhere" else int(name)))
    commands = page.read_text(encoding="utf-8").count("```sh\n")
    assert commands == len(steps), f"{page.name}: expected a comment above each of {commands} blocks, got {len(steps)}"
    return steps


def lines_elsewhere(steps: list[Step]) -> Counter[str]:
    """Return how often each line occurs that a stand-in carries out."""
    return Counter(line for step in steps if step.kind == "elsewhere" for line in step.text.splitlines())


def read_stand_ins(page: Path) -> dict[str, tuple[int, str]]:
    """Return, from the table at the end of *page*, how often each line is not run, and what the test does instead."""
    rows = _STAND_IN_ROW.findall(page.read_text(encoding="utf-8"))
    return {line: (int(count), instead) for line, count, instead in rows}


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
