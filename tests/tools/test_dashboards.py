"""The dashboards are those of their description, and name only what the worker has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.exported_metrics import metric_names
from support.prometheus.dashboards import DASHBOARDS, FOLDER, panels_of
from support.requires import ROOT

COLUMNS = 24
PROCESS_METRICS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def dashboard(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_dashboards_are_as_their_description_makes_them(tmp_path: Path) -> None:
    script = [sys.executable, "-I", "-S", str(FOLDER / "make_dashboards.py"), "--to", str(tmp_path)]
    subprocess.run(script, check=True, timeout=30, cwd=ROOT)
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert sorted(made) == sorted(f"{name}.json" for name in DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_words_a_unit_and_a_link(name: str) -> None:
    for panel in panels_of(name):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert [link["title"] for link in panel["links"]] == ["Runbook"], panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard(name)["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= COLUMNS
        cells |= taken
    numbers = [panel["id"] for panel in dashboard(name)["panels"]]
    assert sorted(set(numbers)) == numbers


@pytest.mark.parametrize("name", DASHBOARDS)
def test_queries_name_series_that_exist(name: str) -> None:
    for panel in panels_of(name):
        for target in panel["targets"]:
            named = set(re.findall(r"\b(?:simplu|process)_[a-z_]+", target["expr"]))
            assert named
            assert named <= metric_names() | PROCESS_METRICS
            for selector in re.findall(r"\{([^}]*)\}", target["expr"]):
                assert 'job=~"$job"' in selector
                assert name == "fleet" or 'shard_id="$shard"' in selector
