"""What an answer of `GET /operations/{requestId}` means, and when to ask again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias, get_args

from simplu_client.errors import (
    Failure,
    OperationFailedError,
    OperationLostError,
    OperationRejectedError,
    SimpluError,
    UnexpectedAnswerError,
)

CLOCK_MARGIN = timedelta(seconds=10)  # by which the clocks of producer and worker may differ
ASK_BASE_S, ASK_MAX_S = 0.1, 2.0
DOUBLINGS_MAX = 32  # keeps the power small
NOT_NOW = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Outcome:
    """An operation that succeeded; *result* is that of a `read` or `list`, *answer* the whole answer."""

    request_id: str
    result: Mapping[str, Any] | None
    answer: Mapping[str, Any]


class AskAgain(NamedTuple):
    """It is not decided, as far as this answer knows."""

    status: str | None
    detail: str


Verdict: TypeAlias = Outcome | AskAgain | SimpluError


def judge(http_status: int, answer: Mapping[str, Any] | None, sent_at: datetime | None) -> Verdict:
    """Return what an answer means; *answer* is none if it was no JSON object, *sent_at* if the time is not known."""
    if http_status in NOT_NOW:
        return AskAgain(None, f"HTTP status {http_status}")
    if answer is None or http_status not in {200, 404}:
        return UnexpectedAnswerError(f"expected the status of an operation, got HTTP status {http_status}")
    status, error = answer.get("status"), answer.get("error")
    verdict: Verdict = UnexpectedAnswerError(f"expected a status and an error of the interface, got {status}, {error}")
    match status:
        case "succeeded":
            verdict = Outcome(answer["requestId"], answer.get("result"), answer)
        case "failed" if error in get_args(Failure):
            verdict = OperationFailedError(answer["error"], answer.get("result"))
        case "rejected":
            verdict = OperationRejectedError(str(answer.get("reason")), str(error))
        case "pending" | "held":
            verdict = AskAgain(status, str(answer.get("reason", "")))
        case "unknown" if _is_read_past(answer.get("readUpTo"), sent_at):
            verdict = OperationLostError(
                "the worker has read the stream up to here: a dead letter, or it was never sent"
            )
        case "unknown":
            verdict = AskAgain(status, "")
    return verdict


def _is_read_past(read_up_to: str | None, sent_at: datetime | None) -> bool:
    if sent_at is None or read_up_to is None:
        return False
    return datetime.fromisoformat(read_up_to) > sent_at + CLOCK_MARGIN


def ask_after_s(count: int, *, draw: float) -> float:
    """Return the pause after the *count*-th answer, counted from 1."""
    return min(ASK_MAX_S, ASK_BASE_S * 2.0 ** min(count - 1, DOUBLINGS_MAX)) * (0.5 + draw / 2)
