"""`fleet show`, `fleet retry`, `tap` and `top`: they ask a running replica over HTTP, with a token of the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simplu_worker.commands.output import (
    Answer,
    Line,
    escape_unprintable,
    print_json_line,
    print_line,
    print_note,
    stdout_console,
    table_of,
)
from simplu_worker.config.settings import Settings
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError, WorkerError
from simplu_worker.network_errors import network_cause
from simplu_worker.status.tls import own_client_context, own_url
from simplu_worker.status.words import Severity
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.vocabulary import StreamShardState

CONNECT_WITHIN_S: Final = 5.0
ANSWER_WITHIN_S: Final = 65.0  # more than a replica takes for an answer
LISTENING: Final = aiohttp.ClientTimeout(sock_connect=CONNECT_WITHIN_S, sock_read=40)  # a comment comes every 15 s
CA_SETTING: Final = "SSL_CERT_FILE, or HTTP_TLS_CERT_FILE for a replica of this machine"


class ReplicaClient:
    """Requests to the replica at *url*. A redirect is refused: the token is for this address alone."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url.rstrip("/")

    async def ask(self, method: str, path: str, *, body: Any = None) -> dict[str, Any]:
        """Return the JSON of a successful answer. Raises WorkerError otherwise."""
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, self.url + path, data=data, allow_redirects=False) as response:
                text = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise RetryableError(f"{self.url}: {network_cause(exc, ca_setting=CA_SETTING)}") from None
        return self._parse(status, text)

    async def listen(self, path: str) -> AsyncGenerator[tuple[str, str, dict[str, Any]], None]:
        """Yield the events of a stream: the name, and the data as text and as JSON.

        Raises WorkerError for a refused request, and for a broken or silent connection.
        """
        rest = b""
        try:
            async with self._session.get(self.url + path, timeout=LISTENING, allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    self._parse(response.status, await response.read())
                async for part in response.content.iter_any():
                    *complete, rest = (rest + part).split(b"\n\n")
                    for event in complete:
                        head, _, data = event.partition(b"\ndata: ")
                        if data:  # no comment
                            name = head.removeprefix(b"event: ").decode()
                            yield name, data.decode(), msgspec.json.decode(data, type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise RetryableError(f"{self.url}: {network_cause(exc, ca_setting=CA_SETTING)}") from None
        except ValueError:
            raise RetryableError(f"{self.url}: expected events of a replica, got something else") from None

    def _parse(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            answer = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError):
            raise PermanentError(f"{self.url}: expected JSON of a replica, got HTTP status {status}") from None
        if status >= HTTPStatus.BAD_REQUEST:
            raise WorkerError(f"{self.url}: {scrub_text(str(answer.get('error', f'HTTP status {status}')))}")
        return answer


@asynccontextmanager
async def open_replica(settings: Settings, url: str | None, *, acts: bool = False) -> AsyncIterator[ReplicaClient]:
    """Open a client of the replica at *url*, else of that of this machine.

    Raises ConfigurationError without `API_TOKEN`, or to look (not *acts*) `API_VIEWER_TOKEN`.
    """
    token = settings.api_token or (None if acts else settings.api_viewer_token)
    if token is None:
        names = "API_TOKEN" if acts else "API_TOKEN or API_VIEWER_TOKEN"
        raise ConfigurationError(f"{names}: expected the token of the replicas, got nothing; set it")
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S, sock_connect=CONNECT_WITHIN_S)
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
    certificate, connector = settings.http_tls_cert_file, None
    if url is None and certificate is not None:
        try:
            connector = aiohttp.TCPConnector(ssl=own_client_context(certificate))
        except OSError as exc:
            raise ConfigurationError(f"HTTP_TLS_CERT_FILE: expected a certificate, got: {exc.strerror or exc}") from exc
    own = own_url(settings.http_host, settings.http_port, is_https=certificate is not None)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        yield ReplicaClient(session, url or own)


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
    listed = (problems, fleet["replicas"], streams, list(_top_rows(fleet["topBusinesses"])))
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


def _top_rows(businesses: Iterable[Json]) -> Iterator[Json]:
    """Yield a row for each business, and below it one for each of its locations, if it has several."""
    for one in businesses:
        several = one["locations"] if len(one["locations"]) > 1 else ()
        yield {"tenant": None if several else one["locations"][0]["tenant"], **one}
        yield from ({"businessId": "", "shardId": one["shardId"], **location} for location in several)


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
    "Businesses": {
        "Business": "businessId",
        "Tenant": "tenant",
        "Shard": "shardId",
        "Seconds of the last minute": "seconds",
    },
}


