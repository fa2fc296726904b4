"""Make the dashboards beside this file from dashboards.toml.

    python3 deploy/grafana/make_dashboards.py --docs https://wiki.internal/simplu-worker

It needs Python 3.11 alone. `--to FOLDER` writes them elsewhere, `--docs URL` makes links to the pages at that address.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
DOCS_URL = "https://docs.example.com/simplu-worker"  # users put their own in its place
UID_PREFIX = "simplu-worker-"
COLUMNS = 24  # of Grafana's grid
HEIGHTS = {"stat": 4, "timeseries": 8}
SCHEMA_VERSION = 39  # Grafana 10.4; later ones convert it
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """A panel as it is described; *page* is a heading of docs/monitoring.md, a query an expression and its legend."""

    title: str
    description: str
    unit: str
    page: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    width: int = 8
    red_from: float | None = None


def render_all(docs_url: str) -> dict[str, str]:
    """Return the text of each dashboard by its file name."""
    described = tomllib.loads((FOLDER / "dashboards.toml").read_text(encoding="utf-8"))["dashboard"]
    return {
        f"{one['uid'].removeprefix(UID_PREFIX)}.json": json.dumps(_render(one, docs_url), indent=1) + "\n"
        for one in described
    }


def _render(described: dict[str, Any], docs_url: str) -> dict[str, Any]:
    variables = [_variable(name, query) for name, query in described["variables"].items()]
    return {
        "uid": described["uid"],
        "title": described["title"],
        "description": described["description"],
        "tags": ["simplu-worker"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"type": "dashboards", "title": "simplu-worker", "tags": ["simplu-worker"], "asDropdown": True},
            {"type": "link", "title": "Runbook", "url": f"{docs_url}/runbook/index.html", "targetBlank": True},
        ],
        "templating": {
            "list": [
                {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
                *variables,
            ]
        },
        "panels": list(_panels(described["row"], docs_url)),
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    """Return a variable with the values of *query*; of jobs all are chosen at first."""
    chosen: dict[str, Any] = {}
    if name == "job":
        all_jobs = {"text": ["All"], "value": ["$__all"]}
        chosen = {"includeAll": True, "multi": True, "allValue": ".+", "current": all_jobs}
    return {
        "type": "query",
        "name": name,
        "label": name.capitalize(),
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # with each change of the time range
        "sort": 1,
        **chosen,
    }


def _panels(rows: Iterable[dict[str, Any]], docs_url: str) -> Iterator[dict[str, Any]]:
    """Yield rows and panels with their places: from left to right, then on the next line."""
    number = top = 0
    for row in rows:
        number += 1
        place = _place(0, top, COLUMNS, 1)
        yield {"id": number, "type": "row", "title": row["title"], "collapsed": False, "panels": [], "gridPos": place}
        top, left, height = top + 1, 0, 0
        for described in row["panel"]:
            panel = Panel(**described)
            if left + panel.width > COLUMNS:
                top, left = top + height, 0
            number, height = number + 1, HEIGHTS[panel.kind]
            yield _panel(panel, docs_url) | {"id": number, "gridPos": _place(left, top, panel.width, height)}
            left += panel.width
        top += height


def _panel(panel: Panel, docs_url: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "links": [{"title": "Runbook", "url": f"{docs_url}/monitoring.html#{panel.page}", "targetBlank": True}],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}} if panel.kind == "stat" else {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
            }
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def main() -> None:
    """Write the dashboards."""
    parser = argparse.ArgumentParser(description="Make the dashboards of simplu-worker.")
    parser.add_argument("--to", type=Path, default=FOLDER, help="the folder; default: the script's own")
    parser.add_argument("--docs", default=DOCS_URL, help="the address of docs/; default: %(default)s")
    arguments = parser.parse_args()
    for name, text in render_all(arguments.docs.rstrip("/")).items():
        (arguments.to / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
