from __future__ import annotations

import pytest

from simplu_worker.config.loading import KNOWN_VARIABLES, find_misspellings

MISSPELT = [
    ("KINISIS_STREAM_NAME", "KINESIS_STREAM_NAME"),
    ("kinesis_stream_name", "KINESIS_STREAM_NAME"),
    ("KINESIS-STREAM-NAME", "KINESIS_STREAM_NAME"),
    ("KINESIS_LEASE_DURATION", "KINESIS_LEASE_DURATION_SECONDS"),
    ("SQS_DEADLETTER_QUEUE_URL", "SQS_DEAD_LETTER_QUEUE_URL"),
    ("CITURS_SERVER_URL", "CITRUS_SERVER_URL"),
    ("CITRUS_KEY_FILE", "CITRUS_API_KEY_FILE"),
    ("DATABASE_USER", "DATABASE_USERNAME"),
    ("DATABASE_PASSWD", "DATABASE_PASSWORD"),
    ("REDIS_URI", "REDIS_URL"),
    ("ALLOW_DESTRUCTIVE", "ALLOW_DESTRUCTIVE_HTTP"),
    ("LOG_LVL", "LOG_LEVEL"),
    ("AWS_REGOIN", "AWS_REGION"),
    ("AWS_ENDPOINT_URL_KINESSIS", "AWS_ENDPOINT_URL_KINESIS"),
]

# Of the reference's other programs, of proxies and AWS, and what Kubernetes sets for services called citrus, redis, …
OF_OTHERS = [
    "DATABASE_TYPE",
    "DATABASE_URL",
    "RDS_HOST",
    "HTTP_PROXY",
    "http_proxy",
    "AWS_ENDPOINT_URL_SNS",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_OUTPUT",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "REDIS_URL_2",
    "REDIS_HOST",
    "REDIS_PORT_6379_TCP",
    "CITRUS_SERVICE_HOST",
    "CITRUS_SERVER_SERVICE_PORT_HTTP",
    "DATABASE_PORT_5432_TCP_PORT",
    "LOG_DIR",
    "TENANT_ID",
    "API_KEY",
    "PATH",
    "_",
]


@pytest.mark.parametrize(("name", "nearest"), MISSPELT)
def test_misspelling_names_the_nearest_known_variable(name: str, nearest: str) -> None:
    assert find_misspellings([name]) == {name: nearest}


@pytest.mark.parametrize("name", OF_OTHERS)
def test_variable_of_another_program_is_no_misspelling(name: str) -> None:
    assert find_misspellings([name]) == {}


def test_misspelling_is_none_when_the_variable_is_known() -> None:
    assert find_misspellings(KNOWN_VARIABLES) == {}
