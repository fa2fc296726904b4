"""`top`: a replica and its fleet in the terminal.

`top`: follow a replica and its fleet in a terminal until interrupted, or print both once.

The status of a worker and its fleet as tables that fit the height of a terminal.

Draw the tables on a terminal, in its size; elsewhere without colours, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simplu_worker.commands.fleet.replica_client import ReplicaClient, open_replica
from simplu_worker.commands.output import NOT_A_TERMINAL_WIDTH, escape_unprintable, print_json
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.timing.clock import loop_time

LAG_WARN_S: Final = 10.0
LAG_BAD_S: Final = 60.0
LATENCY_MAX_S: Final = 900.0  # the end of the last step but one
GOOD_STATES: Final = frozenset(
    {"active", "catching up", "healthy", "ok", "owned", "polling", "reading", "ready", "running"}
)
BAD_STATES: Final = frozenset({"critical", "error", "failed", "lost", "refused", "unowned"})
PLAIN_STATES: Final = frozenset({"dead letters", "draining", "elsewhere", "ended", "info", "released"})
FRAME_LINES: Final = 3  # of a table: its title, its head, and an empty line
ROWS_AT_LEAST: Final = 3  # of each table, where there is room for all

Json = Mapping[str, Any]


class ScreenCell(NamedTuple):
    """A text, and the colour of its meaning: good, warn, bad, or none."""

    text: str
    tone: str = ""


class ScreenTable(NamedTuple):
    """A table; *hidden_count* rows of it have no room."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[ScreenCell]]
    hidden_count: int = 0


def status_line(status: Json, fleet: Json) -> list[ScreenCell]:
    """Return the line on top, the numbers first by which a person sees if all is well: a narrow terminal cuts it."""
    is_ready = status.get("ready") is True
    lags = [one["lagSeconds"] for one in _stream_shards(status, fleet) if one.get("lagSeconds") is not None]
    own = {one.get("target", number) for number, one in enumerate(status.get("held", ()))}
    held_count = len(own) + int(sum(_known(_others(fleet), "heldTargets")))
    shards = status.get("shards", ())
    sick_count = sum(one.get("state") != "healthy" for one in shards)
    rates = _known(_stream_shards(status, fleet), "recordsPerSecond")
    gone_count = len(fleet.get("goneReplicas", ()))
    latencies = _known(fleet.get("replicas", ()), "latencyP99Seconds")
    dead_letters = _known(fleet.get("replicas", ()), "deadLetters")
    why = status.get("unreadyDetail") or status.get("ready")
    cells = [
        ScreenCell("ready", "good") if is_ready else ScreenCell(f"not ready: {why}", "bad"),
        ScreenCell(f"held {held_count:,}", "warn" if held_count else "good"),
        ScreenCell(f"shards {len(shards) - sick_count} of {len(shards)}", "warn" if sick_count else "good"),
        ScreenCell(f"lag {duration_text(max(lags))}", lag_tone(max(lags))) if lags else ScreenCell(""),
        ScreenCell(f"p99 {_latency_text(max(latencies))}" if latencies else ""),
        _dead_letters(sum(dead_letters)) if dead_letters else ScreenCell(""),
        ScreenCell(f"{gone_count} {'replica' if gone_count == 1 else 'replicas'} gone" if gone_count else "", "warn"),
        ScreenCell(f"{sum(rates):,.0f} records/s" if rates else "– records/s"),
        ScreenCell(f"up {duration_text(status.get('uptime_s'))}"),
        ScreenCell(str(status.get("replica", ""))),
        ScreenCell(f"simplu-worker {status.get('version', '')}"),
    ]
    return [cell for cell in cells if cell.text]


def tables_of(status: Json, fleet: Json, queues: Sequence[Json]) -> list[ScreenTable]:
    """Return the tables, those first that ask for a person; an empty one is left out."""
    tables = [
        _held_table(_held(status, fleet), {**fleet.get("heldAdvice", {}), **status.get("heldAdvice", {})}),
        _table("In progress", ("Kind", "Subject", "State", "Detail"), _work_rows(status)),
        _shard_table(status.get("shards", ())),
        _replica_table(fleet.get("replicas", ())),
        _stream_table(_stream_shards(status, fleet)),
        _queue_table(queues or status.get("queues", ())),
        _error_table(status.get("recentErrors", ())),
    ]
    return [one for one in tables if one.rows]


