"""`aws plan` against a DynamoDB, an SQS and a Kinesis that have nothing, and after its commands were run."""

from __future__ import annotations

import asyncio
import shlex
from typing import Any

import botocore.session
import pytest
from support.aws.command_line import parse_arguments

from simplu_local.aws_server.account import ACCOUNT_ID, REGION
from simplu_worker.commands.aws.plan import read_facts
from simplu_worker.commands.aws.plan_rules import plan
from simplu_worker.config.settings import Settings


@pytest.mark.slow(4)
@pytest.mark.usefixtures("aws_credentials")
async def test_commands_of_the_plan_leave_nothing_to_plan(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    queues = {
        "sqs_shard_creation_queue_url": "planned",
        "sqs_order_events_queue_url": "planned.fifo",
        "sqs_dead_letter_queue_url": "planned-letters",
    }
    urls = {name: f"{endpoint_url}/{ACCOUNT_ID}/{queue}" for name, queue in queues.items()}
    settings = Settings(
        aws_region=REGION,
        dynamodb_endpoint=endpoint_url,
        kinesis_stream_name="planned",
        kinesis_application_name="planned-leases",
        dynamodb_business_info_table="planned-businesses",
        **urls,  # type: ignore[arg-type]
    )
    steps = plan(await read_facts(settings), settings)
    assert len(steps) == 6
    session = botocore.session.get_session()
    for line in (line for step in steps for line in step.commands):
        _, service, operation, _, region, *arguments = shlex.split(line)
        if operation != "wait":  # moto's resources are there at once
            await asyncio.to_thread(run_line, session.create_client(service, region), operation, arguments)
    assert plan(await read_facts(settings), settings) == []


def run_line(client: Any, operation: str, arguments: list[str]) -> None:
    """Make the request of a command, with its options as the CLI reads them."""
    method = operation.replace("-", "_")
    model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
    getattr(client, method)(**parse_arguments(arguments, model.input_shape))
    client.close()
