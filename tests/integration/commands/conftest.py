from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from support.aws.servers import KINESIS, running_servers
from support.postgres.databases import ShardMaker
from support.postgres.move_cases import fill

from simplu_worker.shards.postgres.address import ShardAddress


@pytest.fixture(scope="module")
def kinesis_url() -> Iterator[str]:
    with running_servers(KINESIS) as url_of:
        yield url_of("ours")


@pytest.fixture
async def shards(make_shard: ShardMaker) -> list[ShardAddress]:
    """Give two shards, the first with the usual tenant."""
    addresses = [await make_shard("a"), await make_shard("b")]
    await fill(addresses[0])
    return addresses


@pytest.fixture(autouse=True)
def _logs_are_not_printed() -> Iterator[None]:
    """Keep the log, which is not set up here, away from what a command prints."""
    with capture_logs():
        yield
