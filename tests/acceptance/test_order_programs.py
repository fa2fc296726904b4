"""The programs that show what becomes of order events, on a small scale."""

from __future__ import annotations

from pathlib import Path

import pytest
from acceptance.programs import run_program
from acceptance.test_blackbox import running_stack


@pytest.mark.slow(60)
def test_orders_leave_no_dead_letter_when_all_replicas_are_replaced_under_load(tmp_path: Path) -> None:
    with running_stack(tmp_path / "stack.env"):
        small = ("--events", "1200", "--groups", "100", "--rate", "30", "--rolling-restart")
        run_program("acceptance.orders", "--env-file", str(tmp_path / "stack.env"), *small)
