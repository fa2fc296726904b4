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
