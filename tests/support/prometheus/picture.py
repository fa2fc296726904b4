"""A drawing of a dashboard with the answers of a real Prometheus, for the docs: its panels, in their places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from support.prometheus.dashboards import query_of
from support.prometheus.server import PrometheusServer

COLUMN_PX, LINE_PX, GAP_PX = 50, 28, 6
TITLE_PX, LEGEND_PX, LEGENDS_MAX = 24, 15, 4
COLORS = ("#3366cc", "#dc7633", "#2e8b57", "#a0408c", "#b8a000", "#607080")
FONT = "font-family='sans-serif' font-size='12'"


class Line(NamedTuple):
    legend: str
    points: Sequence[tuple[float, float]]


def number_text(value: float, unit: str) -> str:
    match unit:
        case "s":
            return f"{value:,.0f} s" if value >= 10 else f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"
        case "percentunit":
            return f"{value:.2%}" if 0 < value < 0.01 else f"{value:.0%}"
        case "bytes":
            return f"{value / 2**20:,.0f} MiB"
        case "ops" | "reqps":
            return f"{value:,.1f}/s"
        case _:
            return f"{value:,.4g}"


async def lines_of(panel: dict[str, Any], prometheus: PrometheusServer, begin: float, end: float) -> list[Line]:
    lines = []
    for target in panel["targets"]:
        query = query_of(target, shard_id="shard-1", rate_interval="10s")
        span = {"start": str(begin), "end": str(end), "step": "1"}
        for series in (await prometheus.read("query_range", query=query, **span))["result"]:
            legend = _legend(target["legendFormat"], series["metric"])
            points = [(float(at), float(value)) for at, value in series["values"] if value != "NaN"]
            lines.append(Line(legend, points))
    return lines


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), template).replace("__auto", "")


def drawing(drawn: Iterable[tuple[dict[str, Any], Sequence[Line]]], title: str) -> str:
    parts = [_panel(panel, lines) for panel, lines in drawn]
    places = [panel["gridPos"] for panel, _ in drawn]
    height = max(place["y"] + place["h"] for place in places) * LINE_PX
    width = max(place["x"] + place["w"] for place in places) * COLUMN_PX
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {FONT}>"
        f"<title>{escape(title)}</title><rect width='{width}' height='{height}' fill='#f4f5f5'/>"
        f"{''.join(parts)}</svg>\n"
    )


def _panel(panel: dict[str, Any], lines: Sequence[Line]) -> str:
    place = panel["gridPos"]
    x, y = place["x"] * COLUMN_PX + GAP_PX / 2, place["y"] * LINE_PX + GAP_PX / 2
    width, height = place["w"] * COLUMN_PX - GAP_PX, place["h"] * LINE_PX - GAP_PX
    if panel["type"] == "row":
        return f"<text x='{x + 4}' y='{y + 17}' font-weight='bold' font-size='14'>{escape(panel['title'])}</text>"
    unit = panel["fieldConfig"]["defaults"]["unit"]
    inner = _number(lines, unit, width, height) if panel["type"] == "stat" else _chart(lines, unit, width, height)
    return (
        f"<g transform='translate({x},{y})'><rect width='{width}' height='{height}' fill='#fff' stroke='#d8dadc'/>"
        f"<text x='8' y='17'>{escape(panel['title'])}</text>{inner}</g>"
    )


def _number(lines: Sequence[Line], unit: str, width: float, height: float) -> str:
    text = number_text(lines[0].points[-1][1], unit) if lines and lines[0].points else "–"
    return (
        f"<text x='{width / 2}' y='{height / 2 + 22}' font-size='26' text-anchor='middle' fill='#2e8b57'>{text}</text>"
    )


def _chart(lines: Sequence[Line], unit: str, width: float, height: float) -> str:
    lines = [line for line in lines if line.points]
    if not lines:
        return f"<text x='{width / 2}' y='{height / 2}' text-anchor='middle' fill='#888'>no series</text>"
    by_height = sorted(lines, key=lambda line: -max(value for _, value in line.points))
    top = max(value for line in lines for _, value in line.points)
    begin = min(line.points[0][0] for line in lines)
    seconds = max(max(line.points[-1][0] for line in lines) - begin, 1.0)
    floor = height - 8 - LEGEND_PX * min(len(lines), LEGENDS_MAX)
    parts = [
        f"<line x1='8' x2='{width - 8}' y1='{floor}' y2='{floor}' stroke='#d8dadc'/>",
        f"<text x='{width - 8}' y='17' text-anchor='end' fill='#888'>{number_text(top, unit)}</text>",
    ]
    for number, line in enumerate(by_height):
        color = COLORS[number % len(COLORS)]
        points = " ".join(
            f"{8 + (at - begin) / seconds * (width - 16):.0f},{floor - value / (top or 1) * (floor - TITLE_PX):.0f}"
            for at, value in line.points
        )
        parts.append(f"<polyline points='{points}' fill='none' stroke='{color}' stroke-width='1.5'/>")
        if number < LEGENDS_MAX:
            y = floor + LEGEND_PX * (number + 1) - 2
            parts.append(f"<text x='8' y='{y}' fill='{color}'>{escape(line.legend)}</text>")
    return "".join(parts)
