"""The pages name the packages for producers as `make clients` makes them."""

from __future__ import annotations

import json
import tomllib

from support.requires import ROOT

CLIENTS = ROOT / "clients"


def test_pages_name_the_packages_with_their_versions() -> None:
    python = tomllib.loads((CLIENTS / "python" / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    node = json.loads((CLIENTS / "typescript" / "package.json").read_text(encoding="utf-8"))["version"]
    wheel, tarball = f"simplu_client-{python}-py3-none-any.whl", f"simplu-client-{node}.tgz"
    assert f"dist/{wheel}" in (ROOT / "docs" / "sending.md").read_text(encoding="utf-8")
    assert wheel in (CLIENTS / "python" / "README.md").read_text(encoding="utf-8")
    assert tarball in (CLIENTS / "typescript" / "README.md").read_text(encoding="utf-8")
