"""The dashboards of deploy/grafana, panel by panel."""

from __future__ import annotations

import json
from typing import Any

from support.requires import ROOT

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARDS = ("fleet", "shard")


def panels_of(name: str) -> list[dict[str, Any]]:
    """Return the panels of a dashboard that have queries."""
    found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return [panel for panel in found["panels"] if panel["type"] != "row"]


def query_of(target: dict[str, Any], *, shard_id: str) -> str:
    """Return the query of a panel with Grafana's variables filled in."""
    expression: str = target["expr"]
    for variable, value in {"$job": ".+", "$shard": shard_id, "$__rate_interval": "10m"}.items():
        expression = expression.replace(variable, value)
    return expression
