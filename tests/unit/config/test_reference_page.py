"""The page of all variables matches the settings."""

from __future__ import annotations

import pytest

from simplu_worker.config.reference_page import PAGE, area_of, main, render_page
from simplu_worker.config.settings import VARIABLES


def test_page_in_the_repository_is_the_generated_one() -> None:
    """docs/configuration.md is generated again whenever a setting changes."""
    assert render_page() == PAGE.read_text(encoding="utf-8")
    assert main(["--check"]) == 0


@pytest.mark.parametrize("name", VARIABLES)
def test_page_describes_every_variable_once(name: str) -> None:
    """Every setting has one row, a sentence, and words for its value."""
    rows = [line for line in render_page().splitlines() if line.startswith(f"| `{name}`")]
    assert len(rows) == 1
    assert rows[0].endswith(". |")
    assert "class" not in rows[0]


def test_page_has_no_area_for_a_variable_that_fits_nowhere() -> None:
    """A variable of a new kind must be given its place."""
    with pytest.raises(LookupError, match="BOGUS"):
        area_of("BOGUS")


def test_page_refuses_unknown_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is exit status 2."""
    assert main(["--chekc"]) == 2
    assert "--check" in capsys.readouterr().err
