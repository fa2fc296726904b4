"""What the worker logs during an input: nothing of it is shown, and a traceback is a fault."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import MutableMapping
from typing import Any, Final, NoReturn

import structlog

from simplu_worker.telemetry import log as worker_log

TOKEN = "fuzz-token-7f3a"  # no secret: what must occur in no answer and no log
PASSWORD = "fuzz-word-51c2"

# Where the password may be so that nothing may show it; elsewhere it may be a name, and names are shown. Its repetition
# goes back nowhere ("*+"): else its memory grows in steps, and the growth of a check would be measured from them.
_IN_ITS_PLACE: Final = re.compile(
    rb'onnectionString"\s*:\s*"postgres(?:ql)?://user:%b@(?:(?!%b)[^"\\])*+"' % (PASSWORD.encode(), PASSWORD.encode())
    + rb"|\nDATABASE_PASSWORD=%b\n|\nREDIS_URL=redis://:%b@[a-z]+" % (PASSWORD.encode(), PASSWORD.encode())
)
_stray: list[bool] = []  # whether the password of this input is also elsewhere
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
    structlog.configure(processors=[_keep_faults], cache_logger_on_first_use=False)
    logging.getLogger().handlers = [_Faults()]
    logging.lastResort = None
    for library in worker_log.LIBRARIES_NEVER_HEARD:
        logging.getLogger(library).setLevel(logging.CRITICAL)


def note_fault(text: str) -> None:
    _faults.append(text)


def check_secrets(text: str) -> None:
    if f"Bearer {TOKEN}" in text or (PASSWORD in text and not any(_stray)):
        _faults.append(f"a secret is shown: {text[:2000]}")


def begin(data: bytes) -> None:
    """Note where the input *data* has the password: it may be shown if it is in the place of a name."""
    is_shell = data.startswith(b"#") and any(character in data for character in b"'\"\\")  # lines may be joined
    _stray[:] = [is_shell or PASSWORD.encode() in _IN_ITS_PLACE.sub(b"", data)]


def check_faults() -> None:
    """Raise for the faults of this input, and forget the secrets that it registered."""
    worker_log._secrets = worker_log._Secrets()
    found, _faults[:] = list(_faults), []
    assert not found, "\n".join(found)
