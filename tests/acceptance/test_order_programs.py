"""The programs that show what becomes of order events, on a small scale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from acceptance.programs import run_program
from acceptance.test_blackbox import running_stack
from support.requires import ROOT, require

SQS_SDK = ROOT / ".tools" / "node_modules" / "@aws-sdk" / "client-sqs"


@pytest.mark.slow(30)
def test_orders_of_a_javascript_producer_are_applied_once_and_in_order_when_a_shard_is_restarted(
    tmp_path: Path,
) -> None:
    """Each group's events, sent with the AWS SDK for JavaScript, once and in order; only the poison is a letter."""
    node = shutil.which("node")
    how = "install node, copy requirements/npm to .tools, and npm ci --prefix .tools"
    require("@aws-sdk/client-sqs", found=node is not None and SQS_SDK.is_dir(), how=how)
    with running_stack(tmp_path / "stack.env"):
        small = ("--events", "1200", "--groups", "100", "--rate", "150", "--start-worker", "--restart-shard")
        run_program("acceptance.orders", "--env-file", str(tmp_path / "stack.env"), *small)


@pytest.mark.slow(60)
def test_orders_leave_no_dead_letter_when_all_replicas_are_replaced_under_load(tmp_path: Path) -> None:
    """With a maxReceiveCount of 2 neither we nor the queue's redrive makes one."""
    with running_stack(tmp_path / "stack.env"):
        small = ("--events", "1200", "--groups", "100", "--rate", "40", "--rolling-restart", "--sender", "python")
        run_program("acceptance.orders", "--env-file", str(tmp_path / "stack.env"), *small)
