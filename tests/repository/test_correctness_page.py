"""docs/correctness.md has the figures of the runs."""

from __future__ import annotations

from simulation.campaign import CAMPAIGNS, expected_faults
from simulation.left_out_rules import BY_DESIGN, DESIGNS, ELSEWHERE
from support.campaigns import read_campaigns
from support.correctness_page import PAGE, SAFE, SUBJECTS, WRONG, render
from support.requires import ROOT


def test_figures_of_the_page_are_those_of_the_runs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(page)
    assert "<!-- figures: models -->\n| model" in page


def test_every_model_is_in_the_table() -> None:
    assert {name.partition(":")[0] for name in (*SAFE, *WRONG)} == SUBJECTS.keys()


def test_every_left_out_rule_is_left_out_in_code_or_has_a_reason() -> None:
    elsewhere = [rule for one in ELSEWHERE for rule in one.tests]
    assert sorted(WRONG) == sorted([*BY_DESIGN, *elsewhere])
    assert set(BY_DESIGN.values()) - DESIGNS == set()
    assert [test for one in ELSEWHERE for test in one.tests.values() if test and not _exists(test)] == []


def test_every_fault_of_a_weather_has_changed_histories() -> None:
    campaigns = read_campaigns(CAMPAIGNS)
    last = [one["faults"] for one in campaigns if one["commit"] == campaigns[-1]["commit"]]
    without = [
        (weather, fault.value)
        for weather in last[-1]
        for fault in expected_faults(weather)
        if not sum(faults[weather][fault][1] for faults in last)
    ]
    assert without == []


def _exists(test: str) -> bool:
    path, _, name = test.partition("::")
    return f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")
