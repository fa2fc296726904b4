"""The types of variables' values, and the words for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Secret
from pydantic_core import PydanticUseDefault
from pydantic_settings import NoDecode

from simplu_worker.operations.json_record import parse_timestamp


def describe_values(schema: Mapping[str, Any]) -> str:
    """Return the words for the values that a JSON schema allows."""
    match schema:
        case {"anyOf": parts}:
            return " or ".join(describe_values(part) for part in parts if part.get("type") != "null")
        case {"enum": [*others, last]}:
            return f"{', '.join(others)} or {last}"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "integer" | "number" as kind, "minimum": low, "maximum": high}:
            return f"{'an integer' if kind == 'integer' else 'a number'} between {low} and {high}"
        case {"type": "number", "exclusiveMinimum": low, "maximum": high}:
            return f"a number above {low}, at most {high}"
        case {"minLength": low, "maxLength": high}:
            return f"{low} to {high} characters"
        case {"pattern": _, "title": words} | {"type": "array", "title": words}:
            return str(words)
        case _:
            words = {"date-time": "a time of RFC 3339", "path": "the path of a file"}
            return str(words.get(schema.get("format", ""), "text"))


def is_service_link(value: str) -> bool:
    """Return whether Kubernetes has set the variable, as it does for a service called `http`."""
    return value.startswith(("tcp://", "udp://", "sctp://"))


def _skip_service_link(value: object) -> object:
    if isinstance(value, str) and is_service_link(value):
        raise PydanticUseDefault
    return value


def _check_url(text: str) -> str:
    url = urlsplit(text)
    if not (url.hostname or url.scheme == "unix") or url.port == 0:  # .port raises ValueError for one over 65535
        raise ValueError("no host or no port")
    return text


def _parse_time(value: object) -> object:
    return parse_timestamp(value) if isinstance(value, str) else value  # pydantic takes digits for seconds since 1970


def _check_time(time: datetime) -> datetime:
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if time < datetime(1970, 1, 1, tzinfo=UTC):
        raise ValueError("Kinesis counts from 1970")
    return time


def _check_network(entry: str) -> str:
    if "/" in entry:
        ip_network(entry)  # raises ValueError
    return entry


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Url: Final = AfterValidator(_check_url)
CommaSeparated: Final = BeforeValidator(_split)

Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(_skip_service_link)]
PortOrAny = Annotated[int, Field(ge=0, le=65535), BeforeValidator(_skip_service_link)]
Text = Annotated[str, Field(min_length=1)]  # a bare str may have bytes of the environment that are not UTF-8
Name = Annotated[str, Field(min_length=1, max_length=128)]
Region = Annotated[str, Field(pattern=r"^[a-z0-9-]+$", title="the name of a region, such as eu-central-1")]
Stream = Annotated[
    str,
    Field(
        pattern=r"^(arn:[\w-]+:kinesis:[\w-]+:[0-9]{12}:stream/)?[a-zA-Z0-9_.-]{1,128}$",
        title="the name or ARN of a stream",
    ),
]
Table = Annotated[
    str,
    Field(
        pattern=r"^(arn:[\w-]+:dynamodb:[\w-]+:[0-9]{12}:table/)?[a-zA-Z0-9_.-]{3,255}$",
        title="the name or ARN of a DynamoDB table",
    ),
]
TableName = Annotated[
    str, Field(pattern=r"^[a-zA-Z0-9_.-]{3,255}$", title="the name of a DynamoDB table, 3 to 255 of a-z A-Z 0-9 _ . -")
]
ConsumerName = Annotated[
    str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$", title="the name of a consumer, 1 to 128 of a-z A-Z 0-9 _ . -")
]
Position = (
    Literal["TRIM_HORIZON", "LATEST"] | Annotated[datetime, BeforeValidator(_parse_time), AfterValidator(_check_time)]
)
ServerUrl = Annotated[
    str,
    Field(pattern=r"^https?://[^\s@?#]+$", title="an http(s) URL without credentials, query and fragment"),
    Url,
    AfterValidator(lambda url: url.rstrip("/")),
]
QueueUrl = Annotated[
    str, Field(pattern=r"^https?://[^\s@]+$", title="the http(s) URL of a queue, without credentials"), Url
]
Delays = Annotated[  # SQS: a message is invisible for at most 12 hours
    tuple[Annotated[float, Field(ge=0, le=43200)], ...],
    Field(max_length=100, title="comma-separated seconds, at most 100, each between 0 and 43200"),
    NoDecode,
    CommaSeparated,
]
Host = Annotated[str, Field(pattern=r"^[^\s@]+$", title="a host name or an address")]
DatabaseHost = Annotated[str, Field(pattern=r"^[^\s@?]+$", title="a host name, an address or a socket's folder")]
HostPatterns = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[^\s@/,]+$")], ...],
    Field(title="comma-separated host patterns"),
    NoDecode,
    CommaSeparated,
]
HostsAndNetworks = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[^\s@,]+$"), AfterValidator(_check_network)], ...],
    Field(title="comma-separated host patterns, addresses and networks"),
    NoDecode,
    CommaSeparated,
]
Level = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)]
SecretText = Secret[Text]
SecretToken = Secret[Annotated[str, Field(pattern="^[!-~]+$", title="visible ASCII characters without spaces")]]
RedisUrl = Secret[
    Annotated[
        str, Field(pattern=r"^(rediss?://\S+|unix://\S*/\S*)$", title="a redis://, rediss:// or unix:// URL"), Url
    ]
]
