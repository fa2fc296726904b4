"""The last line of `check`."""

from __future__ import annotations

from simplu_worker.commands.check.checking import CheckReport, verdict_on
from simplu_worker.commands.check.dependency import CheckedDependency, CheckStatus
from simplu_worker.commands.check.findings import Finding

ODD = [Finding("queue q", "no redrive policy", "nothing to do")]


def verdict(*statuses: CheckStatus, odd: list[Finding] | None = None) -> str:
    rows = [CheckedDependency(f"shard {at}", "", status, "", 0.0) for at, status in enumerate(statuses)]
    return verdict_on(CheckReport(rows, odd or []))


def test_check_ends_with_what_failed_or_warns() -> None:
    ok, warning, failed, off = CheckStatus.OK, CheckStatus.WARNING, CheckStatus.FAILED, CheckStatus.OFF
    assert verdict(ok, off) == "nothing odd"
    assert verdict(ok, odd=ODD) == "nothing failed; see what is odd"
    assert verdict(warning, failed, failed) == "failed: shard 1, shard 2"
    assert verdict(ok, warning, odd=ODD) == "warning: shard 1"
