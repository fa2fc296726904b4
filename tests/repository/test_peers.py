"""The versions of other vendors' programs that tests/peers runs: exact, hashed, without addresses, and in the docs."""

from __future__ import annotations

import re

import pytest
from support.peers.programs import (
    CUSTOM_RESOURCES,
    GO_PROGRAMS,
    HELM,
    JAVA_PROGRAMS,
    JAVASCRIPT_SDK,
    KUSTOMIZE,
    BuiltProgram,
    GoModule,
    GoProgram,
    JavaProgram,
    NodeProgram,
)
from support.requires import ROOT

PIN = re.compile(r"[0-9a-f]{64}  [A-Za-z0-9._-]+\.jar")
EXACT = re.compile(r"\d+(\.\d+)+")
PAGES = dict.fromkeys((HELM, KUSTOMIZE), ROOT / "docs" / "kubernetes.md")
PAGE = ROOT / "docs" / "correctness.md"


@pytest.mark.parametrize("program", JAVA_PROGRAMS, ids=lambda program: program.folder.name)
def test_jars_have_exact_versions_and_hashes(program: JavaProgram) -> None:
    pins = program.pins.read_text(encoding="utf-8").splitlines()
    versions = re.findall(r"<version>(.*?)</version>", program.pom.read_text(encoding="utf-8"))[1:]

    assert [pin for pin in pins if not PIN.fullmatch(pin)] == []
    assert any(program.version in pin for pin in pins)
    assert [version for version in versions if not EXACT.fullmatch(version)] == []


@pytest.mark.parametrize(
    "program", [*JAVA_PROGRAMS, *GO_PROGRAMS, JAVASCRIPT_SDK], ids=lambda program: f"{program.name} {program.version}"
)
def test_page_has_the_version(program: BuiltProgram | NodeProgram) -> None:
    assert EXACT.fullmatch(program.version)
    page = PAGES.get(program, PAGE) if isinstance(program, GoProgram) else PAGE
    assert program.version in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", CUSTOM_RESOURCES.modules, ids=lambda module: module.path)
def test_modules_with_schemas_have_exact_versions_and_hashes(module: GoModule) -> None:
    assert EXACT.fullmatch(module.version.removeprefix("v"))
    assert module.hash.startswith("h1:")
    assert module.version.removeprefix("v") in PAGES[HELM].read_text(encoding="utf-8")
    assert module.path in dict(CUSTOM_RESOURCES.paths)
