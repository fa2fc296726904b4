"""Business-info: concurrent lookups are one request, results are cached for a while, scans go page by page."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.aws.endpoints import ScriptedAws, client_of

from simplu_local.stack.aws import put_businesses
from simplu_worker.aws.clients import Client
from simplu_worker.business_info import ABSENT_FRESH_S, FRESH_S, Business, UnreadableBusinessError
from simplu_worker.business_info.table import BusinessInfo
from simplu_worker.errors import PermanentError, RetryableError

pytestmark = pytest.mark.usefixtures("aws_credentials")

TABLE = "business-info"
CLINIC = Business("clinic", "dental", frozenset({"main"}))
ITEM = {"id": {"S": "clinic"}, "type": {"S": "dental"}, "locations": {"L": [{"M": {"id": {"S": "main"}}}]}}
_numbers = itertools.count(1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def scripted(clock: Clock | None = None) -> AsyncIterator[tuple[ScriptedAws, BusinessInfo]]:
    aws = ScriptedAws()
    async with aws.running() as url, client_of("dynamodb", url) as client:
        yield aws, BusinessInfo(client, TABLE, clock=clock or Clock())


@pytest.fixture
async def dynamodb(endpoint_url: str) -> AsyncIterator[Client]:
    async with client_of("dynamodb", endpoint_url) as client:
        yield client


async def make_table(dynamodb: Client) -> str:
    name = f"business-info-{next(_numbers)}"
    await dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


@pytest.mark.slow
async def test_find_reads_what_the_references_write(dynamodb: Client) -> None:
    table = await make_table(dynamodb)
    businesses = {f"b-{number}": ("gym", [f"l-{number}", "é 1"]) for number in range(60)}
    await put_businesses(dynamodb, table, businesses)
    await dynamodb.put_item(TableName=table, Item={"id": {"S": "odd"}})
    info = BusinessInfo(dynamodb, table)

    assert await info.find("b-7") == Business("b-7", "gym", frozenset({"l-7", "é 1"}))
    assert await info.find("nobody") is None
    with pytest.raises(UnreadableBusinessError, match="business 'odd': type: expected the business's type"):
        await info.find("odd")
    pages = [page async for page in info.scan_pages(page_size=25)]
    assert max(map(len, pages)) <= 25
    found = {business.id: business for page in pages for business in page}
    assert found.keys() == {*businesses, "odd"}
    assert found["b-7"] == Business("b-7", "gym", frozenset({"l-7", "é 1"}))
    assert isinstance(found["odd"], UnreadableBusinessError)


async def test_find_remembers_a_business_for_minutes_and_its_absence_for_seconds() -> None:
    clock = Clock()
    async with scripted(clock) as (aws, info):
        aws.answer({"Item": ITEM})
        aws.answer({})
        assert [await info.find("clinic"), await info.find("nobody")] == [CLINIC, None]
        clock.now += ABSENT_FRESH_S
        assert [await info.find("clinic"), await info.find("nobody")] == [CLINIC, None]
        assert len(aws.requests) == 2
        clock.now += 0.1
        aws.answer({"Item": ITEM})
        assert await info.find("nobody") == CLINIC
        clock.now += FRESH_S - ABSENT_FRESH_S
        aws.answer({})
        assert await info.find("clinic") is None
        assert len(aws.requests) == 4


async def test_find_asks_once_for_many_who_want_the_same() -> None:
    async with scripted() as (aws, info):
        for _ in range(2):  # of the first caller, and of those who came after it
            aws.refuse("InternalServerError", status=500)
        answers = await asyncio.gather(*(info.find("clinic") for _ in range(20)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {RetryableError}
        aws.answer({"Item": ITEM})
        assert await asyncio.gather(*(info.find("clinic") for _ in range(20))) == [CLINIC] * 20
        assert len(aws.requests) == 3


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        ("ResourceNotFoundException", PermanentError, "set DYNAMODB_BUSINESS_INFO_TABLE to yours"),
        ("AccessDeniedException", PermanentError, "GetItem: AccessDeniedException"),
        ("ProvisionedThroughputExceededException", RetryableError, "GetItem"),
    ],
)
async def test_find_raises_our_errors(code: str, error: type[Exception], says: str) -> None:
    async with scripted() as (aws, info):
        aws.refuse(code)
        with pytest.raises(error, match=says):
            await info.find("clinic")
        aws.answer({"Item": ITEM})
        assert await info.find("clinic") == CLINIC
