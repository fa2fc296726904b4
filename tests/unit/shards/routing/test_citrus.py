from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from stamina.instrumentation import set_on_retry_hooks
from support.citrus.cases import API_KEY, CONNECTION_STRING, SHARD, Reply, ScriptedCitrus, half_a_reply, reply

from simplu_worker.errors import PermanentError
from simplu_worker.network_errors import NO_SERVER
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.citrus import REST_MAX_S, REST_S, CitrusUnavailableError, open_citrus
from simplu_worker.shards.routing.locator import Capacity, Registration
from simplu_worker.shards.types import CitrusDeniedError

ADDRESS = ShardAddress(
    "shard-a", CONNECTION_STRING, business_count=3, business_max=10, last_health_check="2026-03-01T12:00:00.000Z"
)
NOT_FOUND = reply({"error": "not registered"}, status=404)
HTML = b"<html><body>Please log in</body></html>"


async def test_locate_returns_the_shard_that_citrus_names() -> None:
    citrus = ScriptedCitrus(reply(SHARD))
    async with citrus.opened() as client:
        assert await client.locate("clinic-main") == ADDRESS
        assert (client.last_error, client.is_denied) == (None, False)

    assert citrus.requests == [("GET", "/api/shard/clinic-main")]
    assert citrus.authorizations == {f"Bearer {API_KEY}"}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a/b-c", "/api/shard/a%2Fb-c"),
        ("100%-x", "/api/shard/100%25-x"),
        ("%2F-x", "/api/shard/%252F-x"),
        ("naïve-漢字", "/api/shard/na%C3%AFve-%E6%BC%A2%E5%AD%97"),
        ("../..-x", "/api/shard/..%2F..-x"),
        ("a?b=c#d-x", "/api/shard/a%3Fb%3Dc%23d-x"),
        ("a b-+", "/api/shard/a%20b-%2B"),
        ("\u0001\\'\"-;", "/api/shard/%01%5C%27%22-%3B"),
    ],
)
async def test_locate_encodes_the_key_in_the_path(key: str, path: str) -> None:
    citrus = ScriptedCitrus(reply(SHARD))
    async with citrus.opened() as client:
        await client.locate(key)

    assert citrus.requests == [("GET", path)]


async def test_locate_says_not_registered_only_when_citrus_does() -> None:
    citrus = ScriptedCitrus(NOT_FOUND, reply(HTML, status=404, content_type="text/html"))
    async with citrus.opened() as client:
        assert await client.locate("a-b") is None
        assert client.last_error is None
        with pytest.raises(CitrusUnavailableError, match="expected JSON, got 404 with another type"):
            await client.locate("a-b")
        assert client.last_error


