from __future__ import annotations

from support.configuration_page import AREAS, PAGE, render_page

from simplu_worker.config.settings import VARIABLES


def test_page_in_the_repository_is_the_generated_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render_page(page) == page


def test_page_has_every_variable_and_every_area_once() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(VARIABLES)
    assert [row for row in rows if not row.endswith(". |")] == []
    assert [line for line in lines if line.startswith("## ")] == [f"## {area}" for area in AREAS.values()]
