"""A fleet as a black box: replicas that come and go while the stream is resharded, and a replay of the stream."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from acceptance.programs import run_program

from simplu_local.aws_server.server import send_commands
from simplu_local.demo.trial import Trial, TrialLoad, TrialSnapshot
from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack

SUBSCRIBED_WITHIN_S = 60.0
SMALL = ("--operations", "1700", "--stream-shards", "2", "--rate", "30", "--lease-duration", "2")


@pytest.mark.slow(60)
def test_fleet_loses_doubles_and_reorders_nothing_when_replicas_come_and_go_and_the_stream_is_resharded() -> None:
    run_program("acceptance.fleet", *SMALL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    """Run the embedded stack."""
    async with Stack(shards=2, stream_shards=2) as stack:
        yield stack


async def _ignore(_: TrialSnapshot) -> None:
    pass


@pytest.mark.slow(16)
@pytest.mark.asyncio(loop_scope="module")
async def test_consumer_stays_when_a_worker_that_reads_by_push_stops(stack: Stack) -> None:
    env = stack.env | {"KINESIS_READ": "fan-out"}

    async def call_counts() -> dict[str, int]:
        found: dict[str, int] = (await send_commands(stack.kinesis_url))["calls"]
        return found

    for number in range(2):
        subscribed = (await call_counts()).get("SubscribeToShard", 0)
        worker = WorkerProcess(stack.group, env, number=10 + number)
        worker.start()
        await worker.wait_ready()

        async def reads_by_push(before: int = subscribed) -> bool:
            return (await call_counts()).get("SubscribeToShard", 0) >= before + 2

        assert await poll_until(reads_by_push, within_s=SUBSCRIBED_WITHIN_S)  # it polls until its consumer is active
        load = TrialLoad(200, number, run=f"push-{number}", tenants=4)
        result = await Trial(load, lambda: stack.env, on_tick=_ignore).run()
        assert result.report.differences == []
        await worker.stop(within_s=35)
    state = await send_commands(stack.kinesis_url)
    consumers = state["streams"][stack.env["KINESIS_STREAM_NAME"]]["consumers"]
    assert consumers == {stack.env["KINESIS_APPLICATION_NAME"]: {"subscriptions": 2}}
    assert state["calls"]["RegisterStreamConsumer"] == 1
