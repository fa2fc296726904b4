"""A shard may be removed once no tenant is there, or is looked for there."""

from __future__ import annotations

from typing import Any

import pytest

from simplu_worker.transfers.moving.balance import TenantRows, describe_removal, leads_through


def row(tenant_id: str, state: str, moved_to: str | None = None) -> dict[str, Any]:
    return {"id": tenant_id, "state": state, "moved_to": moved_to}


def test_way_to_a_home_from_the_shard_that_is_named() -> None:
    left_for = {"a": "b", "b": "c", "x": "y", "y": "x"}
    names = ["a", "b", "c", "z", None, "x"]
    assert [name for name in names if leads_through(name, "b", left_for)] == ["a", "b"]


def test_tenants_of_a_shard_and_those_that_live_elsewhere() -> None:
    rows = TenantRows(
        [
            ("a", row("t-home", "active")),
            ("a", row("t-coming", "incoming")),
            ("b", row("t-coming", "active")),
            ("a", row("t-left", "moved", "b")),
            ("b", row("t-left", "active")),
            ("b", row("t-other", "active")),
            ("a", row("t-gone", "destroyed")),
            ("b", row("t-gone", "destroyed")),
            ("a", row("t-made-again", "destroyed")),
            ("b", row("t-made-again", "active")),
        ]
    )
    assert rows.on("a") == ["t-coming", "t-home"]
    assert rows.elsewhere("a") == ["t-left", "t-made-again", "t-other"]


@pytest.mark.parametrize(
    ("named", "routed"),
    [("a", True), ("b", False), ("c", True), ("d", False), (None, False)],
)
def test_tenant_that_is_looked_for_on_a_shard(named: str | None, routed: bool) -> None:  # noqa: FBT001
    rows = TenantRows([("c", row("t", "moved", "a")), ("a", row("t", "moved", "b")), ("b", row("t", "active"))])
    assert rows.led_through("a", {"t": named}) == (["t"] if routed else [])


def test_tenant_without_a_row_on_the_shard_may_be_looked_for_there() -> None:
    rows = TenantRows([("b", row("t", "active"))])
    assert rows.led_through("a", dict.fromkeys(rows.elsewhere("a"), "a")) == ["t"]


def test_verdict_has_each_reason() -> None:
    assert describe_removal("a", [], [], []).members == {"removable": True, "keptBy": ()}
    kept = describe_removal("a", ["t", "u"], ["v"], ["w"], "Citrus is away").members
    assert kept["removable"] is False
    assert [reason.partition(":")[0] for reason in kept["keptBy"]] == [
        "2 tenants are still there, such as t",
        "1 tenants have left it, and are still looked for there, such as v",
        "where 1 tenants are looked for is unknown, such as w",
    ]
