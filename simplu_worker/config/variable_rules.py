"""The rules across variables. They apply to invalid values too: *given* has these as the texts that were given."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Final, NamedTuple

from simplu_worker.config.settings import Settings


class SourceVariable(NamedTuple):
    """A source of the worker, each of which may be left out: its name for people, its variable, and what it brings."""

    name: str
    variable: str
    brings: str


ALL_SOURCES: Final = (
    SourceVariable("stream", "KINESIS_STREAM_NAME", "operations of a Kinesis stream"),
    SourceVariable(
        "control queue", "SQS_SHARD_CREATION_QUEUE_URL", "control messages, which create and destroy tenants"
    ),
    SourceVariable("order events", "SQS_ORDER_EVENTS_QUEUE_URL", "order events"),
    SourceVariable("priority order events", "SQS_PRIORITY_QUEUE_URL", "order events that go before others"),
)
SOURCES: Final = tuple(source.variable for source in ALL_SOURCES)
SOURCE_QUEUES: Final = SOURCES[1:]
ROUTES: Final = ("CITRUS_SERVER_URL", "SHARD_MAP_FILE", "DATABASE_HOST")  # in their order of precedence
TLS_FILES: Final = ("HTTP_TLS_CERT_FILE", "HTTP_TLS_KEY_FILE")
ORDER_TENANT: Final = ("ORDER_EVENTS_BUSINESS_ID", "ORDER_EVENTS_LOCATION_ID")
# The older form begins with the region: https://eu-central-1.queue.amazonaws.com/.
_QUEUE_HOST: Final = re.compile(r"https?://(?:sqs\.)?([a-z]{2,}(?:-[a-z]+)+-\d+)\.(?:queue\.)?amazonaws\.com")


def set_of(settings: Settings, *names: str) -> list[str]:
    """Return those of the variables *names* that are set."""
    return [name for name in names if getattr(settings, name.lower()) is not None]


def unset_sources(settings: Settings) -> list[SourceVariable]:
    """Return the sources that are not configured, and of which the worker reads nothing."""
    return [source for source in ALL_SOURCES if not set_of(settings, source.variable)]


def find_contradictions(given: Settings) -> Iterator[str]:
    """Yield a problem for each pair of variables that contradict each other."""
    queues = {name: getattr(given, name.lower()) for name in set_of(given, *SOURCE_QUEUES)}
    queues["SQS_DEAD_LETTER_QUEUE_URL"] = given.dead_letter_queue_url or ""
    for first, second in combinations(queues, 2):
        if queues[first].rstrip("/") == queues[second].rstrip("/"):
            yield f"{second}: expected another queue than {first}, got the same; give each a queue of its own"
    routes = set_of(given, *ROUTES)
    if routes[:2] == ["CITRUS_SERVER_URL", "SHARD_MAP_FILE"]:
        yield "SHARD_MAP_FILE: expected either CITRUS_SERVER_URL or SHARD_MAP_FILE, got both; unset one"
    if routes == ["DATABASE_HOST"]:
        for name in ("DATABASE_NAME", "DATABASE_USERNAME"):
            if not set_of(given, name):
                yield f"{name}: expected a value, since DATABASE_HOST names the only shard, got nothing; set it"
    for pair in (ORDER_TENANT, TLS_FILES):
        match set_of(given, *pair):
            case [name]:
                (missing,) = {*pair} - {name}
                yield f"{missing}: expected a value, since {name} is set, got nothing; set both or neither"
    if given.api_token is not None and given.api_token == given.api_viewer_token:
        yield "API_VIEWER_TOKEN: expected another token than API_TOKEN, got the same; every viewer would be an operator"


def find_omissions(given: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a problem for each variable that `run` needs and that is not set."""
    sources = set_of(given, *SOURCES)
    if not sources:
        yield f"{SOURCES[0]}: expected a source, {' or '.join(SOURCES)}, got none; set one"
    elif given.dead_letter_queue_url is None:
        yield (
            "SQS_DEAD_LETTER_QUEUE_URL: expected the URL of a queue for dead letters, "
            f"since {' and '.join(sources)} is set, got nothing; set it"
        )
    if sources and given.aws_region is None and not _has_aws_profile(environ):
        yield "AWS_REGION: expected the name of a region, got nothing; set it, or AWS_DEFAULT_REGION, or AWS_PROFILE"
    if not set_of(given, *ROUTES):
        yield f"{ROUTES[0]}: expected a way to find shards, {' or '.join(ROUTES)}, got none; set one"


def find_region(environ: Mapping[str, str]) -> str | None:
    """Return the region that *environ* names, in a variable or in the URL of a source queue.

    None where the profile names one, which botocore finds.
    """
    if region := environ.get("AWS_REGION", environ.get("AWS_DEFAULT_REGION")):
        return region
    hosts = (_QUEUE_HOST.match(environ.get(name, "")) for name in SOURCE_QUEUES)
    region = next((host[1] for host in hosts if host is not None), None)
    if region is not None and _has_aws_profile(environ):
        from simplu_worker.aws.profiles import names_region  # noqa: PLC0415 - it imports botocore, for few alone

        if names_region(environ.get("AWS_PROFILE", environ.get("AWS_DEFAULT_PROFILE"))):
            return None
    return region


def _has_aws_profile(environ: Mapping[str, str]) -> bool:
    """Return whether a profile may name the region; botocore, which the caller asks, decides whether it does."""
    # os.path, because Path raises for a folder that this user may not enter.
    config = os.path.join(environ.get("HOME", ""), ".aws", "config")  # noqa: PTH118
    named = {"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE"} & environ.keys()
    return bool(named) or os.path.isfile(config)  # noqa: PTH113
