"""How a command ends the process: its exit status, or that of its error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from simplu_worker.commands.exit_status import EXIT_CONFIGURATION, EXIT_DONE
from simplu_worker.errors import ConfigurationError


def end_process(command: Callable[[], object]) -> NoReturn:
    """Run *command* and end the process with its status, 0 for any other result; print a ConfigurationError."""
    try:
        result = command()
    except ConfigurationError as exc:
        complain_and_exit(*exc.problems, status=EXIT_CONFIGURATION)
    _release_outputs()
    sys.exit(result if isinstance(result, int) else EXIT_DONE)


def complain_and_exit(*problems: str, status: int) -> NoReturn:
    """Print *problems* on stderr, without secrets, and end the process."""
    from simplu_worker.commands.running import complain

    for problem in problems:
        complain(problem)
    _release_outputs()
    sys.exit(status)


def _release_outputs() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed when the process started
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