NO_ANSWERS: dict[str, tuple[Reply, str]] = {
    "html": (reply(HTML, content_type="text/html"), "expected JSON"),
    "not utf-8": (reply(b'{"shardId": "\xff", "connectionString": ""}'), "expected JSON"),
    "a member missing": (reply({"connectionString": CONNECTION_STRING}), "missing required field `shardId`"),
    "nested without end": (reply(b"[" * 100_000), "expected JSON"),
    "half of it": (half_a_reply(b'{"shardId": "shard-a", '), "expected a whole answer"),
    "500": (reply({"error": "oops"}, status=500), "expected 200, got 500"),
    "409": (reply({}, status=409), "expected 200, got 409"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "error"), NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_locate_has_no_answer_when_citrus_talks_nonsense(answer: Reply, error: str) -> None:
    async with ScriptedCitrus(answer).opened(timeout_s=60.0) as client:
        with pytest.raises(CitrusUnavailableError, match=error) as caught:
            await client.locate("a-b")

        assert client.last_error == str(caught.value)
        assert "secret-word" not in str(caught.value)


@pytest.mark.slow
async def test_citrus_is_asked_again_when_it_had_no_answer() -> None:
    citrus = ScriptedCitrus(reply({}, status=500), reply(HTML), half_a_reply(b"{"), reply(SHARD), reply({}, status=502))
    async with citrus.opened(attempts=4) as client:
        assert await client.locate("a-b") == ADDRESS
        assert client.last_error is None
        assert len(citrus.requests) == 4
    async with citrus.opened(attempts=2) as client:
        with pytest.raises(CitrusUnavailableError):
            await client.locate("a-b")
        assert len(citrus.requests) == 6


@pytest.mark.parametrize("status", [401, 403])
async def test_citrus_is_loud_and_not_asked_again_when_it_refuses_the_key(status: int) -> None:
    citrus = ScriptedCitrus(reply(HTML, status=status, content_type="text/html"), reply(SHARD))
    async with citrus.opened(attempts=3) as client:
        with pytest.raises(CitrusDeniedError, match=f"{status}; check CITRUS_API_KEY") as caught:
            await client.locate("a-b")
        assert client.is_denied
        assert API_KEY not in str(caught.value)
        assert len(citrus.requests) == 1

        await client.locate("a-b")
        assert (client.last_error, client.is_denied) == (None, False)


@pytest.mark.parametrize("status", [301, 307])
async def test_citrus_is_not_followed_where_it_redirects(status: int) -> None:
    other = ScriptedCitrus(reply(SHARD))
    async with other.opened():
        citrus = ScriptedCitrus(reply(b"", status=status, Location=f"{other.url}/api/shard/a-b"))
        async with citrus.opened() as client:
            with pytest.raises(CitrusUnavailableError, match=f"expected 200, got {status}"):
                await client.locate("a-b")
    assert other.requests == []


async def test_citrus_is_left_alone_while_it_is_silent_and_asked_by_one_when_it_may_be_back() -> None:
    citrus = ScriptedCitrus(*[reply({}, status=503)] * 3, reply([SHARD]), reply({}, status=503), reply(SHARD))
    now = 0.0
    async with citrus.opened(clock=lambda: now) as client:
        for _ in range(3):
            with pytest.raises(CitrusUnavailableError, match="got 503"):
                await client.locate("a-b")
        for _ in range(10):
            with pytest.raises(CitrusUnavailableError, match="not asked again yet") as caught:
                await client.locate("a-b")
            assert caught.value.retry_after_s is not None
            assert 0 < caught.value.retry_after_s <= REST_S
        assert len(citrus.requests) == 3
        assert await client.list_shards() == [ADDRESS]
        now += REST_S
        with pytest.raises(CitrusUnavailableError, match="got 503"):
            await client.locate("a-b")
        now += REST_MAX_S
        assert await client.locate("a-b") == ADDRESS
        assert await client.locate("c-d") == ADDRESS
    assert len(citrus.requests) == 7


async def test_tenants_whose_entries_citrus_cannot_read_keep_no_other_from_being_found() -> None:
    citrus = ScriptedCitrus(*[reply({}, status=500)] * 9, reply(SHARD))
    async with citrus.opened() as client:
        for number in range(9):
            with pytest.raises(CitrusUnavailableError, match="got 500"):
                await client.locate(f"broken-{number}")
        assert await client.locate("a-b") == ADDRESS


@pytest.fixture
def pauses_s() -> Iterator[list[float]]:
    noted: list[float] = []
    set_on_retry_hooks([lambda details: noted.append(details.wait_for)])
    yield noted
    set_on_retry_hooks(())


@pytest.mark.slow
async def test_citrus_is_given_the_time_it_asks_for(pauses_s: list[float]) -> None:
    citrus = ScriptedCitrus(
        reply({}, status=429, Retry_After="1"),
        reply(SHARD),
        reply({}, status=503, Retry_After="Sun, 01 Mar 2026 12:00:00 GMT"),
        reply({}, status=429, Retry_After="17"),
    )
    async with citrus.opened(attempts=2) as client:
        started = time.monotonic()
        assert await client.locate("a-b") == ADDRESS
        assert pauses_s == pytest.approx([1.0])
        assert time.monotonic() - started > 0.9
    async with citrus.opened(attempts=1) as client:
        with pytest.raises(CitrusUnavailableError) as caught:
            await client.locate("a-b")
        assert caught.value.retry_after_s is None
    async with citrus.opened(attempts=3, clock=lambda: 0.0) as client:
        with pytest.raises(CitrusUnavailableError, match="got 429") as caught:
            await client.locate("a-b")
        assert caught.value.retry_after_s == 17.0
        with pytest.raises(CitrusUnavailableError, match="not asked again yet") as caught:
            await client.locate("another")
        assert caught.value.retry_after_s == pytest.approx(17.0, abs=2)
    assert len(citrus.requests) == 4


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://user:pass-word@127.0.0.1:1/citrus", f"at 127.0.0.1:1: {NO_SERVER}$"),
        ("http://nowhere.invalid", "at nowhere.invalid:80: expected an address for the host's name, the DNS "),
    ],
)
async def test_citrus_has_no_answer_when_it_is_not_there(url: str, cause: str) -> None:
    async with open_citrus(url, api_key=None, timeout_s=60, attempts=1, allowed_hosts=()) as client:
        with pytest.raises(CitrusUnavailableError, match=f"^Citrus shards_health {cause}"):
            await client.list_shards()


