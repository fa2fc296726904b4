"""`simplu-worker run`: the worker, from its settings to its exit status."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import uvloop

from simplu_worker.commands.exit_status import EXIT_DONE, EXIT_FAILED
from simplu_worker.commands.running import log_misspellings, log_service_links, read_settings
from simplu_worker.config.settings import Settings
from simplu_worker.daemon import run_worker
from simplu_worker.errors import ConfigurationError, WorkerError
from simplu_worker.memory_tuning import end_start
from simplu_worker.status.live.request_bodies import LettersDesk
from simplu_worker.telemetry.bare_structlog import structlog
from simplu_worker.telemetry.log import configure_logging, flush_logging


def run(env_file: Path | None = None) -> int:
    """Run the worker until SIGTERM or SIGINT; return the exit status. Raises ConfigurationError."""
    settings = read_settings(env_file, for_run=True)
    configure_logging(settings.log_level, settings.log_format)
    log_service_links()
    log_misspellings()
    end_start()
    try:
        uvloop.run(run_worker(settings, cache(partial(_open_desk, settings))))
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


def _open_desk(settings: Settings) -> LettersDesk:
    from simplu_worker.commands.dead_letters.http_desk import HttpDesk

    return HttpDesk(settings)
