from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from support.aws.servers import KINESIS, running_servers


@pytest.fixture(scope="module")
def kinesis_url() -> Iterator[str]:
    with running_servers(KINESIS) as url_of:
        yield url_of("ours")


@pytest.fixture(autouse=True)
def _logs_are_not_printed() -> Iterator[None]:
    """Keep the log, which is not set up here, away from what a command prints."""
    with capture_logs():
        yield
