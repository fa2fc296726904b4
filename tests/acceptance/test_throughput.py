"""What one core does, on a small scale, and the page that is made of it: `make bench` tells it at full size."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.requires import ROOT

from benchmarks.throughput.__main__ import run as run_benchmark

BENCHMARK = ROOT / "benchmarks" / "throughput"
SCALE = ROOT / "benchmarks" / "scale"
SMALL = ("--quick", "--only", "rates", "--who", "worker", "bare loop", "--records", "40000", "--seconds", "4")
PAGE = "before\n<!-- {0}: written by `{1}` -->\nold\n<!-- end of {0} -->\nafter\n"
RUN_S = 150.0
MACHINE = {"at": "2026-11-20", "model": "a machine", "cores": 2, "python": "3.11.7", "commit": "abc", "load": 0.1}
WORKER, BARE = "worker", "bare loop"
PGX = "AWS SDK for Go with pgx"
LANES, SEQUENCE = "async-kinesis, 64 lanes", "async-kinesis, in sequence"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark."""
    argv = [sys.executable, str(program), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=RUN_S)


def judge(figures: Path, page: Path) -> int:
    """Have the benchmark make the tables of kept figures; return its exit status."""
    arguments = argparse.Namespace(from_json=figures, json=None, write=True, page=page, quick=False)
    return asyncio.run(run_benchmark(arguments))


def figure(who: str, rate: int, *, stream_shards: int = 32, number_of_round: int = 1) -> dict[str, Any]:
    """Return a run as the benchmark keeps it, of one second."""
    return {
        "round": number_of_round,
        "who": who,
        "streamShards": stream_shards,
        "shards": 1,
        "commit": "on",
        "seconds": 1.0,
        "operations": rate,
        "clientUs": 150.0 if who == LANES else 6.0,
        "serverUs": 20.0,
        "rssBeginBytes": 100 * 2**20,
        "rssMostBytes": 101 * 2**20,
    }


def kept(tmp_path: Path, *runs: dict[str, Any], mixes: Sequence[dict[str, Any]] = (), **more: Any) -> Path:
    """Return a file of kept figures."""
    path = tmp_path / "figures.json"
    figures = {"machine": MACHINE, "rounds": 2, "seconds": 1.0, "records": 1, "runs": runs, "mixes": mixes}
    path.write_text(json.dumps(figures | more))
    return path


@pytest.mark.parametrize(("rate", "status"), [(80_000, 0), (20_000, 1)], ids=["kept", "missed"])
def test_benchmark_compares_runs_of_one_round_and_tells_what_was_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: int, status: int
) -> None:
    others = ((BARE, 100_000, 32), (LANES, 6_000, 4), (SEQUENCE, 2_000, 4))
    runs = [
        figure(who, times * other, stream_shards=count, number_of_round=times)
        for times in (1, 2)  # the second round on a machine that is twice as fast
        for who, other, count in ((WORKER, rate, 32), *others)
    ]
    page = tmp_path / "performance.md"
    page.write_text(PAGE.format("figures", "make bench"))
    (tmp_path / "images").mkdir()

    assert judge(kept(tmp_path, *runs), page) == status
    text = page.read_text()
    assert text.startswith("before\n<!-- figures: ")
    assert text.endswith("<!-- end of figures -->\nafter\n")
    assert "old" not in text
    ratio = f"{rate / 100_000:.2f}"
    verdict = "kept" if status == 0 else "MISSED"
    assert re.search(
        rf"worker ÷ bare loop, synchronous_commit on +│ {ratio} +│ ≥ 0\.75 +│ {verdict}", capsys.readouterr().out
    )
    assert f"| worker | 32 | 1 | on | {1.5 * rate:,.0f} | 6.0 | 20.0 | 106 |" in text
    assert f"{1.5 * rate:,.0f}</text>" in (tmp_path / "images" / "performance.svg").read_text()


def test_benchmark_compares_workers_on_records_as_users_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixes = [
        figure(WORKER, times * 10_000, number_of_round=times)
        | {"mix": "realistic", "worker": worker, "serverUs": cost, "walBytes": 10.0 * cost, "diskBytes": 700.0}
        for times, costs in ((1, (16.0, 20.0)), (2, (18.0, 30.0)))
        for worker, cost in zip(("", "abc123"), costs, strict=True)
    ]
    page = tmp_path / "performance.md"
    page.write_text(PAGE.format("mixes", "make bench") + PAGE.format("figures", "make bench"))

    assert judge(kept(tmp_path, mixes=mixes), page) == 0
    text = page.read_text()
    assert text.count("old") == 1  # the figures of the comparison are as they were
    assert "| realistic | 15,000 | 6.0 | 17.0 | 170 | 700 | 106 |" in text
    assert "abc123" not in text
    assert re.search(r"realistic +│ abc123 +│ 1\.00 +│ 1\.00 +│ 0\.70 \(0\.60 to 0\.80\) +│", capsys.readouterr().out)


