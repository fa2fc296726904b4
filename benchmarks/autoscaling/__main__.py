"""The autoscaling of the chart over a day's load, in simulation, beside other rules: replicas, lag, flapping.

    python -m benchmarks.autoscaling [--write]

The targets are those of `deploy/helm/simplu-worker/values.yaml`. `--write` puts the table into benchmarks/NOTES.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.autoscaling.day import STREAM_SHARDS, DayResult, simulate_day, usual_day
from benchmarks.autoscaling.rule import (
    Autoscaler,
    Behavior,
    Trigger,
    late_stream_shards,
    oldest_lag,
    processor_time,
    waiting_messages,
)
from benchmarks.throughput.page import markdown_table, replace_part

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "benchmarks" / "NOTES.md"
VALUES = ROOT / "deploy" / "helm" / "simplu-worker" / "values.yaml"
COMMAND = "python3 run.py bench autoscaling --write"
CHART = "late stream shards, waiting messages and processor time: the chart"


class Design(NamedTuple):
    """A rule by which the number of replicas is chosen."""

    name: str
    triggers: dict[str, Trigger]
    behavior: Behavior


def designs() -> list[Design]:
    """Return the rule of the chart, with its values, and those it is compared with."""
    values: dict[str, Any] = yaml.safe_load(VALUES.read_text(encoding="utf-8"))["autoscaling"]
    usual = Behavior(
        values["minReplicas"], min(values["maxReplicas"], STREAM_SHARDS), float(values["scaleDownAfterSeconds"])
    )
    late = {"late": late_stream_shards(values["lateAfterSeconds"])}
    cpu = {"cpu": processor_time(values["coresPerReplica"])}
    waiting = {"waiting": waiting_messages(values["messagesPerReplica"])}
    oldest = {"oldest": oldest_lag(values["lateAfterSeconds"])}
    return [
        Design("always as many as stream shards", {}, usual._replace(least=STREAM_SHARDS)),
        Design("always 5", {}, usual._replace(least=5, most=5)),
        Design("oldest lag alone, without a wait", oldest, usual._replace(down_after_s=0.0)),
        Design("oldest lag alone", oldest, usual),
        Design("late stream shards alone", late, usual),
        Design("processor time alone", cpu, usual),
        Design("oldest lag and processor time", oldest | cpu, usual),
        Design("late stream shards and processor time", late | cpu, usual),
        Design("all three, without a wait", late | waiting | cpu, usual._replace(down_after_s=0.0)),
        Design(CHART, late | waiting | cpu, usual),
    ]


def results() -> dict[str, DayResult]:
    """Return the day of each design, by its name."""
    return {one.name: simulate_day(Autoscaler(one.triggers, one.behavior), usual_day()) for one in designs()}


def report() -> str:
    """Return the table as Markdown."""
    header = [
        "rule",
        "replica hours",
        "most replicas",
        "longest lag",
        "longest wait",
        "minutes late",
        "changes",
        "flaps",
        "lease moves",
    ]
    return markdown_table(header, [_line(name, one) for name, one in results().items()])


def _line(name: str, day: DayResult) -> list[str]:
    return [
        name,
        f"{day.replica_hours:.0f}",
        str(day.most_replicas),
        f"{day.longest_lag_s:.0f} s",
        f"{day.longest_wait_s:.0f} s",
        f"{day.late_minutes:.0f}",
        str(day.changes),
        str(day.flaps),
        str(day.moves),
    ]


def main() -> None:
    """Simulate, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/NOTES.md")
    given = parser.parse_args()
    text = report()
    Console().print(Markdown(text))
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(replace_part(page, "autoscaling", COMMAND, text), encoding="utf-8")


if __name__ == "__main__":
    main()