def fit_tables(tables: Sequence[ScreenTable], lines: int) -> list[ScreenTable]:
    """Return *tables* with as many rows as *lines* have room for: a few of each first, then more from the first on.

    A table that has no room for a single row is left out, and so are those behind it.
    """
    counts: list[int] = []
    for table in tables:
        count = min(len(table.rows), ROWS_AT_LEAST, lines - FRAME_LINES)
        if count < 1:
            break
        counts.append(count)
        lines -= count + FRAME_LINES
    for number, count in enumerate(counts):
        more = min(len(tables[number].rows) - count, lines)
        counts[number] += more
        lines -= more
    return [
        table._replace(rows=table.rows[:count], hidden_count=len(table.rows) - count)
        for table, count in zip(tables, counts, strict=False)
    ]


def duration_text(seconds: float | None) -> str:
    """Return a duration for people; a dash for an unknown one."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _latency_text(seconds: float | None) -> str:
    """Return a latency that is measured in steps: the end of its step."""
    return "–" if seconds is None else f"under {duration_text(seconds)}" if seconds < LATENCY_MAX_S else "over 5 min"


def lag_tone(seconds: float | None) -> str:
    """Return the tone of a lag."""
    if seconds is None or seconds < LAG_WARN_S:
        return ""
    return "bad" if seconds >= LAG_BAD_S else "warn"


def state_cell(state: object) -> ScreenCell:
    """Return a state with its tone: an unknown word is one that a person should read."""
    if state is None:
        return ScreenCell("–")
    text = str(state)
    if text in PLAIN_STATES:
        return ScreenCell(text)
    return ScreenCell(text, "good" if text in GOOD_STATES else "bad" if text in BAD_STATES else "warn")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[ScreenCell]]) -> ScreenTable:
    return ScreenTable(title, columns, list(rows))


def _stream_shards(status: Json, fleet: Json) -> list[Json]:
    """Return the stream shards with all that the fleet and this replica know of each."""
    own = {one.get("streamShard"): one for one in status.get("streamShards", ())}
    return [{**own.get(one.get("streamShard"), {}), **one} for one in fleet.get("streamShards", ())]


def _held(status: Json, fleet: Json) -> list[Json]:
    """Return the held targets of this replica, and those that the others name."""
    return [*status.get("held", ()), *(one for replica in _others(fleet) for one in replica.get("held", ()))]


def _others(fleet: Json) -> list[Json]:
    return [replica for replica in fleet.get("replicas", ()) if not replica.get("isThis")]


def _known(rows: Iterable[Json], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _dead_letters(count: float) -> ScreenCell:
    return ScreenCell(f"dead letters {count:,.0f}/h", "warn" if count else "good")


def _text(value: object) -> ScreenCell:
    match value:
        case None | "" | []:
            return ScreenCell("–")
        case dict():
            shown = ", ".join(f"{name} {item}" for name, item in value.items() if item)
            return ScreenCell(shown or "–")
        case list():
            return ScreenCell("; ".join(map(str, value)))
        case float():
            return ScreenCell(f"{value:,.1f}")
        case int():
            return ScreenCell(f"{value:,}")
        case _:
            return ScreenCell(str(value))


def _lag(seconds: float | None) -> ScreenCell:
    return ScreenCell(duration_text(seconds), lag_tone(seconds))


def _held_table(held: Sequence[Json], advice: Mapping[str, Json]) -> ScreenTable:
    # One row for a target that several stream shards hold.
    oldest = {(one.get("target"), one.get("reason")): one for one in sorted(held, key=_held_age_s)}
    oldest_first = sorted(oldest.values(), key=_held_age_s, reverse=True)
    rows = [
        (
            _text(one.get("target")),
            ScreenCell(str(one.get("reason")), "warn"),
            state_cell(one.get("state")),
            ScreenCell(duration_text(one.get("ageSeconds"))),
            _text(advice.get(one.get("reason", ""), {}).get("advice")),
        )
        for one in oldest_first
    ]
    return ScreenTable("Held", ("Target", "Reason", "State", "Age", "Advice"), rows)


def _held_age_s(held: Json) -> float:
    return float(held.get("ageSeconds", 0.0))


def _work_rows(status: Json) -> Iterator[Sequence[ScreenCell]]:
    """Yield the moves, catch-ups and upgrades, and the shards for which an upgrade is due."""
    for one in status.get("moves", ()):
        has_ended = one.get("error") or one.get("isRunning") is False
        state = ScreenCell("stopped", "bad") if has_ended else _text(one.get("phase") or one.get("step"))
        way = f"{one.get('sourceShard')} to {one.get('targetShard')}"
        detail = one.get("error") or (way if one.get("rows") is None else f"{way}, {one['rows']:,} rows")
        yield ScreenCell("move"), ScreenCell(f"tenant {one.get('tenant')}"), state, _text(detail)
    for reader in status.get("streamShards", ()):
        for one in reader.get("catchUps") or ():
            behind = f"{duration_text(one.get('behindMainSeconds'))} behind"
            detail = f"{reader.get('streamShard')}, {one.get('records') or 0:,} records"
            yield ScreenCell("catch-up"), _text(one.get("targets")), ScreenCell(behind), ScreenCell(detail)
    shards = status.get("shards", ())
    newest = max(_known(shards, "schemaVersion"), default=0)
    for one in shards:
        version = one.get("schemaVersion")
        is_due = version is not None and version < newest
        if one.get("upgrading") or is_due:
            state = ScreenCell("under way", "warn") if one.get("upgrading") else ScreenCell("due", "warn")
            detail = f"schema {version}, others have {newest}" if is_due else None
            yield ScreenCell("upgrade"), ScreenCell(f"shard {one.get('shardId')}"), state, _text(detail)


def _shard_table(shards: Iterable[Json]) -> ScreenTable:
    rows = [
        (
            _text(one.get("shardId")),
            state_cell(one.get("state")),
            _text(one.get("role")),
            ScreenCell(f"{one['responseMs']} ms" if "responseMs" in one else "–"),
            _text(one.get("tenantCount")),
            ScreenCell(f"{one['usage']:.0%}" if one.get("usage") is not None else "–"),
            _connections(one),
            _text(one.get("odd") or one.get("error")),
        )
        for one in shards
    ]
    # Those with a problem first: a terminal may have no room for all.
    rows.sort(key=lambda row: row[1].tone == "good")
    columns = ("Shard", "State", "Role", "Response", "Tenants", "Usage", "Connections", "Problems")
    return ScreenTable("Shards", columns, rows)


def _connections(shard: Json) -> ScreenCell:
    used = shard.get("connectionsUsed")
    return ScreenCell("–" if used is None else f"{used} of {shard.get('connectionsMax', '?')}")


def _replica_table(replicas: Iterable[Json]) -> ScreenTable:
    rows = [
        (
            _text(one.get("replica")),
            _text(one.get("version")),
            _text(one.get("leases")),
            _lag(one.get("lagSeconds")),
            _text(one.get("recordsPerSecond")),
            ScreenCell(_latency_text(one.get("latencyP99Seconds"))),
            _text(one.get("deadLetters")),
            _text(one.get("heldTargets")),
            ScreenCell(duration_text(one.get("seenSecondsAgo"))),
        )
        for one in replicas
    ]
    columns = ("Replica", "Version", "Leases", "Lag", "Records/s", "p99", "Dead letters/h", "Held", "Seen ago")
    return ScreenTable("Replicas", columns, rows)


def _stream_table(stream_shards: Iterable[Json]) -> ScreenTable:
    furthest_first = sorted(stream_shards, key=lambda one: -(one.get("lagSeconds") or 0.0))
    rows = [
        (
            _text(one.get("streamShard")),
            state_cell(one.get("state")),
            _lag(one.get("lagSeconds")),
            _text(one.get("recordsPerSecond")),
            _text(one.get("held") or one.get("heldTargets") or None),
            _text(one.get("owner")),
        )
        for one in furthest_first
    ]
    return ScreenTable("Stream shards", ("Stream shard", "State", "Lag", "Records/s", "Held", "Owner"), rows)


def _queue_table(queues: Iterable[Json]) -> ScreenTable:
    return _table("Queues", ("Queue", "State", "Waiting", "In flight", "Here", "Error"), map(_queue_row, queues))


def _queue_row(one: Json) -> Sequence[ScreenCell]:
    is_dead = one.get("consumed") is False  # the dead-letter queue: each message asks for a person
    waiting = one.get("visible")
    return (
        _text(one.get("name")),
        state_cell("dead letters" if is_dead else one.get("state")),
        ScreenCell("–" if waiting is None else f"{waiting:,}", "warn" if is_dead and waiting else ""),
        _text(one.get("inFlight")),
        _text(one.get("inHand")),
        _text(one.get("error")),
    )


def _error_table(errors: Iterable[Json]) -> ScreenTable:
    rows = [
        (
            ScreenCell(str(one.get("at", ""))[11:19]),
            state_cell(one.get("level")),
            _text(one.get("event")),
            _text(one.get("about")),
            _text(one.get("error")),
            _text(one.get("count")),
        )
        for one in errors
    ]
    return ScreenTable("Recent errors and warnings", ("At, UTC", "Level", "Event", "About", "Error", "Times"), rows)


STYLES: Final = {"good": "green", "warn": "yellow", "bad": "bold red", "": ""}
HEAD_LINES: Final = 3  # the status, the notice, and an empty line
FLEXIBLE: Final = frozenset({"Advice", "Detail", "Problems", "Owner", "Error"})  # columns that a narrow terminal cuts
ALL_LINES: Final = 1_000_000  # of an output that is no terminal


def draw(
    console: Console,
    status: dict[str, Any],
    fleet: dict[str, Any],
    queues: Sequence[dict[str, Any]],
    notice: str = "",
) -> RenderableType:
    """Return the screen for *console* as large as it is now; *notice* is a remark below the first line."""
    lines = console.size.height - HEAD_LINES if console.is_terminal else ALL_LINES
    parts: list[RenderableType] = [_line(status_line(status, fleet)), Text(escape_unprintable(notice), STYLES["bad"])]
    for table in fit_tables(tables_of(status, fleet, queues), lines):
        parts += [_draw_table(table, expand=console.is_terminal), Text("")]
    return Group(*parts)


def _line(cells: Sequence[ScreenCell]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for number, cell in enumerate(cells):
        line.append("  " if number else "").append(_screen_text(cell))
    return line


def _draw_table(table: ScreenTable, *, expand: bool) -> RenderableType:
    more = f", {table.hidden_count} more" if table.hidden_count else ""
    drawn = Table(
        title=f"{table.title}{more}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        expand=expand,
    )
    for column in table.columns:
        drawn.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column in FLEXIBLE else None)
    for row in table.rows:
        drawn.add_row(*map(_screen_text, row))
    return drawn


def _screen_text(cell: ScreenCell) -> Text:
    return Text(escape_unprintable(cell.text), STYLES[cell.tone])


POLL_EVERY_S: Final = 2.0
QUEUES_EVERY_S: Final = 15.0  # SQS is asked


class Overview(NamedTuple):
    """The answers of one moment, as of `/status`, `/fleet` and `/sqs/stats`."""

    status: dict[str, Any]
    fleet: dict[str, Any]
    queues: list[dict[str, Any]]


async def show_top(settings: Settings, url: str | None, *, once: bool, as_json: bool) -> int:
    """Show the replica at *url*, or the one of this machine. Without a terminal, and as JSON, it is printed once.

    Raises WorkerError if it does not answer the first time, or refuses the token.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH)
    async with open_replica(settings, url) as replica:
        overview = await read_overview(replica)
        if as_json:
            print_json(overview._asdict())
        elif once or not console.is_terminal:
            console.print(draw(console, *overview))
        else:
            await _follow(replica, console, overview)
    return 0


