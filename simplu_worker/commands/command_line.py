"""The options that commands share. Imports only what `--help` needs.

How a command ends the process: its exit status, or that of its error.

The options of every command that moves tenants.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, NoReturn, ParamSpec

from cyclopts import Parameter, validators

from simplu_worker.commands import EXIT_CONFIGURATION, EXIT_DONE
from simplu_worker.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from simplu_worker.commands.output import Answer
    from simplu_worker.config.settings import Settings

P = ParamSpec("P")
Flag = Annotated[bool, Parameter(negative="")]
OneTenant = Annotated[tuple[str, str] | None, Parameter(negative="")]  # a business and a location
EnvFile = Annotated[
    Path | None,
    Parameter(name="--env-file", help="A file of environment variables; a variable of the environment wins."),
]
OneWord = Parameter(name_transform=str.lower)  # a word of the vocabulary, as it is written everywhere: with underscores
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON on stdout, and nothing else.")]
Apply = Annotated[bool, Parameter(negative="", help="Carry out the plan; without this option it is only printed.")]


@Parameter(name="*")
@dataclass(frozen=True)
class CommonOptions:
    """The options of every command but `run`, `stack` and `demo`."""

    env_file: EnvFile = None
    as_json: AsJson = False

    def run(
        self,
        command: Callable[Concatenate[Settings, P], Coroutine[Any, Any, Answer | int]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int:
        """Run *command* with the settings and its arguments; print its answer, and return its exit status."""
        from simplu_worker.commands.running import run_command

        return run_command(lambda settings: command(settings, *args, **kwargs), self.env_file, as_json=self.as_json)


NO_OPTIONS: Final = CommonOptions()
UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
DURATION_DIGITS_MAX: Final = 6


def parse_duration(option: str, text: str) -> timedelta:
    """Return the duration in *text*, such as 7d. Raises UsageError."""
    number, unit = text[:-1], UNITS.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdecimal() and len(number) <= DURATION_DIGITS_MAX):
        raise UsageError(f"{option}: expected a number and one of s, m, h, d, such as 7d, got {text!r}")
    return timedelta(**{unit: int(number)})


SIZES: Final = {"B": 1, "kB": 1_000, "MB": 1_000_000}
RATE: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(\w*)/s", re.ASCII)


def parse_rate(option: str, text: str | None, units: Mapping[str, int] = MappingProxyType({"": 1})) -> float | None:
    """Return the rate in *text*, such as 50/s, in one of *units*; None without one. Raises UsageError."""
    if text is None:
        return None
    found = RATE.fullmatch(text)
    rate = float(found[1]) * units.get(found[2], 0) if found else 0.0
    if rate <= 0:
        expected = "such as 1MB/s, in B, kB or MB" if "MB" in units else "such as 50/s"
        raise UsageError(f"{option}: expected a number above 0 for each second, {expected}, got {text!r}")
    return rate


def parse_time(option: str, text: str) -> datetime:
    """Return the time in *text*. Raises UsageError."""
    from simplu_worker.operations.json_record import EXPECTED_TIME, parse_timestamp

    try:
        return parse_timestamp(text)
    except ValueError:
        raise UsageError(f"{option}: expected {EXPECTED_TIME}, got {text!r}") from None


def parse_range(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Return the times of --since and --until. Raises UsageError, also if the second is not later."""
    begin = None if since is None else parse_time("--since", since)
    end = None if until is None else parse_time("--until", until)
    if begin is not None and end is not None and end <= begin:
        raise UsageError(f"--until: expected a time after --since, {begin.isoformat()}, got {end.isoformat()}")
    return begin, end


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


@Parameter(name="*")
@dataclass(frozen=True)
class MoveBounds:
    """The options of a command about each of its moves."""

    max_pause: Annotated[
        float,
        Parameter(
            validator=validators.Number(gt=0),
            help="Refuse a move for which the tenant's operations would wait for longer, in seconds.",
        ),
    ] = 0.5


@Parameter(name="*")
@dataclass(frozen=True)
class MoveTerms(MoveBounds):
    """The options of `tenants move`, `shards rebalance` and `shards drain` about all of their moves."""

    parallel: Annotated[
        int, Parameter(validator=validators.Number(gte=1, lte=100), help="Move so many tenants at a time.")
    ] = 10


DEFAULT_BOUNDS: Final = MoveBounds()
DEFAULT_TERMS: Final = MoveTerms()
