"""The versions of other vendors' programs that tests/peers runs: exact, hashed, without addresses, and in the docs."""

from __future__ import annotations

import json
import re

import pytest
from support.peers.programs import (
    GO_PROGRAMS,
    JAVA_PROGRAMS,
    JAVASCRIPT_SDK,
    SOURCES,
    BuiltProgram,
    JavaProgram,
    NodeProgram,
)
from support.requires import ROOT

PIN = re.compile(r"[0-9a-f]{64}  [A-Za-z0-9._-]+\.jar")
EXACT = re.compile(r"\d+(\.\d+)+")
PAGE = ROOT / "docs" / "correctness.md"


@pytest.mark.parametrize("program", JAVA_PROGRAMS, ids=lambda program: program.folder.name)
def test_jars_have_exact_versions_and_hashes(program: JavaProgram) -> None:
    """And the library that the program is about is among them."""
    pins = program.pins.read_text(encoding="utf-8").splitlines()
    versions = re.findall(r"<version>(.*?)</version>", program.pom.read_text(encoding="utf-8"))[1:]

    assert [pin for pin in pins if not PIN.fullmatch(pin)] == []
    assert any(program.version in pin for pin in pins)
    assert [version for version in versions if not EXACT.fullmatch(version)] == []


@pytest.mark.parametrize(
    "program", [*JAVA_PROGRAMS, *GO_PROGRAMS, JAVASCRIPT_SDK], ids=lambda program: f"{program.name} {program.version}"
)
def test_page_has_the_version(program: BuiltProgram | NodeProgram) -> None:
    """The versions that the worker is tested with are in the docs."""
    assert EXACT.fullmatch(program.version)
    assert program.version in PAGE.read_text(encoding="utf-8")


def test_pins_have_no_addresses() -> None:
    """The registry is that of the machine."""
    lock = json.loads((ROOT / "requirements" / "npm" / "package-lock.json").read_text(encoding="utf-8"))
    poms = [program.pom.read_text(encoding="utf-8") for program in JAVA_PROGRAMS]
    go = "".join((SOURCES / "go" / name).read_text(encoding="utf-8") for name in ("go.mod", "go.sum"))

    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
    assert [pom for pom in poms if "repository" in pom or "<url>" in pom] == []
    assert "://" not in go
