"""The page of the throughput benchmark: its tables and its picture, put where the page has its marks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from benchmarks.throughput.measures import Orders
from benchmarks.throughput.results import BARE, LANES, MB, SEQUENCE, WORKER, Results, spread
from benchmarks.throughput.runs import Cell, Range, Who, of

PICTURE = Path("images") / "performance.svg"
MARK = "<!-- {name}: written by {command} -->"
END_MARK = "<!-- end of {name} -->"

WIDTH, BAR_HEIGHT, GAP, LEFT, RIGHT, TOP = 860, 26, 12, 300, 150, 56
COLOURS = {Who.WORKER: "#2f6fde", Who.BARE: "#8a94a6"}
OTHERS_COLOUR = "#d9822b"
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#1f2430}.title{font-weight:600;font-size:16px}.small{fill:#5b6475}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e9ef}.small{fill:#a9b1c0}}"
)


class Bar(NamedTuple):
    """One bar of the picture."""

    label: str
    rate: Range
    colour: str


def write_page(results: Results, page: Path) -> None:
    """Put the tables into *page* and the picture beside it. Raises ValueError for a page without the marks."""
    text = page.read_text(encoding="utf-8")
    page.write_text(with_part(text, "figures", "make bench", figures(results)), encoding="utf-8")
    (page.parent / PICTURE).write_text(picture(bars(results)), encoding="utf-8")


def with_part(text: str, name: str, command: str, part: str) -> str:
    """Return *text* with *part* between the marks of *name*."""
    begin, end = MARK.format(name=name, command=f"`{command}`"), END_MARK.format(name=name)
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"expected the lines {begin!r} and {end!r} in the page; put them where {name} belong")
    return f"{before}{begin}\n\n{part.strip()}\n\n{end}{after}"


def figures(results: Results) -> str:
    """Return the tables as Markdown."""
    one = results.machine
    parts = [
        (
            f"Measured {one.at} on {one.cores} cores ({one.model}), Python {one.python}, at commit `{one.commit}`: "
            f"{results.rounds} rounds of {results.seconds:g} s, {results.records:,} records in the stream. "
            f"The machine's load before it was {one.load:.1f}."
        ),
        f"![Records a second of the worker, a bare loop and async-kinesis]({PICTURE.as_posix()})",
        _targets(results),
        table_of(
            [
                "",
                "stream shards",
                "Postgres shards",
                "`synchronous_commit`",
                "records/s",
                "client, µs a record",
                "Postgres, µs a record",
                "memory, MB",
            ],
            results.lines(),
        ),
        (
            "In brackets: the least and the most of all rounds. Processor time is that of the contender, and that of "
            "all of Postgres."
        ),
        _further(results),
    ]
    return "\n\n".join(part for part in parts if part)


def _targets(results: Results) -> str:
    rows = [[one.what, one.measured, str(one), "kept" if one.is_kept else "**missed**"] for one in results.targets()]
    return table_of(["target", "measured", "wanted", ""], rows)


def _further(results: Results) -> str:
    rows: list[list[str]] = []
    if (latency := results.latency) is not None:
        p50, p99, most = (f"{1000 * one:.0f} ms" for one in (latency.p50_s, latency.p99_s, latency.most_s))
        told = f"p50 {p50}, p99 {p99}, longest {most}; {latency.client_cores:.1%} of a core"
        rows.append([f"arrival to commit at {latency.rate:,.0f} records/s", told])
    if (idle := results.idle) is not None:
        told = f"{idle.client_cores:.1%} of a core, Postgres {idle.server_cores:.1%}; {idle.rss_bytes / MB:.0f} MB"
        rows.append([f"idle with {idle.stream_shards} stream shards", told])
    if results.starts:
        rows.append(["start to ready", spread(Range.of(results.starts), 2) + " s"])
    for runs in zip(*results.replicas, strict=True):
        rate, client_us = Range.of([run.rate for run in runs]), Range.of([run.client_us for run in runs])
        told = f"{spread(rate, 0)} records/s, {spread(client_us, 1)} µs a record"
        rows.append([f"{runs[0].who} on {runs[0].stream_shards} stream shards, {len(runs)} rounds", told])
    rows += [[f"SQS order events, {one.latency_ms} ms more a call", _orders(one)] for one in results.orders]
    return table_of(["further", ""], rows) if rows else ""


def _orders(orders: Orders) -> str:
    return (
        f"{Range.of(orders.worker_rates).median:,.0f}/s, {spread(orders.ratios, 1)} × a loop that receives, applies "
        f"and deletes one by one; {orders.worker_us:.0f} µs an event, the loop {orders.naive_us:.0f}"
    )


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(results: Results) -> list[Bar]:
    """Return what the picture shows: the contenders at their best with each kind of commit."""
    wanted = [cell._replace(commit=commit) for commit in ("on", "off") for cell in (WORKER, BARE, LANES, SEQUENCE)]
    return [
        Bar(_label(cell), rate, COLOURS.get(cell.who, OTHERS_COLOUR))
        for cell in wanted
        if (rate := of(results.runs, cell, lambda run: run.rate)) is not None
    ]


def _label(cell: Cell) -> str:
    return f"{cell.who}, commit {cell.commit}"


def picture(shown: Sequence[Bar]) -> str:
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
