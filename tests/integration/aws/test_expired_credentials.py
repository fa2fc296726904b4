"""Credentials that AWS calls expired are called so by the replica."""

from __future__ import annotations

import asyncio

import pytest
from botocore.exceptions import ClientError
from support.aws.endpoints import ScriptedAws, client_of

from simplu_worker.aws.clients import credential_source
from simplu_worker.aws.credentials import EXPIRED_AFTER_S
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.words import UnreadyReason
from simplu_worker.timing.clock import loop_time

pytestmark = pytest.mark.usefixtures("aws_credentials")


def reason_of(replica: ReplicaStatus) -> UnreadyReason | None:
    problem = replica.readiness_problem()
    return problem and problem.reason


async def test_replica_names_expired_credentials_until_renewed() -> None:
    aws, source, replica = ScriptedAws(), credential_source(), ReplicaStatus("r", asyncio.Event())
    aws.refuse("ExpiredTokenException")
    aws.answer({"TableNames": []})
    async with aws.running() as url, client_of("dynamodb", url) as client:
        with pytest.raises(ClientError):
            await client.list_tables()
        assert (source.expired_since is not None, reason_of(replica)) == (True, UnreadyReason.STARTING)
        source.expired_since = loop_time() - EXPIRED_AFTER_S - 1
        assert reason_of(replica) == UnreadyReason.CREDENTIALS_EXPIRED
        await client.list_tables()
    assert [source.expired_since, reason_of(replica)] == [None, UnreadyReason.STARTING]
