"""Read env files and secrets in files, and prepare the variables that botocore reads.

The order for a command: `apply_env_file`, then `settings.draft_settings`, then `prepare_aws_environment`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry.log import register_secret

OWN_SECRETS = (
    "CITRUS_API_KEY",
    "DATABASE_PASSWORD",
    "REDIS_URL",
    "API_TOKEN",
    "API_VIEWER_TOKEN",
    "BACKUP_URL",
    "IMPORT_SOURCE_URL",
)
URLS = ("REDIS_URL", "BACKUP_URL", "IMPORT_SOURCE_URL")  # of which the password alone is secret
AWS_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SECRETS = OWN_SECRETS + AWS_SECRETS

SECRET_MAX_BYTES = 65536  # so that a NAME_FILE that names a device or a log does not fill the memory

# A value that begins with a quote is read as a shell reads it: adjoining words are one value, which is how shlex.quote
# writes a quote inside quotes. Any other value is taken literally, up to " #". python-dotenv is not used because it
# does not join adjoining words, reads \' inside single quotes as an escape, and only logs the lines it drops.
_QUOTED_WORD = r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\]"""
_STATEMENT = re.compile(
    rf"""[ \t]*(?:export[ \t]+)?(?P<name>[^\s='"\#]+)[ \t]*=[ \t]*
         (?:(?P<quoted>(?=['"])(?:{_QUOTED_WORD})+)(?:[ \t]+\#[^\n]*)?[ \t]*
           |(?P<plain>(?!['"])[^\n]*))
         (?:\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_NOTHING = re.compile(r"[^\S\n]*(?:#[^\n]*)?(?:\n|\Z)")
_WORD = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|(?P<bare>[^\s'"\\])""", re.DOTALL
)
_DOUBLE_QUOTE_ESCAPE = re.compile(r'\\([$`"\\\n])')  # POSIX shell, 2.2.3: any other backslash stays
_COMMENT = re.compile(r"(?:^|\s)#.*")


# Kubernetes and Docker set such a NAME_PORT in every container beside a service called "name".
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://[0-9A-Za-z.:\[\]-]+:[0-9]+")


def is_service_link(name: str, value: str) -> bool:
    """Return whether the variable *name* is the address of a service, by chance under a name of ours; it is ignored."""
    return name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value) is not None


def parse_env(text: str) -> tuple[dict[str, str], list[int]]:
    """Return the variables of an env file's *text* and the numbers of the invalid lines.

    The last of several values of a name wins, as in a shell. Nothing is interpolated.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    variables: dict[str, str] = {}
    bad_lines: list[int] = []
    at = counted_at = 0
    line = 1
    while at < len(text):
        if nothing := _NOTHING.match(text, at):
            at = nothing.end()
        elif (statement := _STATEMENT.match(text, at)) and "\0" not in statement[0]:
            variables[statement["name"]] = _statement_value(statement)
            at = statement.end()
        else:
            line += text.count("\n", counted_at, at)
            counted_at = at
            bad_lines.append(line)
            at = text.find("\n", at) + 1 or len(text)
    return variables, bad_lines


def _statement_value(statement: re.Match[str]) -> str:
    if statement["quoted"] is None:
        return _COMMENT.sub("", statement["plain"]).strip()
    return "".join(_unquote(word) for word in _WORD.finditer(statement["quoted"]))


def _unquote(word: re.Match[str]) -> str:
    if word["double"] is not None:
        return _DOUBLE_QUOTE_ESCAPE.sub(lambda escape: escape[1].strip("\n"), word["double"])
    return word["single"] or word["escaped"] or word["bare"] or ""


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of the env file at *path*, written by `stack`, for a shell, or as a `.env`.

    Raises ConfigurationError if it cannot be read, and for lines that are not `NAME=value`, without their text.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError) as exc:
        raise ConfigurationError(
            f"--env-file: expected a readable UTF-8 file, got {str(path)!r} ({_reason(exc)})"
        ) from None
    variables, bad_lines = parse_env(text)
    if bad_lines:
        raise ConfigurationError(
            *(
                f"--env-file: expected NAME=value in {path}, line {line}; quote the value or comment it out"
                for line in bad_lines
            )
        )
    return variables


def apply_env_file(path: Path, environ: MutableMapping[str, str]) -> None:
    """Set in *environ* the variables of the env file at *path* that *environ* lacks, or has empty or as a service link.

    A secret in the environment as NAME hides NAME_FILE of the file, and the other way round.
    """
    given = {name for name, value in environ.items() if value and not is_service_link(name, value)}
    for secret in SECRETS:
        if not given.isdisjoint(twins := {secret, f"{secret}_FILE"}):
            given |= twins
    for name, value in read_env_file(path).items():
        if name not in given:
            environ[name] = value


def read_secrets(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return every secret in *environ*, given as a value or by NAME_FILE, and the problems.

    Registers each secret with the log, which masks it from then on.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for name in SECRETS:
        value, path = environ.get(name), environ.get(f"{name}_FILE")
        if value and path:
            problems.append(f"{name}: expected either {name} or {name}_FILE, got both; unset one")
        elif path:
            try:
                values[name] = _read_secret(Path(path))
            except (OSError, ValueError) as exc:
                problems.append(
                    f"{name}_FILE: expected a readable file with the secret in it, got {path!r} ({_reason(exc)})"
                )
        if value:
            values[name] = value
    for name, value in values.items():
        if name in URLS:
            register_secret(_url_password(value))
        elif name != "AWS_ACCESS_KEY_ID":  # an identifier and no secret; with local servers it is an ordinary word
            register_secret(value)
    return values, problems


def _url_password(url: str) -> str:
    """Return the secret part of a URL, so that the host and the port stay readable in errors."""
    return url.partition("://")[2].rpartition("@")[0].partition(":")[2]


def _read_secret(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(SECRET_MAX_BYTES + 1)
    if len(content) > SECRET_MAX_BYTES:
        raise ValueError(f"larger than {SECRET_MAX_BYTES} bytes")
    if not (secret := content.decode().rstrip("\r\n")):
        raise ValueError("empty")
    return secret


def prepare_aws_environment(environ: MutableMapping[str, str]) -> None:
    """Change *environ* so that botocore reads it as the contract requires: empty means unset, and NAME_FILE works.

    Idempotent. Call this after `draft_settings`, which returns the same problems.
    Raises ConfigurationError with them.
    """
    for name in [name for name, value in environ.items() if name.startswith("AWS_") and not value]:
        del environ[name]  # botocore takes an empty AWS_PROFILE as a profile without a name
    values, problems = read_secrets({name: environ[name] for name in _aws_names(environ)})
    if problems:
        raise ConfigurationError(*problems)
    for name, value in values.items():
        environ[name] = value
        environ.pop(f"{name}_FILE", None)


def _aws_names(environ: Mapping[str, str]) -> Iterator[str]:
    for secret in AWS_SECRETS:
        yield from (name for name in (secret, f"{secret}_FILE") if name in environ)


def _reason(exc: OSError | ValueError) -> str:
    match exc:
        case UnicodeDecodeError():
            return "not UTF-8"  # the text of the error would show bytes of the file
        case OSError(strerror=str() as reason):
            return reason
        case _:
            return str(exc)
