"""The dashboards are those of their description, and name only what the worker has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.exported_metrics import metric_names
from support.prometheus.dashboards import DASHBOARDS, FOLDER, panels_of
from support.requires import ROOT

PROCESS_METRICS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


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
def test_queries_name_series_that_exist(name: str) -> None:
    for panel in panels_of(name):
        for target in panel["targets"]:
            named = set(re.findall(r"\b(?:simplu|process)_[a-z_]+", target["expr"]))
            assert named
            assert named <= metric_names() | PROCESS_METRICS
            for selector in re.findall(r"\{([^}]*)\}", target["expr"]):
                assert 'job=~"$job"' in selector
                assert name == "fleet" or 'shard_id="$shard"' in selector
