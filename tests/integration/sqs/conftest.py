from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from support.aws.endpoints import client_of
from support.aws.servers import SQS, running_servers

from simplu_worker.aws.clients import Client


@pytest.fixture(scope="module", params=["moto", "ours"])
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with running_servers(SQS) as url_of:
        yield url_of(request.param)


@pytest.fixture
async def client(server_url: str) -> AsyncIterator[Client]:
    async with client_of("sqs", server_url) as opened:
        yield opened
