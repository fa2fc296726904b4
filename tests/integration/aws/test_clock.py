"""This machine's clock is compared with the answers of AWS, whatever they answer."""

from __future__ import annotations

from datetime import timedelta

import pytest
from botocore.exceptions import ClientError
from support.aws.endpoints import ScriptedAws, client_of

from simplu_worker.aws import clients
from simplu_worker.timing.clock import OwnClock

pytestmark = pytest.mark.usefixtures("aws_credentials")


@pytest.mark.parametrize(("ahead", "is_apart"), [(timedelta(days=-20), True), (timedelta(seconds=-30), False)])
@pytest.mark.parametrize("operation", ["list_tables", "scan"])
async def test_clock_is_compared_with_each_kind_of_answer(
    monkeypatch: pytest.MonkeyPatch, operation: str, ahead: timedelta, *, is_apart: bool
) -> None:
    clock = OwnClock()
    monkeypatch.setattr(clients, "OWN_CLOCK", clock)
    aws = ScriptedAws()
    aws.clock_ahead = ahead
    aws.refuse("AccessDeniedException")
    arguments = {"scan": {"TableName": "t"}, "list_tables": {}}[operation]
    async with aws.running() as url, client_of("dynamodb", url) as client:
        with pytest.raises(ClientError):
            await getattr(client, operation)(**arguments)
    assert clock.ahead_s is not None
    assert abs(clock.ahead_s + ahead.total_seconds()) < 20
    assert (clock.problem is not None) == is_apart
