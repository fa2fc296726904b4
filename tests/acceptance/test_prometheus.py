"""A real Prometheus beside two replicas that work: what it scrapes and derives, and what its own checker says."""

from __future__ import annotations

import asyncio
import json
import re
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import pytest_asyncio
from support.full_stack import make_item, make_record
from support.prometheus.dashboards import DASHBOARDS, panels_of, query_of
from support.requires import ROOT, required_program

from simplu_local.processes.loopback import HOST, free_port, poll_until
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.processes.worker_process import WorkerProcess
from simplu_local.stack.stack import Stack
from simplu_local.workload.producer import create_tenants, put_items
from simplu_local.workload.workload import Tenant

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(2)]

REPLICAS = 2
RECORDS = 200
TENANTS = [Tenant(f"watched-{number}", "main", "dental") for number in range(4)]
PATIENCE_S = 60.0
STOP_WITHIN_S = 60.0
SCRAPES_TO_RATE = 4  # a second apart: enough for a rate of every counter
SCRAPES = "min(sum_over_time(up[10m]))"  # that each replica has answered; a slow one fails some, which take 1 s at most
# What a healthy fleet without standbys, catch-ups, backfills and a feed has no series of.
EMPTY_WHEN_WELL = {"Lag of standbys", "Errors", "Backfills", "Feed", "Feed behind"}
HOW = "apt-get install --no-install-recommends prometheus"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
READY_S = 60.0
TIMEOUT = aiohttp.ClientTimeout(total=10)


class PrometheusServer:
    def __init__(self, group: ProcessGroup, targets: Sequence[str]) -> None:
        self._group = group
        self._targets = list(targets)
        self._folder = group.directory / "prometheus"
        self.url = f"http://{HOST}:{free_port()}"

    async def start(self) -> None:
        self._folder.mkdir()
        config = self._folder / "prometheus.yml"
        # JSON is YAML, without its surprises.
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [{"job_name": "simplu-worker", "static_configs": [{"targets": self._targets}]}],
                }
            )
        )
        log_path = self._folder / "log"
        self._group.spawn(
            [
                required_program("prometheus", how=HOW),
                f"--config.file={config}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            log_path=log_path,
        )
        if not await poll_until(self._is_ready, within_s=READY_S):
            raise TimeoutError(f"Prometheus is not ready after {READY_S:g} s:\n{_text_of(log_path)}")

    async def read(self, path: str, **parameters: str) -> Any:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.get(f"{self.url}/api/v1/{path}", params=parameters) as response,
        ):
            answer = await response.json()
        if answer["status"] != "success":
            raise ValueError(f"{path} {parameters}: {answer.get('error')}")
        return answer["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        data = await self.read("query", query=expression)
        found: list[dict[str, Any]] = data["result"]
        return found

    async def value(self, expression: str) -> float | None:
        found = await self.query(expression)
        return float(found[0]["value"][1]) if found else None

    async def _is_ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=TIMEOUT) as session,
                session.get(f"{self.url}/-/ready") as response,
            ):
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class Watched(NamedTuple):
    """A fleet and its Prometheus."""

    stack: Stack
    workers: list[WorkerProcess]
    prometheus: PrometheusServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched() -> AsyncIterator[Watched]:
    """Give two replicas that have applied records of every source, and a Prometheus that has seen it."""
    required_program("prometheus", how=HOW)
    async with Stack(shards=2, stream_shards=2) as stack:
        workers = [WorkerProcess(stack.group, stack.env, number=number) for number in range(REPLICAS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            await worker.wait_ready()
        prometheus = PrometheusServer(stack.group, [worker.url.removeprefix("http://") for worker in workers])
        await prometheus.start()

        async def is_seen() -> bool:
            return await prometheus.value("sum(up)") == REPLICAS

        # Rates are of what happens between two scrapes.
        assert await poll_until(is_seen, within_s=PATIENCE_S)
        await send_work(stack)

        async def is_applied() -> bool:
            applied = await prometheus.value('sum(simplu_operations_total{outcome="succeeded"})')
            return applied is not None and applied >= RECORDS + 1

        assert await poll_until(is_applied, within_s=PATIENCE_S)
        before = await prometheus.value(SCRAPES) or 0.0

        async def is_rated() -> bool:
            return (await prometheus.value(SCRAPES) or 0.0) >= before + SCRAPES_TO_RATE

        assert await poll_until(is_rated, within_s=PATIENCE_S)
        yield Watched(stack, workers, prometheus)
        async with asyncio.TaskGroup() as stops:
            for worker in workers:
                stops.create_task(worker.stop(within_s=STOP_WITHIN_S))


async def send_work(stack: Stack) -> None:
    """Create tenants, put records for them and one that is no JSON, and send an order event."""
    order = {
        "type": "CREATE",
        "businessId": TENANTS[0].business_id,
        "locationId": TENANTS[0].location_id,
        "orderId": "o-1",
        "data": {"total": 1},
    }
    records = [
        make_item(
            f"key-{number}",
            make_record(TENANTS[number % 4], "create", f"r-{number}", resourceId=f"n-{number}", data={}),
        )
        for number in range(RECORDS)
    ]
    async with stack.aws_client("kinesis") as kinesis, stack.aws_client("sqs") as sqs:
        await create_tenants(sqs, stack.env["SQS_SHARD_CREATION_QUEUE_URL"], TENANTS)
        await put_items(
            kinesis, stack.env["KINESIS_STREAM_NAME"], [*records, make_item("key", b"no JSON")], on_put=lambda _: None
        )
        await sqs.send_message(
            QueueUrl=stack.env["SQS_ORDER_EVENTS_QUEUE_URL"],
            MessageBody=json.dumps(order),
            MessageGroupId="g",
            MessageDeduplicationId="d",
        )


async def test_rules_are_evaluated_without_an_error(watched: Watched) -> None:
    alerts: set[str] = set()

    async def is_well() -> bool:  # an alert of a scrape that was too slow is over with the next one
        (group,) = (await watched.prometheus.read("rules"))["groups"]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}
        alerts.clear()
        alerts.update(rule["name"] for rule in group["rules"] if rule["state"] != "inactive")
        return alerts <= {"DeadLetters"}

    assert await poll_until(is_well, within_s=PATIENCE_S), alerts


async def test_live_scrape_passes_promtool(watched: Watched) -> None:
    promtool = required_program("promtool", how=HOW)
    async with aiohttp.ClientSession() as session, session.get(f"{watched.workers[0].url}/metrics") as answer:
        text = await answer.read()
    checker = await asyncio.create_subprocess_exec(promtool, "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=STDOUT)
    said, _ = await checker.communicate(text)
    assert (checker.returncode, said.decode()) == (0, "")
    assert b"simplu_operations_total" in text


@pytest.mark.parametrize("name", DASHBOARDS)
async def test_queries_of_a_dashboard_find_series_with_its_labels(watched: Watched, name: str) -> None:
    empty: set[str] = set()

    async def finds_all() -> bool:  # after a scrape that was too slow, gauges have no value until the next one
        empty.clear()
        for panel in panels_of(name):
            for target in panel["targets"]:
                found = await watched.prometheus.query(query_of(target, shard_id="shard-1"))
                empty.update(set() if found else {panel["title"]})
                labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert all(labels <= series["metric"].keys() for series in found), panel["title"]
        return empty <= EMPTY_WHEN_WELL

    assert await poll_until(finds_all, within_s=PATIENCE_S), empty
