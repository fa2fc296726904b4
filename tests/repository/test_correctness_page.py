"""docs/correctness.md has the figures of the runs."""

from __future__ import annotations

from support.correctness_page import PAGE, SAFE, SUBJECTS, WRONG, render


def test_figures_of_the_page_are_those_of_the_runs() -> None:
    """`python -m support.correctness_page` in tests/ writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(page)
    assert "<!-- figures: models -->\n| model" in page


def test_every_model_is_in_the_table() -> None:
    """Its subject is the beginning of its name."""
    assert {name.partition(":")[0] for name in (*SAFE, *WRONG)} == SUBJECTS.keys()
