"""How a command ends the process: its exit status, or that of its error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from simplu_worker.commands.exit_status import EXIT_CONFIGURATION, EXIT_DONE
from simplu_worker.errors import ConfigurationError


def end_process(command: Callable[[], object]) -> NoReturn:
    """Run *command* and end the process with the status that it returns; 0 for any other result.

    A ConfigurationError is printed, a line for each problem.
    """
    try:
        result = command()
    except ConfigurationError as exc:
        complain_and_exit(*exc.problems, status=EXIT_CONFIGURATION)
    sys.exit(result if isinstance(result, int) else EXIT_DONE)


def complain_and_exit(*problems: str, status: int) -> NoReturn:
    """Print *problems* on stderr, without secrets, and end the process."""
    from simplu_worker.commands.running import complain

    for problem in problems:
        complain(problem)
    sys.exit(status)
