from __future__ import annotations

from support.configuration_page import AREAS, PAGE, render_page

from simplu_worker.config.loading import KNOWN_VARIABLES, find_misspellings
from simplu_worker.config.settings import VARIABLES

MISSPELT = {
    "kinesis_stream_name": "KINESIS_STREAM_NAME",
    "KINESIS_LEASE_DURATION": "KINESIS_LEASE_DURATION_SECONDS",
    "CITURS_SERVER_URL": "CITRUS_SERVER_URL",
    "CITRUS_KEY_FILE": "CITRUS_API_KEY_FILE",
    "DATABASE_USER": "DATABASE_USERNAME",
    "REDIS_URI": "REDIS_URL",
    "LOG_LVL": "LOG_LEVEL",
    "AWS_REGOIN": "AWS_REGION",
    "AWS_ENDPOINT_URL_KINESSIS": "AWS_ENDPOINT_URL_KINESIS",
}

# Of the reference's other programs, of proxies and AWS, and what Kubernetes sets for services called citrus, redis, …
OF_OTHERS = [
    *("DATABASE_TYPE", "DATABASE_URL", "RDS_HOST", "HTTP_PROXY", "http_proxy", "AWS_ENDPOINT_URL_SNS"),
    *("AWS_DEFAULT_OUTPUT", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "REDIS_URL_2"),
    *("REDIS_HOST", "REDIS_PORT_6379_TCP", "CITRUS_SERVICE_HOST", "CITRUS_SERVER_SERVICE_PORT_HTTP"),
    *("DATABASE_PORT_5432_TCP_PORT", "LOG_DIR", "TENANT_ID", "API_KEY", "PATH", "_"),
]


def test_misspelling_names_the_nearest_known_variable() -> None:
    assert find_misspellings([*MISSPELT, *OF_OTHERS]) == MISSPELT
    assert find_misspellings(KNOWN_VARIABLES) == {}


def test_page_in_the_repository_is_the_generated_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render_page(page) == page


def test_page_has_every_variable_and_every_area_once() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(VARIABLES)
    assert [row for row in rows if not row.endswith(". |")] == []
    assert [line for line in lines if line.startswith("## ")] == [f"## {area}" for area in AREAS.values()]
