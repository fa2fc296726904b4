"""Log each call of a client of AWS at debug: its operation, duration and error code, never its content."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from botocore import xform_name

from simplu_worker.telemetry.log import is_debug_written

STARTED: Final = "simplu_started_at"  # in the context that botocore has for a call

log = structlog.get_logger(__name__)


def log_calls(service: str, client: Any, *, clock: Callable[[], float] = time.perf_counter) -> None:
    """Log the calls of *client* from now on if the level is debug; at other levels it does nothing, and costs nothing.

    A call with retries has one line. A call that is cancelled has none.
    """
    if not is_debug_written():
        return

    def note_start(context: dict[str, Any], **_: object) -> None:
        context[STARTED] = clock()

    def note_answer(parsed: Mapping[str, Any], model: Any, context: dict[str, Any], **_: object) -> None:
        error = parsed.get("Error", {}).get("Code")
        _log(service, xform_name(model.name), error, clock() - context[STARTED])

    def note_failure(exception: Exception, context: dict[str, Any], event_name: str, **_: object) -> None:
        operation = event_name.rpartition(".")[2]
        _log(service, xform_name(operation), type(exception).__name__, clock() - context[STARTED])

    for event, note in (("before-call", note_start), ("after-call", note_answer), ("after-call-error", note_failure)):
        client.meta.events.register(event, note)


def _log(service: str, operation: str, error: str | None, duration_s: float) -> None:
    duration_s = round(duration_s, 4)
    match service:
        case "kinesis":
            log.debug("kinesis.called", operation=operation, error=error, duration_s=duration_s)
        case "dynamodb":
            log.debug("dynamodb.called", operation=operation, error=error, duration_s=duration_s)
        case "sqs":
            log.debug("sqs.called", operation=operation, error=error, duration_s=duration_s)
