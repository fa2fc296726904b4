"""The pages of docs/runbook/ as a test reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runbook.page import Step, first_missing_line, lines_elsewhere, read_stand_ins, read_steps

PAGE = """# Title

<!-- run: 1 -->
```sh
one
```

<!-- expect: lines -->
```text
a … b
```

<!-- elsewhere: systemd -->
```sh
systemctl stop x
```

| command | times | instead |
|---|---|---|
| `systemctl stop x` | 1 | stops it |
"""
TABLE = "┏━━┓\n│ db-1 │ lost    │\n│ db-2 │ healthy │\n"


def page_of(folder: Path, text: str) -> Path:
    """Return a page with *text*."""
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_steps_are_the_blocks_of_commands_with_the_output_below(tmp_path: Path) -> None:
    """In order; a block without its own output has none, and lines of another machine are counted."""
    page = page_of(tmp_path, PAGE)
    steps = read_steps(page)
    assert steps == [Step("run", "one\n", 1, "a … b\n"), Step("elsewhere", "systemctl stop x\n")]
    assert lines_elsewhere(steps) == {"systemctl stop x": 1}
    assert read_stand_ins(page) == {"systemctl stop x": (1, "stops it")}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```sh\none\n```\n", "expected a comment above each of 1 blocks, got 0"),
        ("<!-- skip: 0 -->\n```sh\none\n```\n", "got skip"),
        (
            PAGE.replace("elsewhere: systemd", "expect: lines").replace("```sh\nsys", "```text\nsys"),
            "one block of output",
        ),
    ],
)
def test_page_is_refused_when_a_block_would_not_be_carried_out(tmp_path: Path, text: str, problem: str) -> None:
    """A block without a mark, with an unknown one, or an output that replaces another."""
    with pytest.raises(AssertionError, match=problem):
        read_steps(page_of(tmp_path, text))


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        ("db-1 │ lost\n│ db-2 │ healthy │", None),
        ("│ db-… │ …thy │", None),
        ("", None),
        ("│ db-2 │ healthy │\n│ db-1 │ lost │", "│ db-1 │ lost │"),
        ("│ db-1 │ healthy │", "│ db-1 │ healthy │"),
        ("db-1\ndb-1", "db-1"),
        ("db-.", "db-."),
    ],
)
def test_first_missing_line_is_the_first_that_the_output_lacks(expected: str, missing: str | None) -> None:
    """In order, each line of the output for one; spaces and frames make no difference, and only … is a pattern."""
    assert first_missing_line(expected, TABLE) == missing
