"""The kinds of values that variables have: how a text is parsed, and the words for the expected value."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Secret:
    """A text that its `repr` does not show."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Kind(NamedTuple, Generic[T_co]):
    """A kind of values. *parse* returns the value of a text, and raises ValueError for a text that is none."""

    expected: str
    parse: Callable[[str], T_co]


def integer(low: int, high: int) -> Kind[int]:
    """Return the kind of whole numbers from *low* to *high*."""

    def parse(text: str) -> int:
        value = int(re.sub(r"\.0+\s*\Z", "", text))
        if not low <= value <= high:
            raise ValueError("out of bounds")
        return value

    return Kind(f"an integer between {low} and {high}", parse)


def number(low: float, high: float) -> Kind[float]:
    """Return the kind of numbers from *low* to *high*."""
    return Kind(f"a number between {low} and {high}", lambda text: _parse_number(text, low, high))


def number_above(low: float, high: float) -> Kind[float]:
    """Return the kind of numbers above *low*, up to *high*."""

    def parse(text: str) -> float:
        if (value := _parse_number(text, low, high)) == low:
            raise ValueError("out of bounds")
        return value

    return Kind(f"a number above {low}, at most {high}", parse)


def one_of(*values: str) -> Kind[Any]:
    """Return the kind of these words."""

    def parse(text: str) -> str:
        return values[values.index(text)]

    return Kind(" or ".join(", ".join(values).rsplit(", ", 1)), parse)


def matching(pattern: str, expected: str) -> Kind[str]:
    """Return the kind of texts that match *pattern* from their beginning to their end."""

    def parse(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError("another form")
        return text

    return Kind(expected, parse)


def items(kind: Kind[T], expected: str, *, count_max: int | None = None) -> Kind[tuple[T, ...]]:
    """Return the kind of values of *kind*, separated by commas; of *count_max* at most, where it is given."""

    def parse(text: str) -> tuple[T, ...]:
        parts = text.split(",")
        if count_max is not None and len(parts) > count_max:
            raise ValueError("too many")
        return tuple(kind.parse(part.strip()) for part in parts)

    return Kind(expected, parse)


def _parse_number(text: str, low: float, high: float) -> float:
    value = float(text)
    if not low <= value <= high:  # infinity and "not a number" are not between either
        raise ValueError("out of bounds")
    return value


def _parse_boolean(text: str) -> bool:
    word = text.lower()
    if word in {"true", "t", "yes", "y", "on", "1"}:
        return True
    if word in {"false", "f", "no", "n", "off", "0"}:
        return False
    raise ValueError("neither")


_LEVELS: Final = one_of("debug", "info", "warning", "error")


def _parse_level(text: str) -> Any:
    word = text.lower()
    return _LEVELS.parse("warning" if word == "warn" else word)


def _parse_position(text: str) -> Any:
    if text in {"TRIM_HORIZON", "LATEST"}:
        return text
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment < datetime(1970, 1, 1, tzinfo=UTC):
        raise ValueError("Kinesis counts from 1970")
    return moment


def _parse_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0 or "@" in text:
        raise ValueError("not an http(s) URL")
    if _has_space(text):  # urlsplit drops some of these unseen
        raise ValueError("white space")
    return text


def _parse_server_url(text: str) -> str:
    url = urlsplit(_parse_url(text))
    if url.query or url.fragment:
        raise ValueError("a query or fragment, to which no path can be appended")
    return text.rstrip("/")


def _parse_redis_url(text: str) -> Secret:
    url = urlsplit(text)
    place = url.path if url.scheme == "unix" else url.hostname
    if url.scheme not in {"redis", "rediss", "unix"} or not place or _has_space(text):
        raise ValueError("not a URL of Redis")
    if url.scheme != "unix" and url.port == 0:
        raise ValueError("port 0")
    return Secret(text)


def _has_space(text: str) -> bool:
    return re.search(r"[\s\x00-\x1f\x7f]", text) is not None


def _parse_header_secret(text: str) -> Secret:
    if re.fullmatch(r"[!-~]+", text) is None:
        raise ValueError("not usable in a header")
    return Secret(text)


def _parse_file(text: str) -> Path:
    path = Path(text)
    if not is_file(path):
        raise ValueError("no file")
    return path


def is_file(path: Path) -> bool:
    """Return whether this user can find a file at *path*."""
    try:
        return path.is_file()
    except OSError:  # a folder that this user may not enter
        return False


TEXT: Final = Kind("text", str)
BOOLEAN: Final = Kind("true or false", _parse_boolean)
LEVEL: Final = Kind(_LEVELS.expected, _parse_level)
SECRET: Final = Kind("text", Secret)
HEADER_SECRET: Final = Kind("visible ASCII characters without spaces", _parse_header_secret)
SERVER_URL: Final = Kind("an http(s) URL without credentials, query and fragment", _parse_server_url)
QUEUE_URL: Final = Kind("the http(s) URL of a queue, without credentials", _parse_url)
REDIS_URL: Final = Kind("a redis://, rediss:// or unix:// URL", _parse_redis_url)
FILE: Final = Kind("the path of a file that exists", _parse_file)
REGION: Final = matching(r"[a-z0-9-]+", "the name of a region, such as eu-central-1")
STREAM: Final = matching(
    r"(arn:[\w-]+:kinesis:[\w-]+:\d{12}:stream/)?[a-zA-Z0-9_.-]{1,128}", "the name or ARN of a stream"
)
POSITION: Final = Kind("TRIM_HORIZON, LATEST or an ISO 8601 time", _parse_position)
TABLE: Final = matching(
    r"(arn:[\w-]+:dynamodb:[\w-]+:\d{12}:table/)?[a-zA-Z0-9_.-]{3,255}", "the name or ARN of a DynamoDB table"
)
TABLE_NAME: Final = matching(r"[a-zA-Z0-9_.-]{3,255}", "the name of a DynamoDB table, 3 to 255 of a-z A-Z 0-9 _ . -")
CONSUMER: Final = matching(r"[a-zA-Z0-9_.-]{1,128}", "the name of a consumer, 1 to 128 of a-z A-Z 0-9 _ . -")
TENANT_PART: Final = matching(r"(?s:.{1,128})", "1 to 128 characters")
HOST: Final = matching(r"[^\s@]+", "a host name or an address")
DATABASE_HOST: Final = matching(r"[^\s@?]+", "a host name, an address or a socket's folder")
FOLDERS: Final = items(matching(r"/[^,]*", "the whole path of a folder"), "comma-separated whole paths of folders")
HOST_PATTERNS: Final = items(matching(r"[^\s@/,]+", "a host pattern"), "comma-separated host patterns")
# SQS: a message is invisible for at most 12 hours.
RETRY_DELAYS: Final = items(number(0, 43200), "comma-separated seconds, each between 0 and 43200", count_max=100)
