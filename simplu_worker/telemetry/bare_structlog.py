"""structlog, imported without rich: it would draw tracebacks that the log writes as text, and takes 25 ms to import.

To be imported before any other module imports structlog.
"""

from __future__ import annotations

import sys
from typing import Any, Final

_MISSING: Final[Any] = None  # in place of a module: importing it raises ImportError, which structlog expects

_is_hidden = sys.modules.setdefault("rich", _MISSING) is _MISSING
import structlog as structlog  # noqa: E402, PLC0414 - the order is the purpose; and the name is for importers

if _is_hidden:
    del sys.modules["rich"]
