"""The kustomize base: built by kustomize itself, and held against the schemas of Kubernetes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml
from support.chart.render import Manifest, of_kind, schema_problems
from support.peers.programs import KUSTOMIZE
from support.requires import ROOT

from simplu_worker import __version__

BASE = ROOT / "deploy" / "kubernetes"
REGISTRY = "registry.example.com/simplu-worker"


def build(folder: Path) -> list[Manifest]:
    done = subprocess.run([*KUSTOMIZE.command(), "build", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def test_base_is_built_and_fits_the_schemas(tmp_path: Path) -> None:
    manifests = build(BASE)
    assert schema_problems(manifests, tmp_path) == ""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (kinds,) = re.findall(r"`deploy/kubernetes/` \| a cluster with manifests of its own: ([\w, ]+) \|", page)
    assert sorted(manifest["kind"] for manifest in manifests) == sorted(kinds.split(", "))
    for manifest in manifests:
        assert manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "simplu-worker"
    deployment = of_kind(manifests, "Deployment")["spec"]
    assert deployment["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    names = {manifest["metadata"]["name"] for manifest in manifests}
    (container,) = deployment["template"]["spec"]["containers"]
    assert {source[kind]["name"] for source in container["envFrom"] for kind in source} == names
    assert container["image"] == f"simplu-worker:{__version__}"


def test_image_of_a_registry_is_named_in_one_place(tmp_path: Path) -> None:
    folder = shutil.copytree(BASE, tmp_path / "base")
    path = folder / "kustomization.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(f"# newName: {REGISTRY}") == 1
    path.write_text(text.replace("# newName", "newName"), encoding="utf-8")
    (container,) = of_kind(build(folder), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{REGISTRY}:{__version__}"
