from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from support.requires import required_program

from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack

pytestmark = pytest.mark.nightly

CHECKS = (
    "status_code_conformance",  # a 503 is described, and a 500 is not
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)
STREAMS = ("/events", "/tap")  # they do not end
LETTERS = tuple(f"/dead-letters/{act}" for act in ("list", "replay", "discard", "edit"))  # each reads for seconds
OF_TENANTS = ("/status", "/operations", "/operations/{requestId}", "/tenants/{businessId}/{locationId}")
VIEWER_TOKEN = "viewer-of-the-description"
PRODUCER_TOKEN = "producer-of-the-description"
PRODUCER = {
    "name": "app",
    "role": "producer",
    "sha256": hashlib.sha256(PRODUCER_TOKEN.encode()).hexdigest(),
    "tenants": [{"businessId": "0*", "locationId": "*"}],
}
WITHIN_S = 240


async def try_interface(worker: WorkerProcess, token: str, *options: str) -> None:
    process = await asyncio.create_subprocess_exec(
        required_program("schemathesis", how="make tools"),
        *("run", f"{worker.url}/openapi.json", "--checks", ",".join(CHECKS), "--seed", "1", "--no-color"),
        *("--header", f"Authorization: Bearer {token}", *options),
        cwd=worker.log_path.parent,
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
    assert process.returncode == 0, output.decode()


def paths(option: str, *names: str) -> list[str]:
    return [part for name in names for part in (option, name)]


async def test_answers_are_those_of_the_description() -> None:
    required_program("schemathesis", how="make tools")
    async with Stack(shards=1, stream_shards=1) as stack:
        tokens = stack.group.directory / "tokens.json"
        tokens.write_text(json.dumps({"tokens": [PRODUCER]}))
        (stack.group.directory / "schemathesis.toml").write_text("[parameters]\nwait = 0.01\n")  # not up to 20 s each
        env = stack.env | {
            "ALLOW_DESTRUCTIVE_HTTP": "true",
            "API_VIEWER_TOKEN": VIEWER_TOKEN,
            "API_TOKENS_FILE": str(tokens),
            "SHUTDOWN_GRACE_SECONDS": "10",
        }
        worker = WorkerProcess(stack.group, env, number=1, log_path=stack.group.directory / "described.log")
        worker.start()
        await worker.wait_ready()
        both = ("--phases", "coverage,fuzzing")
        await try_interface(
            worker, env["API_TOKEN"], "--max-examples", "8", *both, *paths("--exclude-path", *STREAMS, *LETTERS)
        )
        await try_interface(
            worker, env["API_TOKEN"], "--max-examples", "3", "--phases", "fuzzing", *paths("--include-path", *LETTERS)
        )
        await try_interface(
            worker, VIEWER_TOKEN, "--max-examples", "4", "--phases", "fuzzing", *paths("--exclude-path", *STREAMS)
        )
        await try_interface(
            worker, PRODUCER_TOKEN, "--max-examples", "3", "--phases", "fuzzing", *paths("--include-path", *OF_TENANTS)
        )
        await worker.stop(within_s=40)
        log = worker.log_path.read_text(encoding="utf-8")
    assert '"http.failed"' not in log
    assert [path for path in LETTERS if f'"path": "{path}"' not in log] == []
