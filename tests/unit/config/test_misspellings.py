"""Misspelt variables: the nearest known one is named, and variables of other programs are left alone."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simplu_worker.config.environment import SECRETS
from simplu_worker.config.misspellings import KNOWN_VARIABLES, Misspelling, edit_distance, find_misspellings
from simplu_worker.config.settings import VARIABLES

MISSPELT = [
    ("KINESIS_STREAM", "KINESIS_STREAM_NAME"),
    ("KINISIS_STREAM_NAME", "KINESIS_STREAM_NAME"),
    ("KINESIS_STEAM_NAME", "KINESIS_STREAM_NAME"),
    ("kinesis_stream_name", "KINESIS_STREAM_NAME"),
    ("KINESIS-STREAM-NAME", "KINESIS_STREAM_NAME"),
    ("KINESIS_STREAMNAME", "KINESIS_STREAM_NAME"),
    ("KINESIS_LEASE_DURATION", "KINESIS_LEASE_DURATION_SECONDS"),
    ("KINESIS_LEASE_DURATION_SECS", "KINESIS_LEASE_DURATION_SECONDS"),
    ("SQS_DEADLETTER_QUEUE_URL", "SQS_DEAD_LETTER_QUEUE_URL"),
    ("SQS_DEAD_LETTERS_QUEUE_URL", "SQS_DEAD_LETTER_QUEUE_URL"),
    ("SQS_ORDER_EVENT_QUEUE_URL", "SQS_ORDER_EVENTS_QUEUE_URL"),
    ("CITRUS_URL", "CITRUS_SERVER_URL"),
    ("CITRUS_KEY", "CITRUS_API_KEY"),
    ("CITRUS_KEY_FILE", "CITRUS_API_KEY_FILE"),
    ("CITURS_SERVER_URL", "CITRUS_SERVER_URL"),
    ("DATABASE_USER", "DATABASE_USERNAME"),
    ("DATABASE_USRNAMES", "DATABASE_USERNAME"),
    ("DATABASE_PASSWD", "DATABASE_PASSWORD"),
    ("DATABASE_PASSWORDFILE", "DATABASE_PASSWORD_FILE"),
    ("DATABASE_ALOWED_HOSTS", "DATABASE_ALLOWED_HOSTS"),
    ("DATABASE_MAX_CONNS", "DATABASE_MAX_CONNECTIONS"),
    ("SHARD_MAP", "SHARD_MAP_FILE"),
    ("REDIS_URI", "REDIS_URL"),
    ("REDDIS_URL", "REDIS_URL"),
    ("API_TOKENS", "API_TOKEN"),
    ("ALLOW_DESTRUCTIVE", "ALLOW_DESTRUCTIVE_HTTP"),
    ("PROVISION_ON_USE", "PROVISION_ON_FIRST_USE"),
    ("LOG_LVL", "LOG_LEVEL"),
    ("LOG_LEVLE", "LOG_LEVEL"),
    ("SHUTDOWN_GRACE_SECOND", "SHUTDOWN_GRACE_SECONDS"),
    ("AWS_REGOIN", "AWS_REGION"),
    ("AWS_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_ENDPOINT_URL_KINESSIS", "AWS_ENDPOINT_URL_KINESIS"),
]

# Of the reference's other programs, of proxies and AWS, and what Kubernetes sets for services called citrus, redis, …
OF_OTHERS = [
    "DATABASE_TYPE",
    "DATABASE_URL",
    "DATABASE_UN",
    "DATABASE_RAM",
    "DATABASE_SSL",
    "RDS_HOST",
    "NUM_SHARDS",
    "VALIDATION_ENABLED",
    "COGNITO_USER_POOL_ID",
    "OTEL_SEMCONV_STABILITY_OPT_IN",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "HTTPS_PORT",
    "http_proxy",
    "NO_PROXY",
    "AWS_ENDPOINT_URL_SNS",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_DEFAULT_REGION",
    "AWS_DEFAULT_PROFILE",
    "AWS_DEFAULT_OUTPUT",
    "AWS_SECURITY_TOKEN",
    "AWS_CA_BUNDLE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_EXECUTION_ENV",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_ACCOUNT_ID",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
    "AWS_PROFILE",
    "REDIS_URL_2",
    "REDIS_HOST",
    "REDIS_PORT",
    "REDIS_PORT_6379_TCP",
    "REDIS_SERVICE_HOST",
    "REDIS_SERVICE_PORT",
    "CITRUS_PORT",
    "CITRUS_PORT_8080_TCP_ADDR",
    "CITRUS_SERVICE_HOST",
    "CITRUS_SERVER_PORT",
    "CITRUS_SERVER_SERVICE_HOST",
    "CITRUS_SERVER_SERVICE_PORT_HTTP",
    "DATABASE_SERVICE_HOST",
    "DATABASE_PORT_5432_TCP_PORT",
    "HTTP_SERVICE_HOST",
    "SIMPLU_WORKER_PORT",
    "LOGNAME",
    "GENESIS_STREAM_NAME",
    "LOG_FILE",
    "LOG_LABEL",
    "LOG_DIR",
    "TENANT_ID",
    "TENANT",
    "API_KEY",
    "API_URL",
    "LIST",
    "PATH",
    "HOME",
    "LANG",
    "PWD",
    "_",
    "",
]


@pytest.mark.parametrize(("name", "nearest"), MISSPELT)
def test_misspelling_names_the_nearest_known_variable(name: str, nearest: str) -> None:
    """A letter too many, too few, wrong or exchanged, and words left out or abbreviated."""
    assert [Misspelling(name, nearest)] == list(find_misspellings([name]))


@pytest.mark.parametrize("name", OF_OTHERS)
def test_misspelling_is_none_when_the_variable_is_of_another_program(name: str) -> None:
    """Other programs share the environment."""
    assert list(find_misspellings([name])) == []


def test_misspelling_is_none_when_the_variable_is_known() -> None:
    """Every variable of the page of all variables is known, and each secret also as the file of that secret."""
    assert {*VARIABLES, *SECRETS, *(f"{name}_FILE" for name in SECRETS)} <= KNOWN_VARIABLES
    assert list(find_misspellings(KNOWN_VARIABLES)) == []


@given(st.lists(st.text(max_size=40)))
@example(["KINESIS_" + "A" * 100_000])
def test_misspellings_are_sought_when_names_are_anything(names: list[str]) -> None:
    """Any names give misspellings of them, in their order."""
    found = [misspelling.name for misspelling in find_misspellings(names)]
    assert found == [name for name in names if name in found]


@given(st.text("AB_", max_size=8), st.text("AB_", max_size=8), st.text("AB_", max_size=8))
@example("AB", "BA", "")
def test_edit_distance_is_a_count_of_edits(first: str, second: str, more: str) -> None:
    """Zero for equal texts alone, the same both ways, at most the longer length, unchanged by a common beginning."""
    distance = edit_distance(first, second)
    assert (distance == 0) == (first == second)
    assert distance == edit_distance(second, first)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))
    assert distance == edit_distance(more + first, more + second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("LEVEL", "LEVLE", 1), ("AB", "BA", 1), ("BAC", "ABC", 1), ("URL", "URI", 1), ("A", "", 1), ("PORT", "PROXY", 3)],
)
def test_edit_distance_counts_an_exchange_of_neighbours_as_one_edit(first: str, second: str, expected: int) -> None:
    """As keyboards produce them."""
    assert expected == edit_distance(first, second)
