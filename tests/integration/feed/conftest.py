"""The servers of our Kinesis and SQS, and commands for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import start_kinesis, start_sqs


@pytest.fixture(scope="module")
def group() -> Iterator[ProcessGroup]:
    """Give the processes of the servers."""
    with ProcessGroup() as group:
        yield group


@pytest.fixture(scope="module")
def kinesis_url(group: ProcessGroup) -> str:
    """Start our Kinesis."""
    return asyncio.run(start_kinesis(group))


@pytest.fixture(scope="module")
def sqs_url(group: ProcessGroup) -> str:
    """Start our SQS."""
    return asyncio.run(start_sqs(group))
