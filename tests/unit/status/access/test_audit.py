from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from simplu_worker.errors import RetryableError
from simplu_worker.status.guard import COMMAND, SHOWN_LENGTH, UNENDED, Actor, counts_of, logged_action

OPERATOR = Actor("operator", "10.0.0.1")


def logged(actor: Actor, *, fails_with: type[BaseException] | None = None, **asked: Any) -> dict[str, Any]:
    with capture_logs() as logs:
        try:
            with logged_action("replay_letters", actor, asked, apply=False) as acted:
                if fails_with is not None:
                    raise fails_with("the queue does not answer")
                acted.answer = {"sent": 2, "letters": [{"record": "SECRET"}], "notes": ["SECRET"], "until": "SECRET"}
        except (RetryableError, KeyboardInterrupt):
            assert fails_with is not None
    (line,) = logs
    return dict(line)


def test_action_is_logged_with_its_facts_and_counts() -> None:
    line = logged(OPERATOR, businessId="b" * 500, source=None, messageIds=0, reasons=["gap"], force=False)
    assert line == {
        "event": "operator.acted",
        "log_level": "info",
        "action": "replay_letters",
        "role": "operator",
        "peer": "10.0.0.1",
        "apply": False,
        "asked": {"businessId": "b" * SHOWN_LENGTH, "reasons": ["gap"]},
        "outcome": {"sent": 2, "letters": 1},
        "error": None,
    }


def test_action_of_a_command_is_a_warning() -> None:
    line = logged(Actor(COMMAND, "host-1"))
    assert (line["log_level"], line["role"], line["peer"]) == ("warning", "command", "host-1")


@pytest.mark.parametrize(
    ("fails_with", "expected"), [(RetryableError, "the queue does not answer"), (KeyboardInterrupt, UNENDED)]
)
def test_action_that_fails_is_logged_too(fails_with: type[BaseException], expected: str) -> None:
    line = logged(OPERATOR, fails_with=fails_with, limit=5)
    assert (line["asked"], line["outcome"], line["error"]) == ({"limit": 5}, None, expected)


def test_counts_are_numbers_and_lengths() -> None:
    answer = {"streamShard": "s", "retried": 3, "isCut": True, "asked": ["a", "b"], "applied": True}
    assert counts_of(answer) == {"retried": 3, "isCut": True, "asked": 2}
