"""How a command runs: its settings, its log, its end, and what it requires.

Imported once a command runs: it takes as long as all of `--help`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import structlog

from simplu_worker.commands import EXIT_BY_SIGNAL, EXIT_FAILED, EXIT_INTERRUPTED
from simplu_worker.commands.output import Answer, show
from simplu_worker.config.loading import draft_settings, find_misspellings, load_env_file, prepare_environment
from simplu_worker.config.settings import NO_ROUTE, ROUTES, Settings, set_of
from simplu_worker.config.values import is_service_link
from simplu_worker.errors import ConfigurationError, PermanentError, UsageError, WorkerError
from simplu_worker.memory_tuning import end_start, widen_threads
from simplu_worker.operations.operation import ID_MAX, is_id, tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool, register_secret_of
from simplu_worker.shards.routing.shard_query import LIMITS, QueryLimits, query_with_causes
from simplu_worker.telemetry.log import configure_logging, flush_logging, scrub_text

if TYPE_CHECKING:
    from simplu_worker.assembly.shards import Shards

T = TypeVar("T")
log = structlog.get_logger(__name__)


class _Stderr:
    """The stderr of the moment: while progress bars are shown, the log appears above them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def run_command(
    command: Callable[[Settings], Coroutine[Any, Any, Answer | int]],
    env_file: Path | None,
    *,
    as_json: bool,
    for_run: bool = False,
) -> int:
    """Run *command* with the settings; return its exit status. Its answer goes to stdout, its log to stderr.

    *for_run*: with the settings of the worker's parts too.
    """
    settings = read_settings(env_file, for_run=for_run)
    configure_logging(
        settings.log_level if os.environ.get("LOG_LEVEL") else "warning",
        settings.log_format if os.environ.get("LOG_FORMAT") else "console",
        stream=cast("TextIO", _Stderr()),
    )
    log_misspellings()
    try:
        return run_until_interrupted(show(command(settings), as_json=as_json))
    except (ConfigurationError, UsageError):
        raise
    except WorkerError as exc:
        complain(str(exc))
    except BrokenPipeError:
        pass  # the reader of our output is gone
    except Exception:  # a bug: it goes to the log, which scrubs secrets
        log.exception("command.crashed")
    finally:
        flush_logging()
    return EXIT_FAILED


def read_settings(env_file: Path | None, *, for_run: bool) -> Settings:
    """Return the settings of the environment and *env_file*, and prepare the environment for libraries.

    Raises ConfigurationError with every problem; *for_run* those of the worker's parts too.
    """
    if env_file is not None:
        load_env_file(env_file)
    settings, problems = draft_settings(for_run=for_run)
    prepare_environment(settings)
    if for_run:
        from simplu_worker.assembly.worker import find_part_problems

        named = {problem.partition(":")[0] for problem in problems}
        problems += [more for more in find_part_problems(settings) if more.partition(":")[0] not in named]
    if problems:
        ignored = "expected the name of a variable, got one that the worker ignores; did you mean"
        misspelt = [f"{name}: {ignored} {nearest}?" for name, nearest in given_misspellings().items()]
        raise ConfigurationError(*problems, *misspelt)
    return settings


def given_misspellings() -> dict[str, str]:
    """Return the misspelt variables of the environment, each with the nearest one of ours."""
    return find_misspellings(name for name, value in os.environ.items() if value and not is_service_link(value))


def log_misspellings() -> None:
    """Log the misspelt variables: they may be another program's."""
    for name, nearest in given_misspellings().items():
        log.warning("variable.ignored", variable=name, nearest=nearest)


def run_until_interrupted(command: Coroutine[Any, Any, int]) -> int:
    """Run *command*; return its exit status. A signal ends it and what it has asked of servers."""
    end_start()
    try:
        return asyncio.run(_run_until_ended(command))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def _run_until_ended(command: Coroutine[Any, Any, int]) -> int:
    widen_threads()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    came: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        came.append(number)
        loop.remove_signal_handler(number)
        if task is not None:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            loop.add_signal_handler(number, end, number)
    try:
        return await command
    except asyncio.CancelledError:
        if not came:
            raise
        return EXIT_BY_SIGNAL + came[0]


