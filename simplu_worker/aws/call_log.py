"""Log each call of a client of AWS at debug: its operation, duration and error code, never its content."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final

import structlog
from botocore import xform_name
from botocore.exceptions import ClientError

from simplu_worker.telemetry.log import is_debug_written

log = structlog.get_logger(__name__)

NOT_MEASURED: Final = -1.0


class LoggedCall:
    """A call of *operation*, as AWS spells it; its end has a line if the level is debug.

    A call with retries has one line. A call that is cancelled has none.
    """

    __slots__ = ("_operation", "_service", "_started_at")

    def __init__(self, service: str, operation: str) -> None:
        self._service = service
        self._operation = operation
        self._started_at = NOT_MEASURED

    def __enter__(self) -> None:
        if is_debug_written():
            self._started_at = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        if self._started_at == NOT_MEASURED or (exc is not None and not isinstance(exc, Exception)):
            return
        error = None if kind is None else kind.__name__
        if isinstance(exc, ClientError):
            error = exc.response.get("Error", {}).get("Code")
        _log(self._service, xform_name(self._operation), error, time.perf_counter() - self._started_at)


def _log(service: str, operation: str, error: str | None, duration_s: float) -> None:
    duration_s = round(duration_s, 4)
    match service:
        case "kinesis":
            log.debug("kinesis.called", operation=operation, error=error, duration_s=duration_s)
        case "dynamodb":
            log.debug("dynamodb.called", operation=operation, error=error, duration_s=duration_s)
        case "sqs":
            log.debug("sqs.called", operation=operation, error=error, duration_s=duration_s)
