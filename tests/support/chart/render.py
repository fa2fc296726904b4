"""The chart as Helm renders it, and the checkers of what comes out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from support.chart import custom_resources
from support.peers.programs import CUSTOM_RESOURCES, HELM
from support.requires import ROOT, TOOLS, require, required_program

CHART = ROOT / "deploy" / "helm" / "simplu-worker"
RELEASE, NAMESPACE = "applier", "resources"
PATIENCE_S = 120

Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm, built from its module; skip or fail as `require` does."""
    command = [*HELM.command(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def render(values: Mapping[str, Any], folder: Path) -> list[Manifest]:
    """Return the manifests for *values*, in Helm's order; *folder* takes a file."""
    done = helm("template", *chart_arguments(values, folder))
    assert done.returncode == 0, f"{json.dumps(values)}\n{done.stderr}"
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def chart_arguments(values: Mapping[str, Any], folder: Path) -> list[str]:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return [RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.33.0", "-f", str(path)]


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with all *parts*, a later one over an earlier one, as Helm merges files."""
    values: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            before = values.get(name)
            values[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return values


def of_kind(manifests: Iterable[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def is_custom(manifest: Manifest) -> bool:
    return manifest["apiVersion"].partition("/")[0] in custom_resources.GROUPS


def schema_problems(manifests: Sequence[Manifest], folder: Path) -> str:
    built_in, custom = folder / "built-in.yaml", folder / "custom.yaml"
    built_in.write_text(yaml.safe_dump_all(one for one in manifests if not is_custom(one)), encoding="utf-8")
    custom.write_text(yaml.safe_dump_all(one for one in manifests if is_custom(one)), encoding="utf-8")
    validate = required_program("kubernetes-validate", how="python3 run.py tools")
    return _output(validate, "--strict", "--quiet", str(built_in)) + custom_resource_problems(custom)


def custom_resource_problems(path: Path) -> str:
    python = TOOLS / "python"
    require("jsonschema", found=python.exists(), how="python3 run.py tools")
    return _output(str(python), custom_resources.__file__, str(CUSTOM_RESOURCES.files()), str(path))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def query_problems(
    queries: Mapping[str, str], series: Mapping[str, str], expected: Mapping[str, float], folder: Path
) -> str:
    promtool = required_program("promtool", how="apt-get install --no-install-recommends prometheus")
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "5m",
                "exp_samples": [{"labels": "{}", "value": expected[name]}] if name in expected else [],
            }
            for name, query in queries.items()
        ],
    }
    path = folder / "queries.json"
    path.write_text(json.dumps({"evaluation_interval": "15s", "tests": [test]}), encoding="utf-8")
    return _output(promtool, "test", "rules", str(path))
