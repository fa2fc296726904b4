"""The options that commands share. Imports only what `--help` needs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from simplu_worker.errors import UsageError

if TYPE_CHECKING:
    from simplu_worker.commands.running import Command

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

    def run(self, command: Command, *, for_run: bool = False, reports_misspellings: bool = False) -> int:
        """Run *command* with the settings; return its exit status."""
        from simplu_worker.commands.running import run_command

        return run_command(command, self.env_file, for_run=for_run, reports_misspellings=reports_misspellings)


NO_OPTIONS: Final = CommonOptions()
UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
DURATION_DIGITS_MAX: Final = 6


def parse_duration(option: str, text: str) -> timedelta:
    """Return the duration in *text*, such as 7d. Raises UsageError."""
    number, unit = text[:-1], UNITS.get(text[-1:])
    if unit is None or not (number.isascii() and number.isdecimal() and len(number) <= DURATION_DIGITS_MAX):
        raise UsageError(f"{option}: expected a number and one of s, m, h, d, such as 7d, got {text!r}")
    return timedelta(**{unit: int(number)})


def parse_time(option: str, text: str) -> datetime:
    """Return the time in *text*. Raises UsageError."""
    from simplu_worker.operations.json_record import EXPECTED_TIME, parse_timestamp

    try:
        return parse_timestamp(text)
    except ValueError:
        raise UsageError(f"{option}: expected {EXPECTED_TIME}, got {text!r}") from None
