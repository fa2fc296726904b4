"""Load the settings: `load_env_file`, `draft_settings`, then `prepare_environment` for libraries."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from dotenv.parser import parse_stream
from pydantic import ValidationError

from simplu_worker.config.settings import (
    SECRETS,
    VARIABLES,
    Settings,
    find_contradictions,
    find_omissions,
    find_region,
    schemas,
)
from simplu_worker.config.values import describe_values, is_service_link
from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry.log import register_secret, scrub_text

SHOWN_VALUE_MAX_LENGTH: Final = 100
# With these the connections of all shards would be others than those that their addresses describe.
REFUSED_VARIABLES: Final = (
    *("PGGSSLIB", "PGKRBSRVNAME", "PGSERVICE", "PGSERVICEFILE", "PGSSLMAXPROTOCOLVERSION", "PGSSLMINPROTOCOLVERSION"),
    *("PGSSLMODE", "PGSSLNEGOTIATION"),
)
VARIABLES_WITH_FILES: Final = ("PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGSSLCRL")
# asyncpg would take them for what the address of a shard lacks; psql and others in the environment have them.
OF_OTHER_SERVERS: Final = ("PGPASSWORD", "PGPORT", "PGUSER")
AWS_SECRETS: Final = tuple(name for name in SECRETS if name.startswith("AWS_"))


def load_env_file(path: Path) -> None:
    """Set the variables of the file that the environment lacks, has empty, or has as a service link.

    Raises ConfigurationError for an unreadable file, and for lines that are not `NAME=value`, without their text.
    """
    try:
        content = path.read_text("utf-8")
    except (OSError, ValueError) as exc:
        got = f"{str(path)!r} ({_reason(exc)})"
        raise ConfigurationError(f"--env-file: expected a readable UTF-8 file, got {got}") from None
    variables = {}
    problems = []
    for name, value, (text, line), is_invalid in parse_stream(io.StringIO(content)):
        if is_invalid or "\0" in text or (name is not None and (value is None or "=" in name)):
            line_end = line + text.rstrip().count("\n")  # python-dotenv counts blank lines before a statement to it
            advice = "quote the value or comment it out"
            problems.append(f"--env-file: expected NAME=value in {path}, line {line_end}; {advice}")
        elif name is not None and value is not None:
            variables[name] = value
    if problems:
        raise ConfigurationError(*problems)
    given = {name for name, value in os.environ.items() if value and not is_service_link(value)}
    os.environ.update({name: value for name, value in variables.items() if name not in given})


def draft_settings(*, for_run: bool) -> tuple[Settings, list[str]]:
    """Return the settings, with defaults in place of invalid values, and every problem.

    *for_run* requires what `run` needs. Registers every secret with the log, which masks it.
    """
    secrets, problems = _read_secret_files()
    given: dict[str, Any] = {name: value for name, value in os.environ.items() if value} | secrets
    for name in SECRETS:
        _register(name, given.get(name, ""))
    given["AWS_REGION"] = find_region(given)
    chosen = {name: given[name] for name in (*secrets, "AWS_REGION")}
    try:
        settings, invalid = Settings(**chosen), {}
    except ValidationError as exc:
        invalid = {name: given[name] for name in (str(error["loc"][0]) for error in exc.errors())}
        settings = Settings(**chosen | {name: VARIABLES[name].default for name in invalid})
    problems += [_describe_problem(name, text) for name, text in invalid.items()]
    problems += [
        f"{name}: expected text without line ends and other control characters, got one with them"
        for name, text in sorted(os.environ.items())
        if name.startswith("AWS_") or name.upper().endswith("_PROXY")
        if name not in invalid and not text.isprintable()
    ]
    problems += [
        f"{name}: expected none, as the address of each shard has its own options; unset it"
        for name in REFUSED_VARIABLES
        if os.environ.get(name)
    ]
    problems += [
        f"{name}: expected a file of certificates or of their key that this user may read, got {path!r}"
        for name in VARIABLES_WITH_FILES
        if (path := os.environ.get(name)) and not os.access(path, os.R_OK)
    ]
    as_given = settings.model_copy(update={name.lower(): text for name, text in invalid.items()})
    problems += find_contradictions(as_given)
    problems += find_omissions(as_given, given) if for_run else ()
    return settings, [scrub_text(problem) for problem in problems]


def _read_secret_files() -> tuple[dict[str, str], list[str]]:
    secrets = {}
    problems = []
    for name in SECRETS:
        path = os.environ.get(f"{name}_FILE")
        if path and os.environ.get(name):
            problems.append(f"{name}: expected either {name} or {name}_FILE, got both; unset one")
        elif path:
            try:
                secrets[name] = _read_secret(Path(path))
            except (OSError, ValueError) as exc:
                got = f"{path!r} ({_reason(exc)})"
                problems.append(f"{name}_FILE: expected a readable file with the secret in it, got {got}")
    return secrets, problems


def _read_secret(path: Path) -> str:
    if not (secret := path.read_text("utf-8").rstrip("\r\n")):
        raise ValueError("empty")
    return secret


def _reason(exc: OSError | ValueError) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return "not UTF-8"  # the text of the error shows bytes of the file
    return getattr(exc, "strerror", None) or str(exc)


def _register(name: str, secret: str) -> None:
    if name.endswith("_URL"):  # of which the password alone is secret, so that errors can name the host
        register_secret(secret.partition("://")[2].rpartition("@")[0].partition(":")[2])
    elif name != "AWS_ACCESS_KEY_ID":  # an identifier and no secret; with local servers it is an ordinary word
        register_secret(secret)


def _describe_problem(name: str, value: str) -> str:
    if name in SECRETS:
        got = "something else, which is not shown"
    elif "@" in value:
        got = "a value with @, which is not shown because it may contain a password"
    else:
        got = repr(scrub_text(value))
        got = got if len(got) <= SHOWN_VALUE_MAX_LENGTH else f"{got[:SHOWN_VALUE_MAX_LENGTH]}…"
    return f"{name}: expected {describe_values(schemas()[name])}, got {got}"


def prepare_environment(settings: Settings) -> None:
    """Have libraries read the environment as documented: empty means unset, and NAME_FILE works."""
    for name in [name for name, value in os.environ.items() if name.startswith(("AWS_", "PG")) and not value]:
        del os.environ[name]  # botocore takes an empty AWS_PROFILE as a profile without a name
    for name in OF_OTHER_SERVERS:
        os.environ.pop(name, None)
    for name in AWS_SECRETS:
        if (secret := getattr(settings, name.lower())) is not None:
            os.environ[name] = secret.get_secret_value()
            os.environ.pop(f"{name}_FILE", None)


SIMILARITY_MIN: Final = 0.82  # finds LOG_LVL and DATABASE_USER, and leaves DATABASE_URL and HTTP_PROXY alone
AWS_VARIABLES: Final = (
    *("AWS_CONFIG_FILE", "AWS_DEFAULT_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"),
    *("AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_SQS", "AWS_PROFILE"),
    "AWS_SHARED_CREDENTIALS_FILE",
)
KNOWN_VARIABLES: Final = frozenset({*AWS_VARIABLES, *VARIABLES, *(f"{name}_FILE" for name in SECRETS)})
# AWS_ENDPOINT_URL_SNS and others of three letters are variables of other programs.
_CANDIDATES: Final = sorted(KNOWN_VARIABLES - {"AWS_ENDPOINT_URL_SQS"})


def find_misspellings(names: Iterable[str]) -> dict[str, str]:
    """Return those of *names* that resemble a variable of ours, each with the nearest one."""
    nearest = {name: get_close_matches(name.upper(), _CANDIDATES, 1, SIMILARITY_MIN) for name in names}
    return {
        name: found[0]
        for name, found in nearest.items()
        # REDIS_URL_2 and DATABASE_PORT_5432_TCP, as Kubernetes sets it, have a name of ours and more.
        if found and name not in KNOWN_VARIABLES and not name.startswith(f"{found[0]}_")
    }