async def tap_operations(settings: Settings, url: str | None, query: Mapping[str, str], *, as_json: bool) -> int:
    """Print the operations that *query* matches, one a line, until the replica ends the stream.

    Return 1 if it left some out.
    """
    dropped = 0
    async with open_replica(settings, url, acts="content" in query) as replica:
        print_note(f"listening to {replica.url}: operations are printed as they are decided; Ctrl-C ends it")
        async for name, text, event in replica.listen(f"/tap?{urlencode(query)}"):
            if name == "dropped":
                dropped = event["dropped"]
            else:
                _print(text, event, as_json=as_json)
    print_note("the replica has ended the tap: it does so after 15 minutes, and when it stops")
    if dropped:
        print_note(f"{dropped} operations came too fast, and are not shown: narrow the tap with --tenant or --outcome")
    return 1 if dropped else 0


def _print(text: str, event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json_line(msgspec.Raw(text.encode()))
    else:
        print_line(_describe(event))


def _describe(event: Mapping[str, Any]) -> str:
    tenant = f"{event['businessId']} {event['locationId']}"
    subject = " ".join(str(event[name]) for name in ("operation", "resourceType", "resourceId") if event.get(name))
    outcome = f"{event['outcome']} {event['reason']}" if event.get("reason") else event["outcome"]
    line = f"{event['at']}  {outcome}  {tenant}  {subject}  {event['requestId']}"
    return f"{line}  {event['content']}" if "content" in event else line


POLL_EVERY_S: Final = 2.0
NOTHING_IS_HELD: Final = "nothing is held"


def named_held(fleet: Json) -> list[Json]:
    """Return the held targets of `/fleet`, each with its replica, the oldest first."""
    held = [{"replica": one["replica"], **target} for one in fleet["replicas"] for target in one["held"]]
    return sorted(held, key=lambda one: -one["ageSeconds"])


def held_lines(fleet: Json, *, lease_duration_s: float) -> list[str]:
    """Return how much is held.

    Nothing is only if replicas have reported so for every stream shard within *lease_duration_s*.
    """
    return list(_held_lines(fleet, lease_duration_s)) or [NOTHING_IS_HELD]


def _held_lines(fleet: Json, lease_duration_s: float) -> Iterator[str]:
    rows = [one for one in fleet["streamShards"] if one["state"] != StreamShardState.ENDED]
    count = sum(one["heldTargets"] or 0 for one in rows)
    if count:
        yield f"held targets: {count}, each counted in every stream shard that holds it; a replica names its oldest"
    unknown = ", ".join(one["streamShard"] for one in rows if not _is_known(one, lease_duration_s))
    if unknown:
        yield f"held targets are not known of {unknown}: no replica has read it and reported lately; repeat this"
    elif fleet["stream"] is not None and not fleet["streamShards"]:
        yield "held targets are not known: the replica has not found the leases yet; repeat this"


def _is_known(row: Json, lease_duration_s: float) -> bool:
    has_read = row["heldTargets"] is not None and row["lagSeconds"] is not None
    return has_read and row["seenSecondsAgo"] <= lease_duration_s


HELD_COLUMNS: Final = {
    "replica": "replica",
    "streamShard": "stream shard",
    "target": "target",
    "reason": "reason",
    "ageSeconds": "age s",
}


async def show_fleet(settings: Settings, url: str | None) -> Answer:
    """Return the screen of `top`, and the held targets."""
    async with open_replica(settings, url) as replica:
        fleet = await replica.ask("GET", "/fleet")
    held = named_held(fleet)
    lines = held_lines(fleet, lease_duration_s=settings.kinesis_lease_duration_seconds)
    return Answer(fleet, [draw(fleet, expand=False), table_of(HELD_COLUMNS, held) if held else None, *map(Line, lines)])


async def show_top(settings: Settings, url: str | None, *, as_json: bool) -> Answer | int:
    """Show the screen until interrupted; without a terminal, and as JSON, what `fleet show` prints.

    Raises WorkerError without a first answer.
    """
    console = stdout_console()
    if as_json or not console.is_terminal:
        return await show_fleet(settings, url)
    notice = ""
    async with open_replica(settings, url) as replica:
        fleet = await replica.ask("GET", "/fleet")
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(draw(fleet, notice), refresh=True)
                await asyncio.sleep(POLL_EVERY_S)
                try:
                    fleet, notice = await replica.ask("GET", "/fleet"), ""
                except WorkerError as exc:
                    notice = f"{exc}; the values are the last known"


async def retry_held(settings: Settings, url: str | None, target: str | None) -> Answer:
    """Have all replicas try their held targets now, or *target*; it fails if none is tried, or one is not asked."""
    async with open_replica(settings, url, acts=True) as replica:
        answer = await replica.ask("POST", "/held/retry", body={"target": target})
    notes = [
        f"held targets that this replica tries now: {answer['retried']}",
        *(f"{one} tries its own with the next renewal of its leases" for one in answer["asked"]),
        *(f"{one} could not be asked: repeat the command, or ask it with --url" for one in answer["notAsked"]),
    ]
    return Answer(answer, notes, is_failed=bool(answer["notAsked"]) or not (answer["retried"] or answer["asked"]))
