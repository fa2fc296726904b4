"""The output of benchmarks and trials: a console for people, and logs of errors only."""

from __future__ import annotations

import sys

import structlog
from rich.console import Console


def open_console(*, as_json: bool = False, piped_width: int = 140) -> Console:
    """Return a console on stdout, or with *as_json* on stderr; *piped_width* is its width without a terminal."""
    stream = sys.stderr if as_json else sys.stdout
    return Console(soft_wrap=True, highlight=False, stderr=as_json, width=None if stream.isatty() else piped_width)


def log_errors_only() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
