"""The advice about held targets: for every reason, with a page that exists."""

from __future__ import annotations

import re

from support.requires import ROOT

from simplu_worker.status.live.held_advice import BY_REASON, advice_members
from simplu_worker.vocabulary import HoldReason


def test_every_reason_has_advice() -> None:
    """And an unknown one none."""
    assert BY_REASON.keys() == set(HoldReason)
    assert advice_members("other") == {}
    assert advice_members("gap")["runbook"] == "docs/runbook/shard-held-for-gap.md"


def test_tenant_over_its_share_is_not_moved_after_an_outage() -> None:
    """What has waited comes at once then, and is soon applied; only after that is the tenant too large."""
    advice = advice_members("over_share")
    assert advice["advice"].startswith("After an outage, wait. Else ")
    assert all(remedy in advice["advice"] for remedy in ("producer", "weight", "move the tenant"))
    assert advice["runbook"] == "docs/holding.md#tenants-over-their-share"


def test_page_is_a_link_where_the_site_is_known() -> None:
    """The pages of the site have the names that its build gives them, and the same headings."""
    site = "https://docs.example.com/simplu-worker"
    assert advice_members("other", site) == {}
    assert advice_members("moving", site)["runbook"] == f"{site}/moving.html"
    assert advice_members("gap", site)["runbook"] == f"{site}/runbook/shard-held-for-gap.html"


def test_links_agree_with_those_of_the_alerts() -> None:
    """One address serves for the page and for the rules: RUNBOOK_URL is the one that users put into the rules."""
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    urls = re.findall(r"runbook_url: (\S+)", rules)
    site = urls[0].rpartition("/")[0]
    advised = [advice_members(reason, site)["runbook"] for reason in BY_REASON]
    about_alerts = [url for url in advised if "/monitoring." in url]
    assert about_alerts
    assert set(about_alerts) <= set(urls)


def test_pages_exist_with_their_headings() -> None:
    """A link leads to the file, and to a heading in it."""
    for advice in BY_REASON.values():
        path, _, anchor = advice.runbook.partition("#")
        text = (ROOT / path).read_text(encoding="utf-8").lower()
        headings = {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
        assert not anchor or anchor in headings, advice.runbook
