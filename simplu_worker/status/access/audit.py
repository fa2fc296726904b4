"""The log of operators: each of their calls over HTTP, and each action with its facts and its result, never content."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog
from aiohttp import web

from simplu_worker.errors import WorkerError
from simplu_worker.vocabulary import Role

SHOWN_LENGTH: Final = 200  # of an id in the log
LOGGED_QUERY: Final = frozenset({"businessId", "locationId", "queue", "content"})  # names, of which none is content
COMMAND: Final = "command"
RESULT_WORDS: Final = frozenset({"how"})  # texts of answers that are of a closed set
UNCOUNTED: Final = frozenset({"applied", "notes"})
UNENDED: Final = "not ended: a part of it may be done"

log = structlog.get_logger(__name__)


class Actor(NamedTuple):
    """The subject of an action: an operator at the address *peer*, or a command on the machine *peer*."""

    role: str
    peer: str | None


def log_call(request: web.Request, path: str | None, *, refused: int | None = None) -> None:
    """Log the call of an operator: its peer and its subject; *refused* is the HTTP status of a refusal."""
    about = {**request.match_info, **{name: request.query[name] for name in LOGGED_QUERY if name in request.query}}
    log.info(
        "http.called",
        role=Role.OPERATOR,
        peer=request.remote,
        method=request.method,
        path=path,
        about={name: value[:SHOWN_LENGTH] for name, value in about.items()} or None,
        refused=None if refused is None else int(refused),  # not its name, as a console shows it
    )


class Acted:
    """An action under way; its *answer* once it has one."""

    def __init__(self) -> None:
        self.answer: Mapping[str, Any] | None = None


@contextlib.contextmanager
def logged_action(action: str, actor: Actor, asked: Mapping[str, Any], *, apply: bool = True) -> Iterator[Acted]:
    """Log an action at its end: the facts that were *asked* for, the counts of its answer, or its error.

    Without *apply* it was a plan, or a look. Commands write warnings alone unless `LOG_LEVEL` is set; on a terminal the
    person sees the result.
    """
    acted = Acted()
    error: str | None = UNENDED
    try:
        yield acted
        error = None if acted.answer is None else acted.answer.get("error")
    except WorkerError as exc:
        error = str(exc)
        raise
    finally:
        report = log.warning if actor.role == COMMAND and not sys.stderr.isatty() else log.info
        report(
            "operator.acted",
            action=action,
            role=actor.role,
            peer=actor.peer,
            apply=apply,
            asked={name: _shorten(value) for name, value in asked.items() if value} or None,
            outcome=None if acted.answer is None else counts_of(acted.answer) or None,
            error=error,
        )


def counts_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an answer, and the lengths of its lists; no text but words of a closed set."""
    counts: dict[str, Any] = {}
    for name, value in answer.items():
        if name in RESULT_WORDS:
            counts[name] = str(value)
        elif isinstance(value, int | float) and name not in UNCOUNTED:
            counts[name] = value
        elif isinstance(value, Sequence) and not isinstance(value, str) and name not in UNCOUNTED:
            counts[name] = len(value)
    return counts


def _shorten(value: Any) -> Any:
    return value[:SHOWN_LENGTH] if isinstance(value, str) else value