def test_benchmark_tells_the_cost_of_few_records_and_of_being_watched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = [
        {"round": times, "rate": 235, "streamShards": 4, "shards": 3, "invalid": 0.06, "serverUs": 200.0}
        | {"worker": worker, "clientUs": times * cost}
        for times in (1, 2)
        for worker, cost in (("", 300.0), ("abc123", 400.0))
    ]
    alone, watched = figure(WORKER, 60_000, stream_shards=16), figure(WORKER, 60_000, stream_shards=16)
    watching = {
        "streamShards": 16,
        "idleCores": [(0.014, 0.016), (0.014, 0.026), (0.014, 0.018)],
        "pairs": [(alone, watched | {"clientUs": 6.6})],
    }
    page = tmp_path / "performance.md"
    page.write_text(PAGE.format("figures", "make bench"))

    assert judge(kept(tmp_path, lowLoads=low, watching=watching), page) == 1
    lines = page.read_text().splitlines()
    name = "235 records/s over 4 stream shards, 3 Postgres shards"
    assert f"| {name} | 450 µs a record, Postgres 200 µs |" in lines
    watched_name = "the same, with a listener to `/events` and scrapes of `/metrics`"
    assert f"| {watched_name} | 1.80% of a core, 1.40% without |" in lines
    printed = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed]
    assert ["abc123", "0.75"] in cells
    assert [row for row in cells if row[-1:] in (["kept"], ["MISSED"])] == [
        ["processor time of the worker a record at 235/s", "450 (300 to 600) µs", "≤ 350 µs", "MISSED"],
        ["listened to and scraped: idle, more of a core", "0.0040 (0.0020 to 0.0120)", "≤ 0.01", "kept"],
        ["the same at full speed ÷ alone: processor time a record", "1.10", "≤ 1.05", "MISSED"],
    ]


def test_benchmark_tells_what_other_programs_do_better_than_the_worker(tmp_path: Path) -> None:
    peers = [
        figure(who, times * rate, number_of_round=times) | {"serverUs": cost}
        for times in (1, 3)
        for who, rate, cost in ((WORKER, 10_000, 30.0), (PGX, 8_000, 25.0))
    ]
    latencies = [
        {"rate": 1000, "operations": 1, "p50S": p50_s, "p99S": 0.2, "mostS": 1.0, "clientCores": 0.1, "who": who}
        for who, p50_s in ((WORKER, 0.1), (PGX, 0.11))
    ]
    page = tmp_path / "performance.md"
    page.write_text(PAGE.format("peers", "python3 run.py bench throughput --only peers"))

    assert judge(kept(tmp_path, peers=peers, peerLatencies=latencies), page) == 0
    lines = page.read_text().splitlines()
    guarantees = "once, in order, one process; a bad record stops its stream shard"
    assert f"| {PGX} | 16,000 | 6.0 | 25.0 | 106 | 110 | 200 | {guarantees} |" in lines
    assert f"**Better than the worker**: Postgres, µs: {PGX} (25.0)." in lines


def test_benchmark_leaves_a_page_without_its_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("my own words\n")

    with pytest.raises(ValueError, match="put them where figures belong"):
        judge(kept(tmp_path, figure(WORKER, 1)), page)
    assert page.read_text() == "my own words\n"


@pytest.mark.slow(2)
def test_scale_simulates_a_failover_within_a_lease_and_a_look(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.format("scale", "python3 run.py bench scale --write"))

    done = run(SCALE, "--stream-shards", "40", "--shards", "10", "--replicas", "4", "--write", "--page", str(page))

    assert done.returncode == 0, done.stderr
    (line,) = [line for line in page.read_text().splitlines() if line.startswith("| one is killed |")]
    held_after_s = float(line.split("|")[2].removesuffix(" s "))
    assert 6.0 < held_after_s < 12.0  # 10 s from its last renewal, which were 3.3 s apart, and a look a second


@pytest.mark.slow(10)
def test_benchmark_measures_a_worker_beside_the_bare_loop(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"

    done = run(BENCHMARK, *SMALL, "--json", str(figures))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = json.loads(figures.read_text())["runs"]
    assert {one["who"] for one in runs} == {WORKER, BARE}
    assert all(one["operations"] > 0 and one["clientUs"] > 0 and one["serverUs"] > 0 for one in runs)
    assert all(one["walBytes"] > 100 and one["diskBytes"] > 100 for one in runs), runs
