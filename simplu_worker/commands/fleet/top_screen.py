"""The screen of `top`: the answer of `/fleet`, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simplu_worker.commands.output import escape_unprintable
from simplu_worker.status.words import Severity

LAG_WARN_S: Final = 10.0
LAG_BAD_S: Final = 60.0
LATENCY_MAX_S: Final = 900.0  # the end of the last step but one
GOOD, WARN, BAD = "green", "yellow", "bold red"
FLEXIBLE: Final = frozenset({"Advice", "Owner"})  # columns that a narrow terminal cuts
UNKNOWN: Final = "–"

Json = Mapping[str, Any]
Cell = tuple[object, str] | object  # with a style
Column = str | Callable[[Json], Cell]  # a member, or what is shown of several


def draw(fleet: Json, notice: str = "", *, expand: bool = True) -> Group:
    """Return the screen; *notice* is a remark below the first line."""
    at = datetime.fromisoformat(fleet["at"])
    problems = [one | {"at": at} for one in fleet["problems"] if not one["isOver"]]
    streams = sorted(fleet["streamShards"], key=lambda one: -(one["lagSeconds"] or 0.0))
    listed = (problems, fleet["replicas"], streams, fleet["topTenants"])
    parts: list[RenderableType] = [_summary(fleet, len(problems)), Text(escape_unprintable(notice), BAD)]
    for (title, columns), rows in zip(TABLES.items(), listed, strict=True):
        if rows:
            parts += [_draw_table(title, columns, rows, expand=expand), Text("")]
    return Group(*parts)


def _summary(fleet: Json, problem_count: int) -> Text:
    replicas = fleet["replicas"]
    lag_s = max(_known(fleet["streamShards"], "lagSeconds"), default=None)
    latency_s = max(_known(replicas, "latencyP99Seconds"), default=None)
    held, letters = sum(_known(replicas, "heldTargets")), sum(_known(replicas, "deadLetters"))
    rates = _known(replicas, "recordsPerSecond")
    cells: list[tuple[str, str]] = [
        (f"problems {problem_count}", WARN if problem_count else GOOD),
        (f"held {held:,.0f}", WARN if held else GOOD),
        (f"lag {duration_text(lag_s)}", lag_style(lag_s)),
        (f"p99 {_latency_text(latency_s)}", ""),
        (f"dead letters {letters:,.0f}/h", WARN if letters else GOOD),
        (f"{len(replicas)} replicas", ""),
        (f"{sum(rates):,.0f} records/s" if rates else f"{UNKNOWN} records/s", ""),
        (fleet["stream"] or "no stream", ""),
    ]
    line = Text(no_wrap=True, overflow="ellipsis")
    for number, (text, style) in enumerate(cells):
        line.append("  " if number else "").append(escape_unprintable(text), style)
    return line


def _problem(one: Json) -> Cell:
    count = f" ({one['count']:,})" if one["count"] > 1 else ""
    return f"{one['problem']}{count}", BAD if one["severity"] == Severity.CRITICAL else WARN


def _lag(one: Json) -> Cell:
    return duration_text(one["lagSeconds"]), lag_style(one["lagSeconds"])


def _draw_table(title: str, columns: Mapping[str, Column], rows: Iterable[Json], *, expand: bool) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        expand=expand,
    )
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column in FLEXIBLE else None)
    for row in rows:
        cells = (row[one] if isinstance(one, str) else one(row) for one in columns.values())
        table.add_row(*(_text(*cell) if isinstance(cell, tuple) else _text(cell) for cell in cells))
    return table


def _text(value: object, style: str = "") -> Text:
    match value:
        case None:
            return Text(UNKNOWN)
        case float():
            return Text(f"{value:,.1f}", style)
        case int():
            return Text(f"{value:,}", style)
        case _:
            return Text(escape_unprintable(value), style)


def duration_text(seconds: float | None) -> str:
    """Return a duration for people; a dash for an unknown one."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def lag_style(seconds: float | None) -> str:
    """Return the style of a lag."""
    if seconds is None or seconds < LAG_WARN_S:
        return ""
    return BAD if seconds >= LAG_BAD_S else WARN


def _latency_text(seconds: float | None) -> str:
    return (
        UNKNOWN if seconds is None else f"under {duration_text(seconds)}" if seconds < LATENCY_MAX_S else "over 5 min"
    )


def _known(rows: Iterable[Json], name: str) -> list[float]:
    return [row[name] for row in rows if row[name] is not None]


TABLES: Final[Mapping[str, Mapping[str, Column]]] = {
    "Problems": {
        "Problem": _problem,
        "Reason": "reason",
        "Subject": "subject",
        "Since": lambda one: duration_text((one["at"] - datetime.fromisoformat(one["since"])).total_seconds()),
        "Advice": "advice",
    },
    "Replicas": {
        "Replica": lambda one: (one["replica"], WARN if one["isSilent"] or one["unable"] else ""),
        "Version": "version",
        "Leases": "leases",
        "Lag": _lag,
        "Records/s": "recordsPerSecond",
        "p99": lambda one: _latency_text(one["latencyP99Seconds"]),
        "Dead letters/h": "deadLetters",
        "Held": "heldTargets",
        "Seen ago": lambda one: duration_text(one["seenSecondsAgo"]),
    },
    "Stream shards": {
        "Stream shard": "streamShard",
        "State": "state",
        "Lag": _lag,
        "Records/s": "recordsPerSecond",
        "Held": "heldTargets",
        "Owner": "owner",
    },
    "Tenants": {
        "Tenant": "tenant",
        "Shard": "shardId",
        "Seconds of the last minute": lambda one: (one["lastMinute"] or {}).get("seconds"),
    },
}
