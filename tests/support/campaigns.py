"""Campaigns that are written down, one a line of a JSON array, for docs/correctness.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def read_campaigns(path: Path) -> list[dict[str, Any]]:
    campaigns: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return campaigns


def add_campaign(path: Path, facts: Mapping[str, Any]) -> None:
    campaigns = [*read_campaigns(path), {"day": datetime.now(UTC).date().isoformat(), **facts}]
    path.write_text("[\n" + ",\n".join(map(json.dumps, campaigns)) + "\n]\n", encoding="utf-8")
