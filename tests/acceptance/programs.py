"""The programs beside the tests, which show things at full size, and the benchmarks: run by a test on a small scale."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

KEPT = 6000  # of what a program printed: its end


def run_program(main: Callable[[], None], *arguments: str, status: int = 0) -> str:
    """Run a program in this process, for a start of Python takes a second; return what it printed on stdout."""
    out, err = StringIO(), StringIO()
    ended = 0
    with patch.object(sys, "argv", [main.__module__, *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as exc:
            if isinstance(exc.code, str):
                err.write(exc.code)
            ended = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    assert ended == status, out.getvalue()[-KEPT:] + err.getvalue()[-KEPT:]
    return out.getvalue()
