"""`aws plan`: ask AWS for each resource that the configuration names; print the missing ones. Writes nothing."""

from __future__ import annotations

from contextlib import AsyncExitStack

from simplu_worker.assembly.aws import open_stream
from simplu_worker.aws.clients import open_client
from simplu_worker.aws.dynamodb_tables import describe_table
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.commands.aws.plan_rules import AwsFacts, PlannedStep, plan, source_queues
from simplu_worker.commands.output.display import print_json, print_line
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import StreamGoneError

ATTEMPTS = 3  # a person waits for the answer


async def print_plan(settings: Settings, *, as_json: bool) -> int:
    """Print the plan, a shell script for people; return 0. Raises the errors of AWS: a plan is complete or none."""
    steps = plan(await read_facts(settings), settings)
    if as_json:
        print_json({"missing": steps})
    else:
        _print_script(steps)
    return 0


async def read_facts(settings: Settings) -> AwsFacts:
    """Ask AWS for each resource that *settings* name. Raises RetryableError or PermanentError."""
    async with AsyncExitStack() as stack:
        clients = {
            service: await stack.enter_async_context(
                open_client(service, region=settings.aws_region, endpoint_url=endpoint_url, max_attempts=ATTEMPTS)
            )
            for service, endpoint_url in (("dynamodb", settings.dynamodb_endpoint), ("sqs", None))
        }
        tables = [settings.dynamodb_business_info_table]
        if settings.kinesis_stream_name is not None:
            tables.insert(0, settings.kinesis_application_name)
        urls = [*source_queues(settings), *filter(None, [settings.dead_letter_queue_url])]
        return AwsFacts(
            has_stream=settings.kinesis_stream_name is not None and await _has_stream(settings),
            tables={name: await describe_table(clients["dynamodb"], name) for name in tables},
            queues={url: await Queue(clients["sqs"], url).find_attributes() for url in urls},
        )


async def _has_stream(settings: Settings) -> bool:
    async with open_stream(settings) as stream:
        try:
            await stream.describe()
        except StreamGoneError:
            return False
        return True


def _print_script(steps: list[PlannedStep]) -> None:
    if not steps:
        print_line("# nothing is missing")
    for step in steps:
        print_line(f"# {step.about}: {step.problem}")
        for command in step.commands:
            print_line(command)
