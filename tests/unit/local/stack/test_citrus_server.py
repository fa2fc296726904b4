"""Placement of tenants by the local Citrus, and its validation of a registration's body."""

from __future__ import annotations

import pytest

from simplu_local.stack.citrus_server import CitrusRegistry, registration_problem

GOOD = {"businessId": "acme", "locationId": "north", "businessType": "gym", "shardKey": "acme-north"}


def registry_of(*sizes: int) -> CitrusRegistry:
    registry = CitrusRegistry()
    for number, size in enumerate(sizes, start=1):
        shard = registry.add_shard(f"shard-{number}", "postgresql://u:secret@h/d", max_businesses=3)
        for tenant in range(size):
            registry.place(f"tenant{number}-{tenant}", shard)
    return registry


def test_place_moves_the_count_when_a_tenant_has_a_home() -> None:
    registry = registry_of(2, 0)
    registry.place("tenant1-0", registry.shards["shard-2"])
    assert [len(shard.tenants) for shard in registry.shards.values()] == [1, 1]
    assert registry.homes["tenant1-0"].shard_id == "shard-2"


def test_locations_of_a_business_count_once() -> None:
    registry = registry_of(0, 0)
    first, second = registry.shards.values()
    for shard_key in ("acme-north", "acme-south"):
        registry.place(shard_key, first, "acme")
    assert first.business_count == 1
    registry.place("acme-north", second)
    assert (first.business_count, second.business_count) == (1, 1)
    registry.place("acme-south", second)
    assert (first.business_count, second.business_count) == (0, 1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (GOOD, None),
        (GOOD | {"more": 1}, None),
        (None, "expected a JSON object"),
        ([GOOD], "expected a JSON object"),
        (GOOD | {"locationId": ""}, "expected locationId as a string that is not empty"),
        (GOOD | {"businessType": 7}, "expected businessType as a string that is not empty"),
        (GOOD | {"shardKey": "acme-south"}, "expected shardKey 'acme-north'"),
    ],
)
def test_registration_problem_names_what_is_wrong(body: object, expected: str | None) -> None:
    assert registration_problem(body) == expected
