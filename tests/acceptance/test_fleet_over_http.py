"""Two workers that share a stream: each shows both, by the rows of their leases alone, and releases either's leases."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import aiohttp
import pytest
from support.full_stack import make_item, make_record, partition_key

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack
from simplu_local.workload.producer import put_items
from simplu_local.workload.workload import Tenant

pytestmark = pytest.mark.slow(50)

VIEWER_TOKEN = "look-only"
PATIENCE_S = 90.0
STOP_WITHIN_S = 40.0
LEASE_DURATION_S = 5  # a shorter one is lost on a busy machine, and the other replica has both then
# The row of a lease lists held tenants once their records are 30 s older than the last one read (`ahead_from_s`).
LISTED_WITHIN_S = 120.0


async def ask(worker: WorkerProcess, path: str, token: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    """Return status and JSON of a path."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, worker.url + path, headers={"Authorization": f"Bearer {token}"}) as answer,
    ):
        return answer.status, json.loads(await answer.text())


async def command(env: dict[str, str], *words: str) -> tuple[int | None, dict[str, Any]]:
    """Return the exit status and the JSON of a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", *words, "--json"),
        env=dict(os.environ) | env,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return process.returncode, json.loads(output or b"{}")


async def tap_bad_record(stack: Stack, env: dict[str, str], workers: list[WorkerProcess]) -> dict[str, Any]:
    """Put a record that is no operation, and return what a tap of its replica shows."""
    taps = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simplu_worker", "tap", "--content", "--json", "--url", worker.url),
            env=dict(os.environ) | env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for worker in workers
    ]
    reads = [asyncio.create_task(one.stdout.readline()) for one in taps if one.stdout is not None]
    try:
        async with stack.aws_client("kinesis") as kinesis, asyncio.timeout(PATIENCE_S):
            for worker, one in zip(workers, taps, strict=True):
                said = b"" if one.stderr is None else await one.stderr.readline()
                assert said.decode().startswith(f"listening to {worker.url}: operations are printed as they are")
            await kinesis.put_record(StreamName=env["KINESIS_STREAM_NAME"], Data=b"no JSON", PartitionKey="key")
            shown, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in taps:
            one.kill()
        await asyncio.gather(*reads, *(one.wait() for one in taps))
    found: dict[str, Any] = json.loads(shown.pop().result())
    return found


async def retry_what_both_hold(stack: Stack, env: dict[str, str], workers: list[WorkerProcess]) -> dict[str, Any]:
    """Have a tenant held on both stream shards, and the first worker asked to retry; return its answer.

    The second worker has carried it out then.
    """
    absent = Tenant("smile-eve", "berlin", "dental")
    async with stack.aws_client("kinesis") as kinesis:
        items = [
            make_item(partition_key(number), make_record(absent, "create", f"r-{number}", resourceId="r", data={}))
            for number in (0, 1)
        ]
        await put_items(kinesis, env["KINESIS_STREAM_NAME"], items, on_put=lambda _: None)
    answer: dict[str, Any] = {}

    async def is_asked() -> bool:  # once each has reported that it holds the tenant
        answer.update((await command(env, "fleet", "retry", "--url", workers[0].url))[1])
        return bool(answer["retried"] and answer["asked"])

    async def is_carried_out() -> bool:
        return '"hold.retried"' in log.read_text(encoding="utf-8")

    log = stack.group.directory / "fleet-2.log"
    assert await poll_until(is_asked, within_s=PATIENCE_S)
    assert await poll_until(is_carried_out, within_s=PATIENCE_S)
    return answer


def actions_in(log: str) -> set[tuple[str, str, str | None]]:
    """Return the actions of operators in a log, each with its peer and the stream shard that it names."""
    acted = [json.loads(line) for line in log.splitlines() if '"operator.acted"' in line]
    return {(one["action"], one["peer"], (one["asked"] or {}).get("streamShard")) for one in acted}


async def see_hold_of_one(stack: Stack, env: dict[str, str], workers: list[WorkerProcess]) -> None:
    """Have a tenant held by one replica alone, and wait until the other one shows that to a viewer, too."""
    absent = Tenant("smile-ada", "hamburg", "dental")
    async with stack.aws_client("kinesis") as kinesis:
        item = make_item(partition_key(0), make_record(absent, "create", "r-ada", resourceId="r", data={}))
        await put_items(kinesis, env["KINESIS_STREAM_NAME"], [item], on_put=lambda _: None)

    reasons: list[str | None] = []
    held: list[tuple[str, str]] = []

    async def is_shown() -> bool:
        answers = [(await ask(worker, "/tenants/smile-ada/hamburg", VIEWER_TOKEN))[1] for worker in workers]
        reasons[:] = [(one.get("held") or {}).get("reason") for one in answers]
        if set(reasons) != {"unregistered", "other_replica"}:
            return False
        other = workers[reasons.index("other_replica")]
        replicas = (await ask(other, "/fleet", VIEWER_TOKEN))[1]["replicas"]
        held[:] = [(one["target"], one["reason"]) for replica in replicas[1:] for one in replica["held"]]
        advised = answers[reasons.index("unregistered")]["held"]["advice"]
        return held == [("tenant smile-ada-hamburg", "unregistered")] and "Register the tenant" in advised

    assert await poll_until(is_shown, within_s=LISTED_WITHIN_S), (reasons, held)


async def hand_over(
    env: dict[str, str],
    stream_shard_id: str,
    *,
    asked: WorkerProcess,
    taker: WorkerProcess,
    workers: list[WorkerProcess],
) -> dict[str, Any]:
    """Have *taker* take a lease from the other worker, as both then see; return the answer of the command."""
    status, answer = await command(env, "fleet", "release", stream_shard_id, "--apply", "--url", asked.url)
    assert (status, answer["how"]) == (0, "handed over")
    name = (await ask(taker, "/status", VIEWER_TOKEN))[1]["replica"]

    async def is_seen() -> bool:
        views = [(await ask(worker, "/fleet", VIEWER_TOKEN))[1]["streamShards"] for worker in workers]
        owners = {row["owner"] for rows in views for row in rows if row["streamShard"] == stream_shard_id}
        return owners == {name}

    assert await poll_until(is_seen, within_s=PATIENCE_S)
    return answer


async def test_each_replica_shows_the_whole_fleet() -> None:
    async with Stack(shards=1, stream_shards=2) as stack:
        env = stack.env | {
            "API_VIEWER_TOKEN": VIEWER_TOKEN,
            "KINESIS_LEASE_DURATION_SECONDS": str(LEASE_DURATION_S),
            "SHUTDOWN_GRACE_SECONDS": "10",
        }
        workers = [
            WorkerProcess(stack.group, env, number=number, log_path=stack.group.directory / f"fleet-{number}.log")
            for number in (1, 2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            await worker.wait_ready()

        async def shown(worker: WorkerProcess) -> list[dict[str, Any]]:
            _, fleet = await ask(worker, "/fleet", VIEWER_TOKEN)
            replicas: list[dict[str, Any]] = fleet["replicas"]
            return replicas

        views: list[list[dict[str, Any]]] = []

        async def see_each_other() -> bool:
            views[:] = [await shown(worker) for worker in workers]
            return all(
                [(one["leases"], one["lagSeconds"] is not None) for one in view] == [(1, True), (1, True)]
                for view in views
            )

        assert await poll_until(see_each_other, within_s=PATIENCE_S)
        statuses = [(await ask(worker, "/status", VIEWER_TOKEN))[1] for worker in workers]
        refused = await ask(workers[0], "/cache/clear", VIEWER_TOKEN, "DELETE")
        streams = [(await ask(worker, "/fleet", VIEWER_TOKEN))[1]["streamShards"] for worker in workers]
        own = [next(row["streamShard"] for row in streams[0] if row["owner"] == one["replica"]) for one in statuses]
        tapped = await tap_bad_record(stack, env, workers)
        nothing = await command(env, "fleet", "retry", "--url", workers[0].url)
        await see_hold_of_one(stack, env, workers)
        retried = await retry_what_both_hold(stack, env, workers)
        taken = await hand_over(env, own[1], asked=workers[0], taker=workers[0], workers=workers)
        await hand_over(env, own[1], asked=workers[0], taker=workers[1], workers=workers)
        planned = await command(env, "fleet", "release", own[0], "--url", workers[0].url)

        async def is_whole() -> bool:
            return bool((await ask(workers[0], "/fleet", VIEWER_TOKEN))[1]["counts"]["unowned"] == 0)

        assert await poll_until(is_whole, within_s=PATIENCE_S)
        await workers[1].stop(within_s=STOP_WITHIN_S)

        async def has_taken_over() -> bool:
            return [one["leases"] for one in await shown(workers[0])] == [2]

        assert await poll_until(has_taken_over, within_s=PATIENCE_S)
        alone = await command(env, "fleet", "release", own[0], "--apply", "--url", workers[0].url)
        await asyncio.gather(*(worker.stop(within_s=STOP_WITHIN_S) for worker in workers[:1]))
        log = (stack.group.directory / "fleet-1.log").read_text(encoding="utf-8")

    names = [status["replica"] for status in statuses]
    assert [[one["replica"] for one in view] for view in views] == [names, names[::-1]]
    assert [[one["isThis"] for one in view] for view in views] == [[True, False], [True, False]]
    assert {one["version"] for view in views for one in view} == {statuses[0]["version"]}
    assert all(status["role"] == "viewer" and "history" in status for status in statuses)
    assert refused[0] == 403
    assert (tapped["outcome"], tapped["reason"], tapped["content"]) == ("dead_letter", "invalid_json", "no JSON")
    assert taken["owner"] == names[1]
    assert alone[0] == 1
    assert (planned[0], planned[1]["applied"]) == (0, False)
    assert nothing == (1, {"retried": 0, "asked": [], "notAsked": []})
    assert (retried["retried"] >= 1, retried["asked"], retried["notAsked"]) == (True, [names[1]], [])
    assert actions_in(log) >= {("release_lease", "127.0.0.1", own[1]), ("retry_held", "127.0.0.1", None)}
    assert log.count('"path": "/leases/{streamShard}/release"') >= 2
    assert not [text for text in ('"path": "/status"', VIEWER_TOKEN, env["API_TOKEN"]) if text in log]
