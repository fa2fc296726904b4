from __future__ import annotations

from typing import Any

from simplu_worker.commands.fleet.actions import NOTHING_IS_HELD, held_lines

LEASE_DURATION_S = 10.0


def stream_shard(key: str, **changed: Any) -> dict[str, Any]:
    members = {"streamShard": key, "owner": "other", "state": "elsewhere", "lagSeconds": 0.0, "heldTargets": 0}
    return members | {"seenSecondsAgo": 3.0} | changed


def lines(*rows: dict[str, Any], stream: str | None = "operations") -> list[str]:
    return held_lines({"stream": stream, "streamShards": rows}, lease_duration_s=LEASE_DURATION_S)


def test_nothing_is_held_only_if_every_replica_says_so() -> None:
    idle = stream_shard("a")
    assert lines(idle, stream_shard("b")) == [NOTHING_IS_HELD]
    assert lines(idle, stream_shard("b", state="ended", owner=None, heldTargets=None)) == [NOTHING_IS_HELD]
    assert lines(stream=None) == [NOTHING_IS_HELD]
    held = lines(stream_shard("a", heldTargets=2), stream_shard("b", heldTargets=1), idle)
    assert [line[:15] for line in held] == ["held targets: 3"]
    unknown = "held targets are not known"
    for changed in (
        {"lagSeconds": None},
        {"owner": None, "state": "unowned", "heldTargets": None, "lagSeconds": None},
        {"seenSecondsAgo": LEASE_DURATION_S + 1},
    ):
        assert [line.partition(":")[0] for line in lines(idle, stream_shard("b", **changed))] == [f"{unknown} of b"]
    assert [line.partition(":")[0] for line in lines()] == [unknown]
    assert len(lines(stream_shard("a", heldTargets=1), stream_shard("b", lagSeconds=None))) == 2
