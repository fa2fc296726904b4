"""A worker that runs answers as `/openapi.json` describes it, whatever is asked: by schemathesis."""

from __future__ import annotations

import asyncio

import pytest
from support.requires import required_program

from simplu_worker.local.processes.worker_process import WorkerProcess
from simplu_worker.local.stack.stack import Stack

pytestmark = pytest.mark.slow(25)

CHECKS = (
    "status_code_conformance",  # a 503 is described, and a 500 is not
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)
# Streams do not end, and each request about dead letters reads the queue for seconds.
LEFT_OUT = ("/events", "/tap", "/dead-letters/list", "/dead-letters/replay", "/dead-letters/discard")
WITHIN_S = 90


async def test_answers_are_those_of_the_description() -> None:
    """Valid and invalid requests to every path, with and without the token."""
    program = required_program("schemathesis", how="make tools")
    async with Stack(shards=1, stream_shards=1) as stack:
        env = stack.env | {"ALLOW_DESTRUCTIVE_HTTP": "true", "SHUTDOWN_GRACE_SECONDS": "10"}
        worker = WorkerProcess(stack.group, env, number=1, log_path=stack.group.directory / "described.log")
        worker.start()
        await worker.wait_ready()
        options = [
            *("run", f"{worker.url}/openapi.json", "--checks", ",".join(CHECKS), "--header"),
            f"Authorization: Bearer {stack.env['API_TOKEN']}",
            *("--max-examples", "20", "--phases", "coverage,fuzzing", "--seed", "1", "--no-color"),
            *(part for path in LEFT_OUT for part in ("--exclude-path", path)),
        ]
        process = await asyncio.create_subprocess_exec(
            program,
            *options,
            cwd=stack.group.directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(WITHIN_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await worker.stop(within_s=10)
        log = worker.log_path.read_text(encoding="utf-8")
    assert process.returncode == 0, output.decode()
    assert '"http.failed"' not in log