async def read_overview(replica: ReplicaClient) -> Overview:
    """Return the answers of *replica*. Raises WorkerError."""
    return Overview(
        await replica.ask("GET", "/status"), await replica.ask("GET", "/fleet"), await _read_queues(replica)
    )


async def _read_queues(replica: ReplicaClient) -> list[dict[str, Any]]:
    answer = await replica.ask("GET", "/sqs/stats")
    return list(answer["queues"])


async def _follow(replica: ReplicaClient, console: Console, overview: Overview) -> None:
    """Draw the screen, in its size of that moment, whenever the replica sends an event; without events every 2 s."""
    last, notice = overview, ""
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(draw(console, *last, notice), refresh=True)
            with contextlib.suppress(WorkerError):  # the request below has the reason
                async for changed in _changes(replica, last):
                    last = changed
                    live.update(draw(console, *last), refresh=True)
            await asyncio.sleep(POLL_EVERY_S)
            try:
                last, notice = await read_overview(replica), ""
            except WorkerError as exc:
                notice = f"{exc}; the values are the last known"


async def _changes(replica: ReplicaClient, overview: Overview) -> AsyncIterator[Overview]:
    """Yield *overview* with each event of the replica; the queues change less often."""
    queues_at = loop_time()
    async with contextlib.aclosing(replica.listen("/events")) as events:
        async for name, _, answer in events:
            match name:
                case "status":
                    overview = overview._replace(status=answer)
                case "fleet":
                    overview = overview._replace(fleet=answer)
                case _:
                    continue
            if loop_time() - queues_at >= QUEUES_EVERY_S:
                queues_at = loop_time()
                overview = overview._replace(queues=await _read_queues(replica))
            yield overview
