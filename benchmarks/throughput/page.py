"""The page of the throughput benchmark: its tables and its picture, written between the marks of the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import msgspec
from support.processes.resource_usage import ValueRange

from benchmarks.throughput.measures import OrderFigures
from benchmarks.throughput.peers import PEERS_HEAD, lost_measures, peer_lines
from benchmarks.throughput.results import BARE, LANES, MB, SEQUENCE, WORKER, ThroughputResults
from benchmarks.throughput.runs import Cell, Contender, range_of
from benchmarks.throughput.startup import start_range

PICTURE = Path("images") / "performance.svg"
MARK = "<!-- {name}: written by {command} -->"
END_MARK = "<!-- end of {name} -->"

MIX_HEAD = ("records", "records/s", "worker, µs", "Postgres, µs", "WAL, bytes", "disk, bytes", "memory, MB")
RATES_HEAD = ("", "stream shards", "Postgres shards", "commit", "records/s", "client, µs", "Postgres, µs", "memory, MB")

WIDTH, BAR_HEIGHT, GAP, LEFT, RIGHT, TOP = 860, 26, 12, 300, 150, 56
COLOURS = {Contender.WORKER: "#2f6fde", Contender.BARE: "#8a94a6"}
OTHERS_COLOUR = "#d9822b"
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#1f2430}.title{font-weight:600;font-size:16px}.small{fill:#5b6475}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e9ef}.small{fill:#a9b1c0}}"
)


class Bar(NamedTuple):
    """One bar of the picture."""

    label: str
    rate: ValueRange
    colour: str


def write_page(results: ThroughputResults, page: Path) -> None:
    """Put the tables into *page* and the picture beside it. Raises ValueError for a page without the marks."""
    text = page.read_text(encoding="utf-8")
    if results.mixes:
        text = replace_part(text, "mixes", "make bench", mixes(results))
    if results.has_comparison:
        text = replace_part(text, "figures", "make bench", figures(results))
    if results.peers:
        table = markdown_table(PEERS_HEAD, peer_lines(results))
        part = f"{measured_on(results, results.rounds, results.seconds)}\n\n{table}\n\n{lost_measures(results)}"
        text = replace_part(text, "peers", "python3 run.py bench throughput --only peers", part)
    page.write_text(text, encoding="utf-8")
    if results.runs:
        (page.parent / PICTURE).write_text(draw_bars(bars(results)), encoding="utf-8")


def replace_part(text: str, name: str, command: str, part: str) -> str:
    """Return *text* with *part* between the marks of *name*."""
    begin, end = MARK.format(name=name, command=f"`{command}`"), END_MARK.format(name=name)
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"expected the lines {begin!r} and {end!r} in the page; put them where {name} belong")
    return f"{before}{begin}\n\n{part.strip()}\n\n{end}{after}"


def mixes(results: ThroughputResults) -> str:
    """Return the table of the records as users have them, as Markdown; without the workers of other checkouts."""
    measured = measured_on(results, results.mix_rounds, results.mix_seconds)
    own = msgspec.structs.replace(results, mixes=[run for run in results.mixes if not run.worker])
    return f"{measured}\n\n{markdown_table(MIX_HEAD, own.mix_lines())}"


def measured_on(results: ThroughputResults, rounds: int, seconds: float) -> str:
    """Return on which machine, at which commit and how long the results were measured."""
    one = results.machine
    return (
        f"Measured {one.at} on {one.cores} cores ({one.model}), Python {one.python}, at commit `{one.commit}`, "
        f"median of {rounds} rounds of {seconds:g} s."
    )


def figures(results: ThroughputResults) -> str:
    """Return the tables of the comparison with others as Markdown.

    The picture alone has the others' rates without synchronous_commit, the benchmark's output those of two replicas.
    """
    rows = [row for row in results.lines() if row[0] == Contender.WORKER or row[3] == "on"]
    parts = [
        measured_on(results, results.rounds, results.seconds),
        f"![Records a second of the worker, a bare loop and async-kinesis]({PICTURE.as_posix()})",
        markdown_table(RATES_HEAD, rows),
        _further(results),
    ]
    return "\n\n".join(part for part in parts if part)


def _further(results: ThroughputResults) -> str:
    rows: list[list[str]] = []
    if (latency := results.latency) is not None:
        p50, p99 = (f"{1000 * one:.0f} ms" for one in (latency.p50_s, latency.p99_s))
        text = f"p50 {p50}, p99 {p99}; {latency.client_cores:.1%} of a core"
        rows.append([f"arrival to commit at {latency.rate:,.0f} records/s", text])
    if own := [one for one in results.low_loads if not one.worker]:
        worker_us = statistics.median(one.client_us for one in own)
        postgres_us = statistics.median(one.server_us for one in own)
        name = f"{own[0].rate:.0f} records/s over {own[0].stream_shards} stream shards, {own[0].shards} Postgres shards"
        rows.append([name, f"{worker_us:.0f} µs a record, Postgres {postgres_us:.0f} µs"])
    if (idle := results.idle) is not None:
        text = (
            f"{idle.client_cores:.2%} of a core, Postgres {idle.server_cores:.1%}; {idle.rss_bytes / MB:.0f} MB; "
            f"the polls alone {idle.plain_cores:.2%}"
        )
        rows.append([f"idle with {idle.stream_shards} stream shards", text])
    if (watching := results.watching) is not None:
        alone, watched = (ValueRange.from_values(one) for one in zip(*watching.idle_cores, strict=True))
        text = f"{watched.median:.2%} of a core, {alone.median:.2%} without"
        rows.append(["the same, with a listener to `/events` and scrapes of `/metrics`", text])
    if results.starts:
        names = ("ready_s", "command_s", "help_s", "imports_s")
        times = " s, ".join(f"{start_range(results.starts, name).median:.2f}" for name in names)
        rows.append(["start to ready, a command that asks a shard, `--help`, imports alone", f"{times} s"])
    rows += [[f"SQS order events, {one.latency_ms} ms more a call", _orders(one)] for one in results.orders]
    return markdown_table(["further", ""], rows) if rows else ""


def _orders(orders: OrderFigures) -> str:
    rate, ratio = statistics.median(orders.worker_rates), statistics.median(orders.ratios)
    return f"{rate:,.0f}/s, {orders.worker_us:.0f} µs an event; {ratio:.1f} × a loop that takes them one by one"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(results: ThroughputResults) -> list[Bar]:
    """Return the bars of the picture: the contenders at their best with each kind of commit."""
    wanted = [cell._replace(commit=commit) for commit in ("on", "off") for cell in (WORKER, BARE, LANES, SEQUENCE)]
    return [
        Bar(_label(cell), rate, COLOURS.get(cell.contender, OTHERS_COLOUR))
        for cell in wanted
        if (rate := range_of(results.runs, cell, lambda run: run.rate)) is not None
    ]


def _label(cell: Cell) -> str:
    return f"{cell.contender}, commit {cell.commit}"


def draw_bars(shown: Sequence[Bar]) -> str:
    """Return the bars as SVG, each with its spread."""
    height = TOP + len(shown) * (BAR_HEIGHT + GAP) + 8
    scale = (WIDTH - LEFT - RIGHT) / max((bar.rate.most for bar in shown), default=1.0)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="Records a second"><style>{STYLE}</style>'
        ),
        '<text class="title" x="12" y="26">Records a second, one Postgres shard</text>',
    ]
    for place, bar in enumerate(shown):
        y = TOP + place * (BAR_HEIGHT + GAP)
        middle, length = y + BAR_HEIGHT / 2, bar.rate.median * scale
        least, most = LEFT + bar.rate.least * scale, LEFT + bar.rate.most * scale
        lines += [
            f'<text x="{LEFT - 12}" y="{middle + 5:.0f}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="3" fill="{bar.colour}"/>',
            (
                f'<path d="M{least:.1f} {middle:.1f}H{most:.1f}M{least:.1f} {middle - 5:.1f}v10M{most:.1f} '
                f'{middle - 5:.1f}v10" stroke="#5b6475" fill="none"/>'
            ),
            (
                f'<text class="small" x="{max(LEFT + length, most) + 10:.1f}" y="{middle + 5:.0f}">'
                f"{bar.rate.median:,.0f}</text>"
            ),
        ]
    return "\n".join([*lines, "</svg>", ""])
