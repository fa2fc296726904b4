"""Provisioning killed and run twice at once, on a small scale: the program beside it does so at every step."""

from __future__ import annotations

import pytest
from acceptance.programs import run_program

pytestmark = pytest.mark.slow(30)


def test_provisioning_leaves_one_home_when_it_is_killed_or_run_twice() -> None:
    said = run_program("acceptance.provisioning", "--stride", "19", "--rounds", "6")

    assert "every tenant has one home, with its one row" in said
