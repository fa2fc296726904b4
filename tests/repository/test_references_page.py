"""docs/references.md has a row for what the reference texts state, and the tests that rows name exist."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import pytest
from support.requires import ROOT

PAGE: Final = ROOT / "docs" / "references.md"
TEXTS: Final = ("seed-000", "seed-001", "seed-002", "seed-003", "seed-004")
SHOWN: Final = {"works", "differs"}
OTHERS: Final = {"management server", "API server", "Citrus", "you"}
TEST: Final = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


class Row(NamedTuple):
    """A statement of a text, what is here (the words in bold), and how."""

    text: str
    statement: str
    here: str
    how: str


def rows() -> list[Row]:
    found = []
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        text = re.findall(r"\((seed-\d+)\)$", section.partition("\n")[0])[0]
        for line in re.findall(r"^\| (.+) \|$", section, flags=re.MULTILINE)[1:]:
            statement, here, how = (cell.strip() for cell in re.split(r" \|(?: |$)", line, maxsplit=2))
            found.append(Row(text, statement, here.strip("*"), how))
    return found


def test_table_has_rows_of_each_text_in_order() -> None:
    found = rows()
    assert tuple(dict.fromkeys(row.text for row in found)) == TEXTS
    assert len(found) > 100
    assert len({(row.text, row.statement) for row in found}) == len(found)
    explained = set(re.findall(r"\*\*([\w ]+)\*\*", PAGE.read_text(encoding="utf-8").partition("\n## ")[0]))
    assert {row.here for row in found} == SHOWN | OTHERS == explained


@pytest.mark.parametrize(("path", "name"), dict.fromkeys(TEST.findall(PAGE.read_text(encoding="utf-8"))))
def test_named_test_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
