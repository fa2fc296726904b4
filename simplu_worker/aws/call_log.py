"""Log each call of a client of AWS at debug: its operation, duration and error code, never its content."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from botocore import xform_name

from simplu_worker.telemetry.log import is_debug_written

STARTED_AT: Final = "simplu_worker.started_at"  # in the context of a call, beside what botocore keeps there

log = structlog.get_logger(__name__)


def log_calls(client: Any) -> None:
    """Have the end of each call of *client* written, if the level is debug.

    A call with retries has one line. A call that is cancelled has none.
    """
    service = client.meta.service_model.service_name

    def begin(context: dict[str, Any], **_: object) -> None:
        context[STARTED_AT] = time.perf_counter()

    def end(parsed: dict[str, Any], model: Any, context: dict[str, Any], **_: object) -> None:
        _log(service, model.name, parsed.get("Error", {}).get("Code"), context)

    def fail(exception: Exception, event_name: str, context: dict[str, Any], **_: object) -> None:
        _log(service, event_name.rpartition(".")[2], type(exception).__name__, context)

    if is_debug_written():
        client.meta.events.register("before-call", begin)
        client.meta.events.register("after-call", end)
        client.meta.events.register_first("after-call-error", fail)


def _log(service: str, operation: str, error: str | None, context: dict[str, Any]) -> None:
    operation = xform_name(operation)
    duration_s = round(time.perf_counter() - context[STARTED_AT], 4)
    match service:
        case "kinesis":
            log.debug("kinesis.called", operation=operation, error=error, duration_s=duration_s)
        case "dynamodb":
            log.debug("dynamodb.called", operation=operation, error=error, duration_s=duration_s)
        case "sqs":
            log.debug("sqs.called", operation=operation, error=error, duration_s=duration_s)
