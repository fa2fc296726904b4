"""`simplu-worker run`: the worker, from its settings to its exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
import uvloop

from simplu_worker import instruments
from simplu_worker.commands import EXIT_DONE, EXIT_FAILED
from simplu_worker.commands.running import log_misspellings, read_settings
from simplu_worker.config.settings import Settings
from simplu_worker.daemon import run_worker
from simplu_worker.errors import ConfigurationError, WorkerError
from simplu_worker.memory_tuning import end_start
from simplu_worker.telemetry.log import BackgroundStream, configure_logging, flush_logging

DRAIN_S: Final = 2.0  # at the end, for lines that a slow reader of the log has not taken yet


def run(env_file: Path | None = None) -> int:
    """Run the worker until SIGTERM or SIGINT; return the exit status. Raises ConfigurationError."""
    settings = read_settings(env_file, for_run=True)
    with _background_output():
        return _run(settings)


def _run(settings: Settings) -> int:
    configure_logging(settings.log_level, settings.log_format)
    log_misspellings()
    end_start()
    try:
        uvloop.run(run_worker(settings))
    except ConfigurationError:
        raise
    except WorkerError as exc:
        structlog.get_logger(__name__).error("worker.not_started", error=str(exc))
        return EXIT_FAILED
    except TimeoutError:
        structlog.get_logger(__name__).error("worker.drain_timed_out", grace_s=settings.shutdown_grace_seconds)
        return EXIT_FAILED
    except Exception:  # noqa: BLE001  (a bug: it goes to the log, which scrubs secrets, and the process ends)
        structlog.get_logger(__name__).exception("worker.crashed")
        return EXIT_FAILED
    finally:
        flush_logging()
    return EXIT_DONE


@contextmanager
def _background_output() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = opened = [
        BackgroundStream(
            stream or Path(os.devnull).open("w", encoding="utf-8"),  # noqa: SIM115  (closed as the process started)
            on_drop=instruments.LOG_LINES_DROPPED.labels(name).inc,
        )
        for name, stream in zip(instruments.LOG_STREAMS, before, strict=True)
    ]
    try:
        yield
    finally:
        for stream in opened:
            stream.drain(within_s=DRAIN_S)
        sys.stdout, sys.stderr = before
