"""The local Citrus, asked by the worker's own client."""

from __future__ import annotations

import pytest
from support.citrus.cases import API_KEY

from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.shards.routing.citrus import open_citrus

SHARD_IDS = ("{main}%2F", "a/capacity%00")


@pytest.mark.parametrize(
    "business_id",
    [
        "{b}",
        "b}",
        "%00",
        "\0",
        "%2500",
        "%7Bb%7D",
        "a/b",
        "shards/health",
        "../b",
        "a?b#c;d",
        " ",
        "ä",
        "\N{LINE SEPARATOR}\n",
    ],
)
async def test_local_citrus_finds_a_tenant_whatever_its_id(business_id: str) -> None:
    server = CitrusServer(api_key=API_KEY, make_shard=_no_shard)
    for shard_id in SHARD_IDS:
        server.add_shard(shard_id, "postgresql://u:secret@127.0.0.1:1/d")
    tenant_id = f"{business_id}-n"
    async with (
        server.serve() as url,
        open_citrus(url, api_key=API_KEY, timeout_s=5, attempts=1, allowed_hosts=()) as citrus,
    ):
        found: list[str | None] = []
        registered = (await citrus.register(business_id, "n", "gym")).address
        found.append(registered.shard_id)
        assert await citrus.move(tenant_id, SHARD_IDS[1])
        located = await citrus.locate(tenant_id)
        found.append(None if located is None else located.shard_id)
        capacities = [await citrus.fetch_capacity(shard_id) for shard_id in SHARD_IDS]
    assert found == [*SHARD_IDS]
    assert [None if one is None else one.business_count for one in capacities] == [0, 1]


async def _no_shard() -> tuple[str, str]:
    raise AssertionError("all shards are full")
