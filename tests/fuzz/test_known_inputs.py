"""The usual inputs of the fuzz and those that failed once pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fuzz import memory_network
from fuzz.bounds import check_bounded
from fuzz.quiet import silence
from fuzz.target import NAMES, load_target
from support.requires import ROOT

from simplu_worker.telemetry import log as log_module

KNOWN = sorted((ROOT / "tests" / "fuzz" / "known").iterdir(), key=lambda path: path.name)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(log_module, "_secrets", log_module._Secrets())
    before = structlog.get_config()
    silence()
    yield
    structlog.configure(**before)
    memory_network.close()


@pytest.mark.parametrize("name", NAMES)
def test_usual_inputs_pass(name: str) -> None:
    target = load_target(name)
    for data in target.seeds:
        target.check(data)


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: path.name)
def test_input_that_failed_once_passes(path: Path) -> None:
    check_bounded(load_target(path.name.partition("-")[0]), path.read_bytes())
