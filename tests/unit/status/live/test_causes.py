from __future__ import annotations

from simplu_worker.status.causes import CAUSES, HELD, advice_members, cause_of
from simplu_worker.status.words import ProblemCause
from simplu_worker.vocabulary import HoldReason


def test_unknown_reason_has_the_words_of_any_hold() -> None:
    assert advice_members("other") == {}
    assert cause_of(ProblemCause.TARGET_HELD, "other") is CAUSES[ProblemCause.TARGET_HELD]
    assert cause_of(ProblemCause.TARGET_HELD, "gap") is HELD[HoldReason.GAP]


def test_tenant_over_its_share_is_not_moved_after_an_outage() -> None:
    advice = advice_members("over_share")
    assert advice["advice"].startswith("After an outage, wait. Else ")
    assert all(remedy in advice["advice"] for remedy in ("producer", "weight", "move the tenant"))
    assert advice["runbook"] == "docs/holding.md#tenants-over-their-share"


def test_page_is_a_link_where_the_site_is_known() -> None:
    site = "https://docs.example.com/simplu-worker"
    assert advice_members("moving", site)["runbook"] == f"{site}/moving.html"
    assert advice_members("gap", site)["runbook"] == f"{site}/runbook/shard-held-for-gap.html"
