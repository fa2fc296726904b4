"""Call Kinesis all the time from several tasks, as the worker would, and write a line about the end of each call."""

from __future__ import annotations

import asyncio
import json
import sys

from simplu_worker.aws.clients import Client, credential_source, open_client, translate_errors
from simplu_worker.errors import RetryableError
from simplu_worker.telemetry.log import configure_logging

TASKS = 4
PAUSE_S = 0.05


async def main() -> None:
    """Run until killed, or until a call ends with what no retry would mend."""
    configure_logging("info", "json", stream=sys.stderr)
    async with open_client("kinesis", region="eu-west-1") as client, asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(call(client))


async def call(client: Client) -> None:
    while True:
        error = None
        try:
            with translate_errors():
                await client.list_streams()
        except RetryableError as exc:
            error = str(exc)
        print(json.dumps({"error": error, "problem": credential_source().problem}), flush=True)  # noqa: T201
        await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    asyncio.run(main())
