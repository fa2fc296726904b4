"""The dashboards of deploy/grafana, panel by panel."""

from __future__ import annotations

import json
from typing import Any

from support.requires import ROOT

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARDS = ("fleet", "shard")


def panels_of(name: str) -> list[dict[str, Any]]:
    panels = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


def query_of(target: dict[str, Any], *, shard_id: str, rate_interval: str = "10m") -> str:
    expression: str = target["expr"]
    for variable, value in {"$job": ".+", "$shard": shard_id, "$__rate_interval": rate_interval}.items():
        expression = expression.replace(variable, value)
    return expression
