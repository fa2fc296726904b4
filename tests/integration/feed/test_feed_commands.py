"""`feed show`, `replay`, `skip` and `forget` on real shards, beside a feed that runs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from integration.feed.test_http_destination import NOT_ALLOWED, SECRETS, NameServer
from support.aws.endpoints import REGION
from support.citrus.cases import silent
from support.feed.receiver import Receiver
from support.feed.running import feed_of, publishing, running
from support.moves.world import TENANT_ID, World
from support.postgres.tenant_cases import fetch
from support.settings import settings_in, settings_of

from simplu_worker.aws.clients import open_client
from simplu_worker.commands.check.checking import check_feed
from simplu_worker.commands.feed.destinations import forget_destination, replay_feed, show_feed, skip_feed
from simplu_worker.commands.output import show
from simplu_worker.config.settings import Settings
from simplu_worker.feed.types import Delivered, Delivery, DestinationTerms, Disabled, FeedEvent, Refused, RetryLater
from simplu_worker.network_errors import NO_SERVER, NO_TLS
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.vocabulary import FeedData, FeedKind, OnRefusal


@pytest.fixture
def settings(world: World, tmp_path: Path) -> Settings:
    return settings_of(tmp_path, *(pool.address for pool in world.shard_pools.values()))


class Output:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        capfd.readouterr()

    async def of(self, command: Awaitable[Any], *, status: int = 0) -> Any:
        """Return what *command* prints, which ends with *status*."""
        assert await show(command, as_json=True) == status
        text = self._capfd.readouterr().out
        return json.loads(text[text.index("\n{\n") if "\n{\n" in text else text.index("{\n") :])


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Output:
    return Output(capfd)


async def shown(settings: Settings, output: Output, name: str = "receiver") -> dict[str, Any]:
    shards = (await output.of(show_feed(settings, name)))["destinations"]
    return next(dict(one) for one in shards if one["shardId"] == "a")


@pytest.mark.slow(10)
async def test_replay_sends_again_from_a_time_on_while_the_feed_runs(
    world: World, settings: Settings, output: Output
) -> None:
    receiver, other = Receiver(), Receiver("other")
    feed = feed_of(world.pools, [world.shard_pools["a"].address], [receiver.configured(), other.configured()])
    case = world.case("a")
    async with running(feed):
        await publishing(feed, 2)
        await case.apply(case.operation("create", "old", {}))
        await receiver.until_count(1)
        await fetch(case.pool, "UPDATE log_batches SET completed_at = completed_at - interval '2 hours'")
        since = datetime.now(UTC)
        await case.apply_each(*(case.operation("create", f"r{number}", {}) for number in range(3)))
        await receiver.until_count(4)
        await other.until_count(4)
        await until(world, "a", "SELECT FROM feed_cursors WHERE batch_id < (SELECT max(batch_id) FROM log_batches)", 0)
        before = [one.id for one in receiver.events]
        planned = await output.of(replay_feed(settings, "receiver", since, apply=False))
        assert [(one["shardId"], one["changeCount"]) for one in planned["shards"]] == [("a", 3), ("b", 0)]
        token = await fetch(case.pool, "SELECT token FROM feed_shards")
        assert await output.of(replay_feed(settings, "receiver", since, apply=True)) == planned | {"applied": True}
        assert await fetch(case.pool, "SELECT token FROM feed_shards") != token
        await case.apply(case.operation("create", "new", {}))
        await receiver.until(lambda events: len(events) >= 8)
        await other.until_count(5)
        assert [one.id for one in receiver.events[4:7]] == before[1:]
        assert [one.resource_id for one in receiver.events] == ["old", "r0", "r1", "r2", "r0", "r1", "r2", "new"]
        assert len({one.id for one in other.events}) == 5
    ended = await output.of(replay_feed(settings, "receiver", datetime.now(UTC), apply=True))
    assert [one["changeCount"] for one in ended["shards"]] == [0, 0]


@pytest.mark.slow(10)
async def test_skip_passes_the_event_at_which_a_feed_has_stopped(
    world: World, settings: Settings, output: Output
) -> None:
    receiver = Receiver()
    calls: list[str | None] = []

    def answer(event: FeedEvent) -> Delivery:
        calls.append(event.resource_id)
        return Refused("400") if event.resource_id in {"bad", "worse"} else Delivered()

    receiver.answer = answer
    terms = DestinationTerms("receiver", tries=2, on_refusal=OnRefusal.STOP)
    feed = feed_of(world.pools, [world.shard_pools["a"].address], [receiver.configured(terms=terms)])
    case = world.case("a")
    async with running(feed):
        await publishing(feed, 2)
        await case.apply(case.operation("create", "bad", {}))
        await until_stop(world, "refused")
        await case.apply(case.operation("create", "good", {}))
        stop = await shown(settings, output)
        assert (stop["stopped"], stop["error"]) == ("refused", "400")
        planned = await output.of(skip_feed(settings, "receiver", "a", apply=False))
        assert planned["refusedEvent"] == stop["refusedEvent"]
        await until_stop(world, "refused")
        calls.clear()
        assert await output.of(skip_feed(settings, "receiver", "a", apply=True)) == planned | {"applied": True}
        await receiver.until_count(1)
        assert calls == ["bad", "good"]
        await until(world, "a", f"SELECT FROM feed_refusals WHERE event_id = '{stop['refusedEvent']}'", 1)
        await case.apply(case.operation("create", "worse", {}))
        await until_stop(world, "refused")
    assert (await shown(settings, output))["refusalCount"] == 1
    rows = await fetch(case.pool, "SELECT refused_event FROM feed_cursors")
    assert rows[0]["refused_event"] != stop["refusedEvent"]


@pytest.mark.slow(10)
async def test_skip_passes_an_event_that_the_receiver_cannot_take(
    world: World, settings: Settings, output: Output
) -> None:
    receiver = Receiver()
    failed: list[str] = []

    def answer(event: FeedEvent) -> Delivery:
        if event.resource_id != "bad" or event.kind is not FeedKind.RESOURCE_CREATED:
            return Delivered()
        failed.append(event.id)
        return RetryLater("500")

    receiver.answer = answer
    terms = DestinationTerms("receiver", on_refusal=OnRefusal.STOP)
    feed = feed_of(world.pools, [world.shard_pools["a"].address], [receiver.configured(terms=terms)])
    case = world.case("a")
    async with running(feed):
        await publishing(feed, 2)
        await case.apply(case.operation("create", "bad", {}))
        await case.apply(case.operation("update", "bad", {}), case.operation("create", "good", {}))
        await receiver.until_count(1)
        event_id, more = failed[0], ("receiver", "a")
        planned = await output.of(skip_feed(settings, *more, event_id, apply=False))
        assert (planned["eventId"], planned["applied"]) == (event_id, False)
        assert await output.of(skip_feed(settings, *more, event_id, apply=True)) == planned | {"applied": True}
        await receiver.until_count(2)
        await until(world, "a", f"SELECT FROM feed_refusals WHERE event_id = '{event_id}' AND error = '500'", 1)
        await until(world, "a", "SELECT FROM feed_cursors WHERE refused_event IS NULL", 1)
    assert set(receiver.told()) == {
        ("resource.created", f"{case.tenant_id}/patient/good"),
        ("resource.updated", f"{case.tenant_id}/patient/bad"),
    }


@pytest.mark.slow(2)
async def test_show_lists_what_a_destination_refused_last(
    world: World, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver = Receiver()
    receiver.answer = lambda event: Refused(f"https://user:hunter2@crm/{event.resource_id}: 422")
    terms = DestinationTerms("receiver", tries=1, data=FeedData.CURRENT)
    feed = feed_of(world.pools, [world.shard_pools["a"].address], [receiver.configured(terms=terms)])
    case = world.case("a")
    async with running(feed):
        await publishing(feed, 2)
        await case.apply_each(*(case.operation("create", f"r{number}", {"name": "Ana"}) for number in range(6)))
        await until(world, "a", "SELECT FROM feed_refusals", 6)
    found = await shown(settings, Output(capfd))
    rows = await fetch(case.pool, "SELECT event_id, refused_at FROM feed_refusals ORDER BY refused_at DESC LIMIT 1")
    event_id, since = rows[0]["event_id"], rows[0]["refused_at"]
    newest = found["refusals"][0]
    assert datetime.fromisoformat(newest.pop("since")) == since
    assert "hunter2" not in newest["error"]
    assert newest.pop("error").endswith("crm/r5: 422")
    subject = f"{TENANT_ID}/patient/r5"
    assert newest == {"eventId": event_id, "type": "simplu.resource.created", "subject": subject}
    assert (found["refusalCount"], len(found["refusals"])) == (6, 5)
    assert await show(show_feed(settings, None), as_json=False) == 0
    out = capfd.readouterr().out
    assert f"receiver, a: refused simplu.resource.created of {subject} at {since:%Y-%m-%d %H:%M:%S}, {event_id}:" in out
    assert "r0" not in out
    assert "hunter2" not in out
    assert "Ana" not in out


@pytest.mark.slow(3)
async def test_forget_deletes_what_the_shards_have_of_a_destination_that_has_left_the_file(
    world: World, settings: Settings, output: Output
) -> None:
    left, other = Receiver("left"), Receiver("other")
    feed = feed_of(world.pools, [pool.address for pool in world.shard_pools.values()], [left.configured()])
    case = world.case("a")
    async with running(feed):
        await publishing(feed, 2)
        assert await output.of(forget_destination(settings, "left", apply=True), status=1) == {
            "applied": False,
            "shards": [],
            "shardsWithoutAnswer": ["a", "b"],
        }
        feed.replace([other.configured()])
        for shard_id in "ab":
            await until(world, shard_id, "SELECT FROM feed_cursors WHERE NOT is_in_file", 1)
        await case.apply(case.operation("create", "r1", {}))
        await other.until_count(1)
        found = await shown(settings, output, "left")
        assert (found["isInFile"], found["lagSeconds"]) == (False, 0)
        planned = await output.of(forget_destination(settings, "left", apply=False))
        assert [(one["shardId"], one["refusalCount"]) for one in planned["shards"]] == [("a", 0), ("b", 0)]
        await until(world, "a", "SELECT FROM feed_cursors", 2)
        assert await output.of(forget_destination(settings, "left", apply=True)) == planned | {"applied": True}
        await until(world, "a", "SELECT FROM feed_cursors", 1)
        feed.replace([left.configured(), other.configured()])
        await until(world, "a", "SELECT FROM feed_cursors WHERE is_in_file", 2)
        await case.apply(case.operation("create", "r2", {}))
        await left.until_count(1)
    assert [one.resource_id for one in left.events] == ["r2"]


async def test_show_names_shards_that_do_not_answer_and_those_without_a_publisher(
    world: World, tmp_path: Path, output: Output
) -> None:
    receiver = Receiver()
    address = world.shard_pools["a"].address
    feed = feed_of(world.pools, [address], [receiver.configured()])
    async with running(feed):
        await publishing(feed, 2)
    case = world.case("a")
    await case.apply(case.operation("create", "r1", {}))
    await fetch(case.pool, "UPDATE log_batches SET completed_at = completed_at - interval '1 hour'")
    settings = settings_of(tmp_path, address, silent("down"))
    answer = await output.of(show_feed(settings, None), status=1)
    assert answer["shardsWithoutAnswer"] == ["down"]
    (found,) = answer["destinations"]
    assert found["lagSeconds"] >= 3600
    assert (found["shardId"], found["publisher"]) == ("a", None)


@pytest.mark.slow(10)
async def test_each_replica_shows_the_destinations_of_all_shards(world: World) -> None:
    address = world.shard_pools["a"].address
    receiver = Receiver()
    receiver.answer = lambda _: Disabled("410")
    async with Pools(size=4) as pools:
        pools.ensure_pool(address)
        one, two = (feed_of(each, [address], [receiver.configured()], str(each)) for each in (world.pools, pools))
        async with running(one):
            await publishing(one, 2)
            await world.case("a").apply(world.case("a").operation("create", "r1", {}))
            await until_stop(world, "disabled")
            async with running(two), asyncio.timeout(30):
                while not (own := one.views())[0].stopped_shards or not two.views()[0].stopped_shards:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                (other,) = two.views()
                assert two.published_count == 0
    assert (own[0].stopped_shards, own[0].error, own[0].shard_count) == (("a",), "410", 2)
    assert (other.stopped_shards, other.error, other.shard_count) == (("a",), "410", 1)
    assert other.lag_s > 0


async def until(world: World, shard_id: str, query: str, count: int) -> None:
    async with asyncio.timeout(30):
        while len(await fetch(world.shard_pools[shard_id], query)) != count:  # noqa: ASYNC110  # rows on a shard
            await asyncio.sleep(0.1)


async def until_stop(world: World, reason: str) -> None:
    await until(world, "a", f"SELECT FROM feed_cursors WHERE stopped = '{reason}'", 1)


@pytest.mark.slow(2)
@pytest.mark.usefixtures("aws_credentials")
async def test_check_reaches_each_destination_as_far_as_that_needs_no_event(
    kinesis_url: str, sqs_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", kinesis_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", sqs_url)
    monkeypatch.setattr(socket, "getaddrinfo", NameServer("127.0.0.2", "10.0.0.1").getaddrinfo)
    async with (
        open_client("kinesis", region=REGION) as kinesis,
        open_client("sqs", region=REGION) as sqs,
        await asyncio.start_server(_refuse_all, "127.0.0.1", 0) as server,
    ):
        await kinesis.create_stream(StreamName="checked", ShardCount=2)
        await kinesis.get_waiter("stream_exists").wait(StreamName="checked", WaiterConfig={"Delay": 0.05})
        made = await sqs.create_queue(QueueName="checked.fifo", Attributes={"FifoQueue": "true"})
        queue, port = made["QueueUrl"], server.sockets[0].getsockname()[1]
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            closed_port = unused.getsockname()[1]
            destinations: dict[str, tuple[str, str]] = {
                "stream": ("kinesis", "checked"),
                "no-stream": ("kinesis", "unknown"),
                "queue": ("sqs", queue),
                "no-queue": ("sqs", queue.replace("checked", "unknown")),
                "hook": ("webhook", f"http://127.0.0.1:{port}/secret"),
                "no-tls": ("notification", f"https://127.0.0.1:{port}"),
                "closed": ("webhook", f"http://127.0.0.1:{closed_port}"),
                "forbidden": ("webhook", f"http://rebound.example:{port}"),
            }
            file = tmp_path / "feed.json"
            file.write_text(json.dumps({"destinations": _entries(destinations, tmp_path)}))
            named = {"AWS_REGION": REGION, "FEED_FILE": str(file), "FEED_ALLOWED_HOSTS": "127.0.0.1,rebound.example"}
            found = await check_feed(settings_in(named))
    assert [(one.dependency, one.status.value, one.result) for one in found] == [
        ("feed stream", "ok", "active, 2 open stream shards, records kept for 24 h"),
        ("feed no-stream", "failed", "the stream does not exist; create it, or correct its target"),
        ("feed queue", "ok", "answers, 0 waiting"),
        ("feed no-queue", "failed", "the queue does not exist; create it, or correct its target"),
        ("feed hook", "ok", "can be connected to; nothing was sent"),
        ("feed no-tls", "failed", NO_TLS),
        ("feed closed", "failed", NO_SERVER),
        ("feed forbidden", "failed", f"{NOT_ALLOWED}rebound.example"),
    ]
    assert [one.address for one in found[3:6]] == [
        queue.replace("checked", "unknown"),
        f"http://127.0.0.1:{port}",
        f"https://127.0.0.1:{port}",
    ]
    assert await check_feed(settings_in({"AWS_REGION": REGION})) == []


async def _refuse_all(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


def _entries(destinations: dict[str, tuple[str, str]], folder: Path) -> list[dict[str, Any]]:
    secret = folder / "secret"
    secret.write_text(SECRETS[0])
    return [
        {"name": name, "kind": kind, "target": target, "allTenants": True}
        | ({"secretFiles": [str(secret)]} if kind == "webhook" else {})
        for name, (kind, target) in destinations.items()
    ]
