"""The tenants of a drain come back, and no others."""

from __future__ import annotations

from simplu_worker.transfers.moving.balance import BegunMoves, PlannedTransfer, WeighedTenant, plan_undrain


def on(shard_id: str, location_id: str) -> WeighedTenant:
    return WeighedTenant("b", location_id, shard_id)


def test_tenants_come_back_from_the_shards_to_which_the_drain_moved_them() -> None:
    homes = [on("b", "moved"), on("c", "also"), on("c", "on"), on("a", "back"), on("b", "by-hand")]
    drained = {"b-moved": "b", "b-also": "c", "b-on": "b", "b-back": "b", "b-destroyed": "b"}
    undrained = plan_undrain(homes, BegunMoves(), "a", drained, ())
    assert undrained.plan == [PlannedTransfer(on("c", "also"), "a"), PlannedTransfer(on("b", "moved"), "a")]
    assert (undrained.moved_on, undrained.begun) == ([on("c", "on")], BegunMoves())


def test_moves_of_the_drain_that_have_not_ended_are_taken_back_or_ended_first() -> None:
    opened, undoing, committed = (PlannedTransfer(on("a", name), "b") for name in ("opened", "undoing", "committed"))
    other, elsewhere, running = (
        PlannedTransfer(on("a", "other"), "b"),
        PlannedTransfer(on("c", "elsewhere"), "b"),
        PlannedTransfer(on("b", "running"), "c"),
    )
    begun = BegunMoves([committed, other], [opened, elsewhere], [undoing], [running])
    stopped = {"b-opened", "b-undoing", "b-committed", "b-elsewhere"}
    homes = [on("a", "opened"), on("a", "undoing"), on("b", "running")]
    undrained = plan_undrain(homes, begun, "a", {"b-running": "b"}, stopped)
    assert undrained.begun == BegunMoves(committed=[committed], taken_back=[opened, undoing], running=[running])
    assert (undrained.plan, undrained.moved_on) == ([PlannedTransfer(on("b", "committed"), "a")], [])