REGISTRATION = {"businessId": "a/b", "locationId": "ö", "businessType": "gym", "shardKey": "a/b-ö"}


@pytest.mark.parametrize("status", [200, 201])
async def test_register_returns_the_shard_when_the_tenant_is_new(status: int) -> None:
    citrus = ScriptedCitrus(reply(SHARD, status=status))
    async with citrus.opened() as client:
        assert await client.register("a/b", "ö", "gym") == Registration(ADDRESS, is_new=True)

    assert (citrus.requests, citrus.bodies) == ([("POST", "/api/register")], [REGISTRATION])


async def test_register_asks_where_when_the_tenant_is_registered() -> None:
    citrus = ScriptedCitrus(reply(HTML, status=409, content_type="text/html"), reply(SHARD))
    async with citrus.opened() as client:
        assert await client.register("a/b", "ö", "gym") == Registration(ADDRESS, is_new=False)

    assert citrus.requests == [("POST", "/api/register"), ("GET", "/api/shard/a%2Fb-%C3%B6")]


@pytest.mark.parametrize("status", [400, 422])
async def test_register_is_refused_when_citrus_does_not_accept_the_request(status: int) -> None:
    citrus = ScriptedCitrus(reply({}, status=status))
    async with citrus.opened(attempts=3) as client:
        with pytest.raises(PermanentError, match=f"got {status}: Citrus refuses"):
            await client.register("a", "b", "gym")
    assert len(citrus.requests) == 1


@pytest.mark.parametrize(
    "connection_string",
    [
        "postgresql://u:secret-word@evil.example/d",
        "postgresql://u:secret-word@db.internal,evil.example/d",
        "postgresql://u:secret-word@db.internal/d?host=evil.example",
        "mysql://u:secret-word@db.internal/d",
        "",
    ],
)
async def test_citrus_is_not_followed_to_a_host_that_is_not_allowed(connection_string: str) -> None:
    citrus = ScriptedCitrus(reply(SHARD | {"connectionString": connection_string}))
    async with citrus.opened(allowed_hosts=("*.internal",)) as client:
        for asking in (client.locate("a-b"), client.register("a", "b", "gym")):
            with pytest.raises(PermanentError, match="connection string of shard shard-a") as caught:
                await asking
            assert "secret-word" not in str(caught.value)


async def test_shards_lists_all_and_marks_those_that_may_not_be_used() -> None:
    bad: dict[str, Any] = {"shardId": "shard-b", "connectionString": "postgresql://u:secret-word@evil.example/d"}
    citrus = ScriptedCitrus(reply([SHARD, bad]))
    async with citrus.opened(allowed_hosts=("*.internal",)) as client:
        good, refused = await client.list_shards()

    assert citrus.requests == [("GET", "/api/shards/health")]
    assert good == ADDRESS
    assert (refused.shard_id, refused.connection_string) == ("shard-b", "")
    assert "evil.example is not in DATABASE_ALLOWED_HOSTS" in str(refused.refusal)


@pytest.mark.parametrize("members", [{}, {"connectionString": None}, {"connectionString": ""}])
async def test_shards_lists_one_without_an_address_as_one_without_an_answer(members: dict[str, Any]) -> None:
    listed = [{"shardId": SHARD["shardId"], "businessCount": 7} | members, SHARD | {"shardId": "shard-c"}]
    async with ScriptedCitrus(reply(listed), reply(SHARD), reply(listed)).opened() as client:
        refused, other = await client.list_shards()
        assert (refused.shard_id, refused.connection_string, other.refusal) == (SHARD["shardId"], "", None)
        assert refused.refusal is not None

        await client.locate("a-b")

        known = (await client.list_shards())[0]
        assert (known.connection_string, known.refusal) == (ADDRESS.connection_string, None)
        assert known.business_count == 7


async def test_capacity_is_that_of_the_shard_that_was_asked_about() -> None:
    answer = {"shardId": "a/b", "businessCount": 3, "maxBusinesses": 10, "canAcceptNewBusiness": False}
    citrus = ScriptedCitrus(reply(answer), reply(None, status=404))
    async with citrus.opened() as client:
        assert await client.fetch_capacity("a/b") == Capacity(3, 10, accepts_new=False)
        assert await client.fetch_capacity("a/b") is None
    assert citrus.requests == [("GET", "/api/shard/a%2Fb/capacity")] * 2
