"""A program: our HTTP server on the event loop of production, with many shards' metrics, that measures its own turns.

Prints its port. For each line on stdin it prints three numbers: the CPU time of the longest turn of the loop since the
last line, the CPU time of the process, and the number of its open files. CPU time instead of lateness, because other
programs on the machine do not count.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from simplu_worker import instruments
from simplu_worker.status.connections import ConnectionLimits
from simplu_worker.status.roles import Tokens
from simplu_worker.status.server import Views, open_http
from simplu_worker.telemetry.log import configure_logging

TOKEN = "flooded-token"
SHARD_COUNT = 1000
SHARDS = [{"shardId": f"shard-{number}", "place": "h:5432/d", "healthy": True} for number in range(SHARD_COUNT)]
BEAT_S = 0.001


async def serve(config: dict[str, Any]) -> None:
    limits = ConnectionLimits(request_s=config["request_s"], answer_s=config["answer_s"], calls_per_s=1e6)
    result = msgspec.Raw(b'"' + b"x" * config["result_bytes"] + b'"')
    longest_s = 0.0

    async def beat() -> None:
        nonlocal longest_s
        while True:
            before = time.thread_time()
            await asyncio.sleep(BEAT_S)
            longest_s = max(longest_s, time.thread_time() - before)

    async with open_http("127.0.0.1", 0, tokens=Tokens(operator=TOKEN), views=_views(result), limits=limits) as port:
        beats = asyncio.create_task(beat())
        _print_line(str(port))
        while await asyncio.to_thread(sys.stdin.readline):
            _print_line(f"{longest_s} {time.process_time()} {_count_open_files()}")
            longest_s = 0.0
        beats.cancel()


def _count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _views(result: msgspec.Raw) -> Views:
    async def answer(*_: object) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(0.001)
        return 200, {"shards": [dict(shard) for shard in SHARDS for _ in range(3)]}

    async def operation(*_: object) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(0.001)
        return 200, {"result": result}

    async def wait(*_: object) -> bool:
        return True

    def status() -> dict[str, Any]:
        return {"shards": [dict(shard) for shard in SHARDS for _ in range(3)]}

    return Views(
        live=lambda: None,
        ready=lambda: None,
        detail=lambda: None,
        refresh_gauges=lambda: None,
        status=status,
        fleet_history=dict,
        fleet=status,
        operation=operation,
        wait=wait,
        operations=answer,
        tenant=operation,
        tenant_by_id=operation,
        resource=operation,
        shards=answer,
        sqs_stats=answer,
        handler_status=status,
        handler_stats=answer,
        cache_stats=answer,
        cache_keys=answer,
        release_lease=answer,
        retry_held=answer,
        steer_tenant=answer,
        letters=None,
        purge=answer,
        clear_cache=answer,
    )


def main() -> None:
    configure_logging("info", "json", stream=sys.stderr)
    config = {"request_s": 10.0, "answer_s": 30.0, "result_bytes": 100, "open_files": None} | msgspec.json.decode(
        sys.argv[1]
    )
    if config["open_files"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (config["open_files"], config["open_files"]))
    for shard in SHARDS:
        instruments.SHARD_RESPONSE.labels(shard["shardId"]).observe(0.01)
        instruments.SHARD_CONNECTIONS.labels(shard["shardId"], "idle").set(1)
    uvloop.run(serve(config))


if __name__ == "__main__":
    main()
