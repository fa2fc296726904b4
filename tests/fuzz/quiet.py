"""What the worker logs during an input: nothing of it is shown, and a traceback is a fault."""

from __future__ import annotations

import logging
import traceback
from collections.abc import MutableMapping
from typing import Any, NoReturn

import structlog

TOKEN = "fuzz-token-7f3a"  # no secret: what must occur in no answer and no log
PASSWORD = "fuzz-word-51c2"

_faults: list[str] = []


class _Faults(logging.Handler):
    """Keeps the errors of libraries: the event loop reports there what no one awaits."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            detail = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            _faults.append(f"{record.name}: {record.getMessage()}\n{detail}")


def _keep_faults(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> NoReturn:
    if event.get("exc_info"):
        _faults.append(f"{event}\n{traceback.format_exc()}")
    check_secrets(repr(event))
    raise structlog.DropEvent


def silence() -> None:
    """Keep what is logged from now on off the screen."""
    structlog.configure(processors=[_keep_faults], cache_logger_on_first_use=False)
    logging.getLogger().handlers = [_Faults()]
    logging.lastResort = None


def note_fault(text: str) -> None:
    """Note a fault found where no exception would get through."""
    _faults.append(text)


def check_secrets(text: str) -> None:
    """Note a fault if *text*, of an error or a log, has a secret."""
    if f"Bearer {TOKEN}" in text or PASSWORD in text:
        _faults.append(f"a secret is shown: {text[:2000]}")


def check_faults() -> None:
    """Raise for the faults of this input."""
    found, _faults[:] = list(_faults), []
    assert not found, "\n".join(found)
