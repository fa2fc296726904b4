"""What `check` says of the fleet that runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from simplu_worker.commands.check.dependency import CheckAnswer, CheckStatus, describe_problems

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def problem(text: str, subject: str | None, severity: str = "warning", **members: Any) -> dict[str, Any]:
    """Return a problem of `/fleet`."""
    since = (NOW - timedelta(minutes=2)).isoformat()
    words = {"problem": text, "severity": severity, "advice": f"{text}!"}
    return {"subject": subject, "since": since, "isOver": False} | words | members


def test_check_says_what_the_running_fleet_calls_wrong() -> None:
    lost, held = problem("Lost", "shard a", "critical"), problem("Held", "tenant t", reason="not_here")
    over = problem("Failing", "queue q", "critical", isOver=True)
    many = [problem("Held", f"tenant {number}") for number in range(7)]
    assert describe_problems([over], NOW) == CheckAnswer("nothing is wrong")
    assert describe_problems([held, over], NOW) == CheckAnswer("Held (tenant t, not here). Held!", CheckStatus.WARNING)
    assert describe_problems([lost, problem("Letters", None)], NOW) == CheckAnswer(
        "Lost (shard a); Letters. Lost!", CheckStatus.FAILED
    )
    passing = lost | {"since": NOW.isoformat()}
    assert describe_problems([passing], NOW).status is CheckStatus.WARNING
    assert describe_problems(many, NOW).result.endswith("Held (tenant 4); and 2 more. Held!")
