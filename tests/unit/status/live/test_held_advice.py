"""The advice about held targets: for every reason, with a page that exists."""

from __future__ import annotations

from support.requires import ROOT

from simplu_worker.metrics.instruments import HELD_REASONS
from simplu_worker.status.live.held_advice import BY_REASON, advice_members


def test_every_reason_has_advice() -> None:
    """And an unknown one none."""
    assert BY_REASON.keys() == set(HELD_REASONS)
    assert advice_members("other") == {}
    assert advice_members("gap")["runbook"] == "docs/runbook/shard-held-for-gap.md"


def test_pages_exist_with_their_headings() -> None:
    """A link leads to the file, and to a heading in it."""
    for advice in BY_REASON.values():
        path, _, anchor = advice.runbook.partition("#")
        text = (ROOT / path).read_text(encoding="utf-8").lower()
        headings = {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
        assert not anchor or anchor in headings, advice.runbook
