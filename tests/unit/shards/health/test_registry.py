from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, generate_latest
from structlog.testing import capture_logs
from support.postgres.probes import WELL
from unit.shards.health.test_assessment import listed, with_
from unit.shards.health.test_moves import entry

from simplu_worker.shards.health.assessment import ShardSilence
from simplu_worker.shards.health.registry import HealthRegistry
from simplu_worker.vocabulary import ShardProblem

SHARD = "book-test-1"
SILENCE = ShardSilence("TimeoutError")


@pytest.fixture
def book() -> Iterator[HealthRegistry]:
    book = HealthRegistry()
    book.begin(SHARD)
    yield book
    for shard_id in list(book.by_shard_id):
        book.end(shard_id)


def gauge(name: str, shard_id: str = SHARD) -> float | None:
    return REGISTRY.get_sample_value(f"simplu_shard_{name}", {"shard_id": shard_id})


def counted(problem: ShardProblem) -> float | None:
    return REGISTRY.get_sample_value("simplu_shard_problems", {"problem": problem})


def test_book_shows_what_a_look_has_seen(book: HealthRegistry) -> None:
    book.note_probe(SHARD, with_(connections_used=48, connections_max=96, tenant_count=7))
    shown = {name: gauge(name) for name in ("healthy", "connections_ratio", "tenants", "usage_ratio")}
    assert shown == {"healthy": 1, "connections_ratio": 0.5, "tenants": 7, "usage_ratio": None}
    assert gauge("replication_lag_seconds") is None
    assert gauge("response_seconds_count") == 1
    book.note_probe(SHARD, with_(is_read_only=True, is_standby=True, lag_s=3.5))
    assert (gauge("healthy"), gauge("replication_lag_seconds")) == (0, 3.5)


def test_book_shows_nothing_stale_of_a_silent_shard(book: HealthRegistry) -> None:
    book.note_probe(SHARD, with_(lag_s=3.5, tenant_count=7))
    book.note_probe(SHARD, SILENCE)
    shown = [gauge(name) for name in ("healthy", "replication_lag_seconds", "connections_ratio", "tenants")]
    assert shown == [0, None, None, 7]
    seen = book.by_shard_id[SHARD].observation
    assert seen.probe is not None
    assert (seen.error, seen.probe.lag_s) == ("TimeoutError", 3.5)


def test_book_tells_once_when_something_changes(book: HealthRegistry) -> None:
    with capture_logs() as logs:
        for probe in (WELL, WELL, SILENCE, SILENCE, WELL, with_(lag_s=40.0), with_(lag_s=50.0)):
            book.note_probe(SHARD, probe)
        book.note_listed({SHARD: listed(9, 10)})
        book.note_listed({SHARD: listed(10, 10)})
        book.note_listed({SHARD: listed(1, 10)})
        book.note_probe(SHARD, WELL)
    assert [(log["event"], log["log_level"], log.get("problems")) for log in logs] == [
        ("shard.lost", "warning", ["TimeoutError"]),
        ("shard.restored", "info", None),
        ("shard.degraded", "warning", ["its standby is 40 s behind"]),
        ("shard.degraded", "warning", ["its standby is 50 s behind", "9 businesses in room for 10"]),
        ("shard.degraded", "warning", ["its standby is 50 s behind"]),
        ("shard.restored", "info", None),
    ]
    assert {log["shard_id"] for log in logs} == {SHARD}


def test_book_counts_the_shards_with_a_problem(book: HealthRegistry) -> None:
    before = counted(ShardProblem.READ_ONLY) or 0
    book.begin("book-test-2")
    for shard_id in (SHARD, "book-test-2"):
        book.note_probe(shard_id, with_(is_read_only=True))
    assert counted(ShardProblem.READ_ONLY) == before + 2
    book.note_probe(SHARD, WELL)
    book.end("book-test-2")
    assert counted(ShardProblem.READ_ONLY) == before


def test_book_takes_nothing_of_a_look_that_ends_after_its_shard_went(book: HealthRegistry) -> None:
    book.end(SHARD)
    book.note_probe(SHARD, WELL)
    book.end(SHARD)
    assert SHARD not in book.by_shard_id
    assert SHARD not in generate_latest().decode()


def test_book_has_the_usage_that_citrus_lists_now(book: HealthRegistry) -> None:
    for usages, usage in (({"other": listed(1, 2), SHARD: listed(1, 2)}, listed(1, 2)), ({}, None)):
        book.note_listed(usages)
        assert {one: health.observation.listed for one, health in book.by_shard_id.items()} == {SHARD: usage}


def test_book_counts_the_moves_that_end_while_it_looks(book: HealthRegistry) -> None:
    ended = entry("done", verdict="equal", pause_s=0.03, rows_copied=7)
    going, gone = entry("open", tenant="hotel-rome"), entry("done", tenant="hotel-rome", verdict="equal", pause_s=0.2)
    names = ("simplu_moves_total", "simplu_move_rows_total", "simplu_move_pause_seconds_count")
    labels = {"simplu_moves_total": {"outcome": "moved"}}

    def counted() -> list[float]:
        return [REGISTRY.get_sample_value(name, labels.get(name)) or 0.0 for name in names]

    began = counted()
    seen = []
    for moves in (
        [ended],
        [ended, going],
        None,
        [ended, gone],
        [entry("done", token=3, verdict="equal", rows_copied=2)],
    ):
        book.note_probe(SHARD, with_(moves=moves, is_cut_short=moves is None))
        now = [value - before for value, before in zip(counted(), began, strict=True)]
        seen.append((*now, len(book.unfinished_moves().get(SHARD, ()))))
    assert seen == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 1), (1, 0, 1, 0), (2, 2, 1, 0)]