def complain(problem: str) -> None:
    """Print *problem* on stderr, without secrets, if stderr takes it."""
    with contextlib.suppress(OSError):
        print(scrub_text(problem), file=sys.stderr)  # noqa: T201  (for the person at the terminal)


def require_settings(
    settings: Settings, *, routes: bool = False, stream: bool = False, queue: str | None = None
) -> None:
    """Raise ConfigurationError, which names every missing variable, unless the required settings are present."""
    problems = []
    if stream and settings.kinesis_stream_name is None:
        problems.append("KINESIS_STREAM_NAME: expected the stream to put operations on, got nothing; set it")
    if queue is not None and getattr(settings, queue.lower()) is None:
        problems.append(f"{queue}: expected the queue to send order events to, got nothing; set it")
    if routes and not set_of(settings, *ROUTES):
        problems.append(NO_ROUTE)
    if problems:
        raise ConfigurationError(*problems)


def parse_tenant_id(business_id: str, location_id: str) -> str:
    """Return the tenant id of two names. Raises PermanentError if one is invalid."""
    for name, value in {"business": business_id, "location": location_id}.items():
        if not is_id(value):
            raise PermanentError(f"{name}: expected 1 to {ID_MAX} characters of UTF-8, got {len(value)}")
    return tenant_id_of(business_id, location_id)


def given_address(settings: Settings, variable: str, what: str, shard_id: str | None = None) -> ShardAddress:
    """Return the address of the database that *variable* names. Raises `ConfigurationError`, `PermanentError`."""
    url = getattr(settings, variable.lower())
    if url is None:
        raise ConfigurationError(
            f"{variable}: expected the connection string of {what}, got nothing; set it, or {variable}_FILE"
        )
    address = ShardAddress(shard_id or variable, url.get_secret_value())
    register_secret_of(address)
    return address.validate(settings.database_allowed_hosts)


def known_shard(shards: Iterable[ShardAddress], shard_id: str) -> ShardAddress:
    """Return the one of *shards* with this id. Raises PermanentError."""
    known = {address.shard_id: address for address in shards}
    if shard_id not in known:
        raise PermanentError(f"expected a shard out of {', '.join(sorted(known)) or 'none'}; got {shard_id}")
    return known[shard_id]


async def ask_shards(
    settings: Settings,
    ask: Callable[[ShardPool], Awaitable[T]],
    shard_ids: Sequence[str] = (),
    *,
    limits: QueryLimits = LIMITS,
) -> tuple[dict[str, T], dict[str, str]]:
    """Return the answers of all shards, or of *shard_ids*, by id; and the shards without one, with the causes."""
    async with open_known_shards(settings) as (shards, known):
        chosen = [known_shard(known, one) for one in dict.fromkeys(shard_ids)] or known
        answers, silent = await query_with_causes(
            chosen, lambda address: ask(shards.pools.ensure_pool(address)), limits=limits
        )
    return dict(sorted(answers.items())), silent


@asynccontextmanager
async def open_shard(settings: Settings, shard_id: str) -> AsyncIterator[ShardPool]:
    """Open the shards, and yield the pool of the one with this id. Raises PermanentError."""
    async with open_known_shards(settings) as (shards, known):
        yield shards.pools.ensure_pool(known_shard(known, shard_id))


@asynccontextmanager
async def open_known_shards(settings: Settings) -> AsyncIterator[tuple[Shards, Sequence[ShardAddress]]]:
    """Open the shards, and yield them with the addresses of all. Raises ConfigurationError without a route."""
    from simplu_worker.assembly.shards import open_shards

    async with open_shards(settings) as shards:
        yield shards, await shards.locator.list_shards()
