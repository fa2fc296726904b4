"""The command line (docs/commands.md). Each command imports its modules when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import App, CycloptsError, Parameter, validators

from simplu_worker import __version__
from simplu_worker.commands import EXIT_USAGE
from simplu_worker.commands.command_line import EnvFile, complain_and_exit
from simplu_worker.errors import ConfigurationError, UsageError

# The commands with their modules, which are imported for the command that runs, and their first lines in `--help`.
COMMANDS: Final = {
    "check": ("check", "Ask every dependency once, and print its answer and what is odd about the configuration."),
    "operations": ("stream", "Show and list the outcomes of operations; test and send operations."),
    "replay": (
        "stream",
        "Read the stream again from a time. Operations that were applied before are dropped as duplicates.",
    ),
    "tenants": ("tenants", "Show, create, move, import, restore and audit tenants."),
    "shards": ("shards", "Show, upgrade, balance and empty Postgres shards, route keys to them, accept gaps."),
    "resources": ("resources", "Show resources as they are and were: their versions, at any time of their history."),
    "types": ("types", "Write business types to all shards from files, show and check them."),
    "dead_letters": ("dead_letters", "List dead letters, replay them, and discard them."),
    "feed": ("feed", "See how far the destinations of the feed are, send them events again, continue them."),
    "fleet": ("fleet", "See and steer running replicas, over HTTP."),
    "tap": ("fleet", "Print the operations that a replica decides, for up to 15 minutes."),
    "top": (
        "fleet",
        "Show the fleet in the terminal: problems and advice, replicas, stream shards, largest businesses.",
    ),
}

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]

app = App(
    name="simplu-worker",
    help="Apply resource operations from Kinesis and SQS to the right Postgres shard, exactly once and in order.",
    version=__version__,
)
for name, (module, summary) in COMMANDS.items():
    app.command(f"simplu_worker.commands.{module}:{name}", help=summary)


@app.command
def run(*, env_file: EnvFile = None) -> int:
    """Run the worker until SIGTERM or SIGINT."""
    from simplu_worker.commands.run_worker import run as run_worker

    return run_worker(env_file)


@app.command
def stack(
    *,
    env_file: Annotated[Path, Parameter(name="--env-file")],
    shards: Count = 3,
    aws: Literal["local", "moto"] = "local",
) -> int:
    """Run the embedded stack alone until interrupted. Writes a worker's variables to a file once every part answers.

    Parameters
    ----------
    env_file
        The file to write the variables to: a new one, or that of an earlier stack.
    aws
        `moto` makes moto serve Kinesis and SQS too, as it does DynamoDB.
    """
    _require_local()
    from simplu_local.stack.stack import run_stack
    from simplu_worker.commands.running import run_until_interrupted

    return run_until_interrupted(run_stack(env_file, shards, aws=aws))


@app.command
def demo(
    *, operations: Count = 20_000, tenants: Count = 10, shards: Count = 3, replicas: Count = 1, hold: bool = False
) -> int:
    """Apply operations on an embedded stack, and compare every row at the end.

    Parameters
    ----------
    hold
        Keep everything running at the end, for a look around.
    """
    _require_local()
    from rich.console import Console

    from simplu_local.demo.demo import run_demo
    from simplu_worker.commands.running import run_until_interrupted

    console = Console(highlight=False)
    return run_until_interrupted(
        run_demo(operations=operations, tenants=tenants, shards=shards, replicas=replicas, hold=hold, console=console)
    )


def _require_local() -> None:
    from importlib.util import find_spec

    if find_spec("simplu_local") is None:
        raise ConfigurationError(
            f"expected the package simplu-local {__version__}, found none: pip install --find-links FOLDER"
            " 'simplu-worker[local]', where FOLDER has its wheel (docs/installing.md)"
        )


def run_command_line() -> object:
    """Run the command of the arguments of the process; return its result. Raises ConfigurationError."""
    try:
        return app(sys.argv[1:], exit_on_error=False, print_error=True)
    except CycloptsError:
        return EXIT_USAGE
    except UsageError as exc:
        complain_and_exit(str(exc), status=EXIT_USAGE)
