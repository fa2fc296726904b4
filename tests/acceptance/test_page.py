from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from urllib.parse import quote

import pytest
import pytest_asyncio
from support.browser.chromium import PHONE_WIDTH, BrowserTab, Scheme, open_browser, required_axe
from support.full_stack import Chain, FullStack, make_item, make_record, partition_key, poll_until_true
from support.requires import ROOT

from simplu_local.workload.workload import Tenant
from simplu_worker.dead_letters.queue import DeadLetterQueue
from simplu_worker.network_errors import NO_SERVER
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.operations.operation import Origin
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import DeadLetterReason, Source

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(3)]

PICTURES = ROOT / "docs" / "images"
WRITES_PICTURES = os.environ.get("WRITE_PICTURES") == "1"  # they differ with the fonts of a machine: not in each run
SCREENS: list[tuple[int, Scheme]] = [(width, scheme) for width in (1280, PHONE_WIDTH) for scheme in ("light", "dark")]
ROW_MAX_PX = 80
PICTURE_LOAD_TURNS = 75
PICTURE_LOAD_PAUSE_S = 2.0
SEEN_WITHIN_S = 40.0
HISTORY_WITHIN_S = 90.0  # a point comes each 30 s, and the page asks each 15 s
STREAM_CHARTS = "document.querySelectorAll('#section-stream td svg').length"
VIEWER_TOKEN = "viewer-of-the-page"
# Of 46 to 60 characters with their kinds, as people do name them; pictures have shorter ones.
UNREGISTERED = ("smile-eve", "berlin") if WRITES_PICTURES else ("northern-dental-practices", "berlin-friedrichshain")
PRIORITY_QUEUE = None if WRITES_PICTURES else "orders-of-the-northern-practices-with-priority.fifo"
SITE_URL = "https://docs.example.com/simplu-worker"
# The rows of a mover that has fenced its tenant and copies what is left; to the worker its command runs for long.
OPEN_MOVE = """
INSERT INTO public.transfers (tenant_id, kind, place, token, step, detail)
VALUES ($1, 'departure', $2, '1', 'open',
    '{"phase": "fence", "rowCount": 48210, "byteCount": 20971520, "seenAt": "2100-01-01T00:00:00Z"}')
"""
# Without a deadline, as a restore fences: the worker would end a move's fence.
FENCE = "UPDATE public.tenants SET state = 'fenced', move_token = 1, fenced_until = NULL WHERE id = $1"
IS_APPLIED = "SELECT count(*) FROM public.operations WHERE tenant_id = $1 AND request_id = $2"
# On a phone a row is a block of lines.
TALL_ROWS = f"""
(innerWidth <= {PHONE_WIDTH} ? [] : [...document.querySelectorAll('tr')])
  .filter((row) => row.getBoundingClientRect().height > {ROW_MAX_PX})
  .map((row) => row.innerText)
"""
IS_WIDER_THAN_SCREEN = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
# A worker has the first point of its history after half a minute: a whole hour of large numbers, with gaps.
WITH_FULL_CHARTS = f"""
import('/page/charts.js').then(({{showCharts}}) => {{
  const values = Array.from({{length: 120}}, (_, place) => place % 17 ? 123456.789 * (place % 40) : null);
  const keys = ['recordsPerSecond', 'lagSeconds', 'latencyP99Seconds', 'heldTargets', 'deadLetters', 'replicas'];
  const at = values.map((_, place) => 1700000000 + 30 * place);
  showCharts({{hour: {{intervalSeconds: 30, at, ...Object.fromEntries(keys.map((key) => [key, values]))}}}}, 'hour');
  return [document.querySelectorAll('#charts figure').length, {IS_WIDER_THAN_SCREEN}];
}})
"""
VIEWS = ("overview", "tenants", "shards", "stream", "queues", "dead-letters", "moves")
MOVES = "document.getElementById('section-moves')"
HAS_MOVE = f"{MOVES}?.innerText.includes('48,210')"
HAS_LETTERS = "document.getElementById('section-letters-list') !== null"
HAS_STATUS = "!document.getElementById('content').hidden && document.getElementById('verdict').innerText !== ''"
DIALOG = "document.getElementById('dialog')"
EXACT = "123456789.12345678900"  # a number of which a script would lose digits


def text_of(element_id: str) -> str:
    return f"(document.getElementById({json.dumps(element_id)})?.innerText ?? '')"


async def go(page: BrowserTab, view: str, thing: str = "") -> None:
    address = f"#/{view}" + (f"/{quote(thing, safe='')}" if thing else "")
    await page.evaluate(f"location.hash = {json.dumps(address)}")
    await page.wait_for(f"!document.getElementById('view-{view}').hidden")


async def answer_dialog(page: BrowserTab, button: str) -> str:
    await page.wait_for(f"{DIALOG}.open")
    text = await page.evaluate(f"{DIALOG}.innerText")
    await page.evaluate(f"document.getElementById({json.dumps(button)}).focus()")
    await page.press("Enter")
    await page.wait_for(f"!{DIALOG}.open")
    return str(text)


class PageWorld:
    def __init__(self, stack: FullStack) -> None:
        self.stack = stack
        self.moving, self.steady, self.lost = stack.steady
        self.unregistered = Tenant(*UNREGISTERED, "dental")
        self.live = Chain(self.steady)

    @property
    def url(self) -> str:
        return f"{self.stack.worker.url}/"

    @property
    def token(self) -> str:
        return self.stack.stack.env["API_TOKEN"]

    async def begin(self) -> None:
        await self.stack.put(self.live)
        await self._fence(self.moving)
        await self.stack.homes[self.lost.tenant_id].kill()
        absent = make_record(self.unregistered, "create", "of-nobody", resourceId="n1", data={"n": 1})
        missing = make_record(self.steady, "update", "of-nothing", resourceId="nothing", data={"n": 1})
        items = [make_item(partition_key(0), one) for one in (absent, missing, b"no JSON")]
        await self.stack.put(*items, Chain(self.moving), Chain(self.lost))
        await poll_until_true(self._is_shown, within_s=SEEN_WITHIN_S)
        if WRITES_PICTURES:
            await self._fill_charts()
        await self.stack.wait_until_applied(self.live, within_s=SEEN_WITHIN_S)

    async def _fill_charts(self) -> None:
        for number in range(PICTURE_LOAD_TURNS):
            await self.stack.put(*[self.live] * (1 + number * 7 % 11 + number % 3))
            await asyncio.sleep(PICTURE_LOAD_PAUSE_S)

    async def _fence(self, tenant: Tenant) -> None:
        async with self.stack.connect(tenant) as connection:
            await connection.execute(OPEN_MOVE, tenant.tenant_id, list(self.stack.stack.servers)[1])
            await connection.execute(FENCE, tenant.tenant_id)

    async def _is_shown(self) -> bool:
        status = await self.stack.read_status()
        reasons = {one["reason"] for one in status["held"]}
        lost = {one["state"] for one in status["shards"]}
        is_buried = bool(status["counters"]["deadLetters"])
        return {"moving", "unregistered", "shard_unavailable"} <= reasons and "lost" in lost and is_buried

    async def bury(self, *request_ids: str, error: str) -> None:
        queue = DeadLetterQueue(self.stack.sqs, self.stack.stack.env["SQS_DEAD_LETTER_QUEUE_URL"])
        now = utc_now()
        letters = [
            self._letter(one, error, now - timedelta(seconds=len(request_ids) - number), number)
            for number, one in enumerate(request_ids)
        ]
        await queue.store(letters, stopping=asyncio.Event())

    def _letter(self, request_id: str, error: str, failed_at: datetime, number: int) -> DeadLetter:
        record = make_record(self.steady, "create", request_id, resourceId=request_id, data={"n": 1})
        data = json.dumps(record).replace('"n": 1', f'"n": 1, "exact": {EXACT}').encode()
        origin = Origin(
            *(Source.KINESIS, self.stack.stream, failed_at),
            stream_shard_id="shardId-000000000000",
            sequence_number=str(number + 1),
            partition_key=partition_key(0),
        )
        return DeadLetter(
            *(DeadLetterReason.RETRIES_EXHAUSTED, error, origin, failed_at, 4, data),
            request_id=request_id,
            business_id=self.steady.business_id,
            location_id=self.steady.location_id,
        )

    async def is_applied(self, request_id: str) -> bool:
        async with self.stack.connect(self.steady) as connection:
            return bool(await connection.fetchval(IS_APPLIED, self.steady.tenant_id, request_id))

    async def log_in(self, tab: BrowserTab, token: str | None = None) -> None:
        await tab.visit(self.url)
        await tab.evaluate("sessionStorage.clear()")
        await tab.visit(self.url)
        await tab.wait_for("!document.getElementById('login').hidden")
        await tab.evaluate("document.getElementById('token').focus()")
        await tab.type(token or self.token)
        await tab.press("Enter")
        await tab.wait_for(HAS_STATUS)


def shard_cells(title: str) -> str:
    section = "document.getElementById('section-shards')"
    place = f"[...{section}.querySelectorAll('thead th')].findIndex((one) => one.innerText === {json.dumps(title)})"
    return f"[...{section}.querySelectorAll('tbody tr')].map((row) => row.children[{place}].innerText)"


async def wait_for_events(page: BrowserTab) -> None:
    async with asyncio.timeout(SEEN_WITHIN_S):
        while not any(url.endswith("/events") for url in page.requests[-4:]):  # noqa: ASYNC110  (in another process)
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[PageWorld]:
    env = {"API_VIEWER_TOKEN": VIEWER_TOKEN, "RUNBOOK_URL": SITE_URL, "KINESIS_PARTITION_KEY": "any"}
    # A shorter lease is lost on a busy machine: records are read again, and stored as dead letters again.
    env["KINESIS_LEASE_DURATION_SECONDS"] = "5"
    async with FullStack(env=env, priority_queue=PRIORITY_QUEUE) as stack:
        world = PageWorld(stack)
        await world.begin()
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BrowserTab]:
    async with open_browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest_asyncio.fixture(loop_scope="module")
async def page(world: PageWorld, tab: BrowserTab) -> AsyncIterator[BrowserTab]:
    await tab.show_as(1280)
    await world.log_in(tab)
    yield tab
    assert tab.faults == []
    others = [url for url in tab.requests if not url.startswith((world.url, "data:", "about:"))]
    assert others == []
    assert [url for url in tab.requests if world.token in url] == []


async def test_overview_says_what_is_wrong_and_what_to_do(world: PageWorld, page: BrowserTab) -> None:
    await page.wait_for(f"{text_of('problems')}.includes('Dead letters in the last hour')", within_s=HISTORY_WITHIN_S)
    problems = await page.evaluate(
        "[...document.querySelectorAll('#problems .item:not(.stale)')].map((one) => one.innerText)"
    )
    assert problems[0].startswith("critical\nPostgres shard takes no operations")
    assert "See why the shard does not answer" in problems[0]
    assert NO_SERVER in problems[0]
    assert "First" in problems[0]
    assert "Last\nnow" in problems[0]
    assert not any("shard unavailable" in one for one in problems)
    assert any("Held: unregistered" in one for one in problems)
    verdict = " ".join((await page.evaluate(text_of("verdict"))).split())
    assert verdict.startswith("1 thing needs you Postgres shard takes no operations (shard shard-")
    link = "document.querySelector('#problems a[href$=\"/monitoring.html#shardlost\"]')"
    assert await page.evaluate(f"[{link}.href, {link}.innerText]") == [
        f"{SITE_URL}/monitoring.html#shardlost",
        "Runbook",
    ]
    assert "2 of 3 shards healthy" in " ".join((await page.evaluate(text_of("tiles"))).split())


async def test_held_target_is_one_item_with_all_that_is_known(world: PageWorld, page: BrowserTab) -> None:
    await page.wait_for(f"{text_of('held')}.includes('unregistered')")
    held = await page.evaluate("[...document.querySelectorAll('#held .item')].map((one) => one.innerText)")
    assert len([one for one in held if f"tenant {world.unregistered.tenant_id}" in one]) == 1
    (lost,) = [one for one in held if "shard unavailable" in one]
    assert all(word in lost for word in ("Oldest waits", "Reader", "Its 1 tenant", "See why the shard", "Retry now"))
    opened = "[...document.querySelectorAll('#held details')].find((one) => one.innerText.includes('Its 1 tenant'))"
    await page.evaluate(f"{opened}.querySelector('summary').click()")
    await asyncio.sleep(3)  # the ages go on, and the list stays open
    assert world.lost.tenant_id in await page.evaluate(f"{opened}.open && {opened}.innerText")


async def test_each_thing_has_an_address_and_the_back_button_works(world: PageWorld, page: BrowserTab) -> None:
    await page.evaluate("document.querySelector('#problems a[href^=\"#/shards/\"]').click()")
    await page.wait_for(f"{text_of('section-thing')}.startsWith('Shard shard-')")
    assert NO_SERVER in await page.evaluate(text_of("section-thing"))
    assert "shard unavailable" in await page.evaluate(text_of("section-thing-held"))
    await go(page, "tenants", world.steady.tenant_id)
    await page.wait_for(f"{text_of('section-tenant')}.includes('active')")
    command = f"simplu-worker tenants move {world.steady.business_id} {world.steady.location_id} --to shard-"
    assert command in await page.evaluate(text_of("section-tenant-move"))
    await page.evaluate("history.back()")
    await page.wait_for("!document.getElementById('view-shards').hidden && location.hash.startsWith('#/shards/')")
    await page.call("Page.reload")
    await page.wait_for(f"{text_of('section-thing')}.startsWith('Shard shard-')")
    assert await page.evaluate("document.querySelector('#menu [aria-current]').innerText") == "Shards"
    await go(page, "tenants", "no-tenant")
    await page.wait_for(f"{text_of('section-tenant')}.includes('unregistered')")


async def test_views_show_shards_queues_and_moves(world: PageWorld, page: BrowserTab) -> None:
    await go(page, "shards")
    # What the first probe of each shard finds: after a start on a busy machine it may be still to come.
    await page.wait_for(f"{text_of('section-shards')}.includes('Schema')", within_s=SEEN_WITHIN_S)
    connected = f"{shard_cells('Server connections')}.filter((one) => one.endsWith(' of 97'))"
    await page.wait_for(f"{connected}.length === 2", within_s=SEEN_WITHIN_S)
    percent = f"{shard_cells('Businesses of capacity')}.filter((one) => one.endsWith(' %'))"
    await page.wait_for(f"{percent}.length === 3", within_s=SEEN_WITHIN_S)
    assert "lost" in await page.evaluate(text_of("section-shards"))
    assert (await page.evaluate(shard_cells("Server connections"))).count("–") == 1  # of the shard that is down
    await go(page, "queues")
    await page.wait_for(f"{text_of('section-queues')}.includes('dead letters')")
    assert PRIORITY_QUEUE is None or PRIORITY_QUEUE in await page.evaluate(text_of("section-queues"))
    await go(page, "moves")
    await page.wait_for(HAS_MOVE, within_s=SEEN_WITHIN_S)  # with the next probe of its shard
    await page.wait_for(f"{text_of('section-moves')}.includes('Undo')", within_s=SEEN_WITHIN_S)
    moves = await page.evaluate(text_of("section-moves"))
    ids = f"{world.moving.business_id} {world.moving.location_id}"
    assert f"tenant {world.moving.tenant_id}" in moves
    assert f"simplu-worker tenants rollback {ids} --apply" in moves


async def test_page_goes_on_while_it_is_open(world: PageWorld, page: BrowserTab) -> None:
    await go(page, "stream")
    await wait_for_events(page)
    asked = page.requests.count(f"{world.url}status")
    await page.evaluate("document.querySelector('#section-stream .scroll').scrollLeft = 40")
    before = await page.evaluate(text_of("section-totals"))
    await world.stack.put(world.live)
    await page.wait_for(f"{text_of('section-totals')} !== {json.dumps(before)}")
    assert page.requests.count(f"{world.url}status") == asked
    scrolled = "document.querySelector('#section-stream .scroll')"
    assert await page.evaluate(f"{scrolled}.scrollLeft === 40 || {scrolled}.scrollWidth <= {scrolled}.clientWidth + 40")


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
async def test_page_is_accessible_and_fits(page: BrowserTab, width: int, scheme: Scheme) -> None:
    axe = required_axe()
    await page.show_as(width, scheme, scale=1 if width > PHONE_WIDTH else 2)
    for view in reversed(VIEWS):
        await go(page, view)
        assert (view, await page.find_violations(axe)) == (view, [])
        assert (view, await page.evaluate(TALL_ROWS)) == (view, [])
        assert (view, await page.evaluate(IS_WIDER_THAN_SCREEN)) == (view, False)
    advice = "document.querySelector('#problems .advice').getBoundingClientRect()"
    assert await page.evaluate(f"[{advice}.left >= 0, {advice}.right <= innerWidth]") == [True, True]
    if WRITES_PICTURES:
        picture = await page.take_picture()
        (PICTURES / f"status-{width}-{scheme}.webp").write_bytes(picture)
    assert await page.evaluate(WITH_FULL_CHARTS) == [6, False]


async def test_token_is_asked_for_once_and_is_in_the_tab_alone(world: PageWorld, page: BrowserTab) -> None:
    await page.visit(world.url)
    await page.wait_for(HAS_STATUS)
    assert await page.evaluate("document.cookie + location.href") == world.url
    assert await page.evaluate("sessionStorage.length + localStorage.length") == 1
    await page.evaluate("document.getElementById('forget').click()")
    assert await page.evaluate("sessionStorage.length") == 0
    await page.type("another")
    await page.press("Enter")
    await page.wait_for("document.getElementById('notice').innerText.includes('refused this token')")
    assert await page.evaluate("document.getElementById('content').hidden")


async def test_tenant_and_operation_are_looked_up_by_keyboard(world: PageWorld, page: BrowserTab) -> None:
    axe = required_axe()
    await go(page, "tenants")
    await page.evaluate("document.getElementById('business').focus()")
    for text in (world.steady.business_id, world.steady.location_id, "of-nothing"):
        await page.type(text)
        await page.press("Tab")
    await page.press("Enter")
    await page.wait_for("document.getElementById('section-tenant-operations') !== null")
    tenant = await page.evaluate("document.getElementById('section-tenant').innerText")
    errors = await page.evaluate("document.getElementById('section-tenant-errors').innerText")
    operation = await page.evaluate("document.getElementById('section-operation').innerText")
    assert "active" in tenant
    assert "succeeded" in tenant
    assert "of-nothing" in errors
    assert "not_found" in errors
    assert "failed" in operation
    assert await page.find_violations(axe) == []


async def test_operator_acts_after_a_dialog_with_the_facts(world: PageWorld, page: BrowserTab) -> None:
    url = f"{world.url}held/retry"
    button = "document.querySelector('#held .item button')"
    await page.wait_for(f"{button} !== null")
    await page.evaluate(f"{button}.focus()")
    await page.press("Enter")
    text = await answer_dialog(page, "dialog-leave")
    assert re.search(r"Try \S+ \S+ now\?", text)
    assert "Oldest waits" in text
    assert "nothing is lost" in text
    assert url not in page.requests
    await page.press("Enter")  # the focus is on the button again
    await page.wait_for(f"{DIALOG}.open")
    assert await page.find_violations(required_axe()) == []
    await answer_dialog(page, "dialog-act")
    await page.wait_for("document.getElementById('notice').innerText.startsWith('Done: retried 1')")
    assert page.requests.count(url) == 1


async def test_dead_letters_are_replayed_and_discarded_by_keys(world: PageWorld, page: BrowserTab) -> None:
    axe = required_axe()
    await world.bury("given-up", error="<b>division by zero</b> " * 20)
    await go(page, "dead-letters")
    await page.evaluate("document.querySelector('#letters button').focus()")
    await page.press("Enter")
    await page.wait_for(HAS_LETTERS)
    notice = await page.evaluate(text_of("letters-notice"))
    assert re.match(r"2 shown\. Read from \d\d:\d\d:\d\d to \d\d:\d\d:\d\d\. ", notice), await page.evaluate(
        text_of("section-letters-list")
    )
    assert "given-up" in await page.evaluate("document.querySelector('#section-letters-list tbody tr').innerText")
    await page.evaluate("document.querySelector('#section-letters-list tbody button').focus()")
    await page.press("Enter")
    letter = await page.evaluate("document.getElementById('section-letter').innerText")
    assert "<b>division by zero</b>" in letter
    assert '"requestId": "given-up"' in letter
    for width, scheme in SCREENS:
        await page.show_as(width, scheme)
        assert await page.find_violations(axe) == []
        assert await page.evaluate(TALL_ROWS) == []
        assert await page.evaluate(IS_WIDER_THAN_SCREEN) is False
    await page.show_as(1280)

    await page.evaluate("document.querySelector('#section-letters-list input').focus()")
    await page.press("Space")
    await page.evaluate("document.querySelector('#section-letters-list .buttons button').focus()")
    assert await page.evaluate("document.activeElement.innerText") == "Plan: replay 1 chosen"
    await page.press("Enter")
    await page.wait_for("document.activeElement.innerText === 'Replay: 1 planned, 0 left'")
    assert await page.find_violations(axe) == []
    assert "Nothing is sent yet" in await page.evaluate("document.getElementById('section-letters-plan').innerText")
    for _ in range(2):  # past the table
        await page.press("Tab")
    assert await page.evaluate("document.activeElement.innerText") == "Replay 1 now"
    await page.press("Enter")
    asked = await answer_dialog(page, "dialog-act")
    assert "retries_exhausted" in asked
    assert f"{world.steady.business_id} {world.steady.location_id}" in asked
    await page.wait_for("document.activeElement.innerText === 'Replay: 1 sent, 0 left'")
    await poll_until_true(lambda: world.is_applied("given-up"), within_s=SEEN_WITHIN_S)

    await page.evaluate("document.querySelector('#letters select').value = 'invalid_json'")
    await page.evaluate("document.querySelector('#letters button').focus()")
    await page.press("Enter")
    await page.wait_for(f"document.getElementById('section-letters-plan') === null && {HAS_LETTERS}")
    await page.evaluate("document.querySelectorAll('#section-letters-list .buttons button')[1].focus()")
    assert await page.evaluate("document.activeElement.innerText") == "Plan: discard all that match the filter"
    await page.press("Enter")
    await page.wait_for("document.activeElement.innerText === 'Discard: 1 planned, 0 left'")
    await page.evaluate("document.querySelector('#section-letters-plan .buttons button').focus()")
    await page.press("Enter")
    assert "invalid_json" in await answer_dialog(page, "dialog-act")
    await page.wait_for("document.activeElement.innerText === 'Discard: 1 discarded, 0 left'")
    await page.wait_for("document.getElementById('letters-notice').innerText.startsWith('0 shown.')")


async def test_dead_letter_is_corrected_under_a_new_id(world: PageWorld, page: BrowserTab) -> None:
    axe = required_axe()
    await world.bury("to-correct", error="no such column")
    await world.stack.put(world.live)
    await world.stack.wait_until_applied(world.live, within_s=SEEN_WITHIN_S)
    await go(page, "dead-letters")
    await page.evaluate("document.querySelector('#letters button').click()")
    row = (
        "[...document.querySelectorAll('#section-letters-list tr')].find((one) => one.innerText.includes('to-correct'))"
    )
    await page.wait_for(f"{row} !== undefined", within_s=30)
    await page.evaluate(f"{row}.querySelector('button').click()")
    await page.evaluate("document.querySelector('#section-letter .buttons button').click()")
    area = "document.querySelector('#section-letter textarea')"
    shown = await page.evaluate(f"{area}.value")
    assert '"requestId": "to-correct"' in shown
    assert f'"exact": {EXACT}' in shown
    await page.evaluate(f"{area}.focus(); {area}.select()")
    chain = world.live.resource_id
    wrong = make_record(world.steady, "upsert", None, resourceId=chain, data={"n": 7})
    await page.type(json.dumps(wrong))
    button = "[...document.querySelectorAll('#section-letter button')].find((one) => one.innerText === {})".format
    await page.evaluate(f"{button(json.dumps('Preview'))}.click()")
    await page.wait_for(f"{text_of('section-letter')}.includes('it would become a dead letter again')", within_s=30)
    await page.evaluate(f"{area}.focus(); {area}.select()")
    await page.type(json.dumps(wrong | {"operation": "patch", "data": {"corrected": True}}))
    await page.evaluate(f"{button(json.dumps('Preview'))}.click()")
    await page.wait_for(f"{text_of('section-edit-plan')}.includes('to-correct')", within_s=30)
    assert '"n":' in await page.evaluate(text_of("section-present-row"))
    assert "patch" in await page.evaluate(text_of("section-later-operations"))
    for width, scheme in SCREENS:
        await page.show_as(width, scheme)
        assert await page.find_violations(axe) == []
        assert await page.evaluate(IS_WIDER_THAN_SCREEN) is False
    await page.evaluate(f"{button(json.dumps('Send it now'))}.click()")
    asked = await answer_dialog(page, "dialog-act")
    assert "Old request id\tto-correct" in asked
    assert "Later operations" in asked
    await page.wait_for(f"{text_of('section-letter')}.includes('in place of to-correct')", within_s=30)
    acted = await world.stack.wait_for_log_event(
        "operator.acted", within_s=SEEN_WITHIN_S, action="edit_letter", apply=True
    )
    assert acted["asked"]["oldRequestId"] == "to-correct"
    await poll_until_true(lambda: world.is_applied(acted["asked"]["requestId"]), within_s=SEEN_WITHIN_S)


async def test_viewer_sees_states_and_no_texts_of_errors(world: PageWorld, page: BrowserTab) -> None:
    await world.log_in(page, VIEWER_TOKEN)
    text = await page.evaluate("document.body.innerText")
    assert "viewer" in text
    assert "shard unavailable" in text
    assert NO_SERVER not in text
    assert "See why the shard does not answer" in text
    for view in VIEWS:
        await go(page, view)
        shown = await page.evaluate(text_of(f"view-{view}"))
        assert NO_SERVER not in shown
        assert not await page.evaluate(f"document.querySelectorAll('#view-{view} :is(td, .item) button').length")
    assert await page.evaluate("document.getElementById('section-letters').hidden")


async def test_held_targets_are_folded_over_readers_and_replicas(page: BrowserTab) -> None:
    first = {"target": "shard z", "reason": "gap", "ageSeconds": 9}
    elsewhere = [first, first | {"streamShard": "s-1", "ageSeconds": 7}]
    other = {"replica": "b", "seenSecondsAgo": 12.0, "heldTargets": 5, "held": elsewhere}
    fleet = {"replicas": [other], "heldAdvice": {"gap": {"advice": "Raise it."}}}
    mine = {"target": "tenant t", "reason": "moving", "ageSeconds": 1, "tenants": 1, "tenantIds": ["t"]}
    mine["streamShard"] = "s-0"
    shared = {**first, "streamShard": "s-0", "ageSeconds": 30, "tenants": 3, "tenantIds": ["x", "a"], "operations": 7}
    status = {"held": [mine, shared], "heldAdvice": {}}
    known = f"{json.dumps(status)}, {json.dumps(fleet)}"
    script = (
        f"import('/page/held.js').then((held) => [held.heldOf({known}), held.unnamedElsewhere({json.dumps(fleet)})])"
    )
    held, unnamed = await page.evaluate(script)
    assert unnamed == 3
    assert [(one["target"], one["ageSeconds"], one["tenants"], one.get("advice")) for one in held] == [
        ("shard z", 30, 3, "Raise it."),
        ("tenant t", 1, 1, None),
    ]
    assert (held[0]["tenantIds"], held[0]["operations"]) == (["a", "x"], 7)
    assert held[0]["readers"] == ["s-0 (this replica)", "a stream shard (b)", "s-1 (b)"]
    assert [one["isGrey"] for one in held] == [False, False]


async def test_old_numbers_are_no_numbers(page: BrowserTab) -> None:
    row = {"streamShard": "s", "state": "reading", "owner": "b", "seenSecondsAgo": 42, "isSilent": True}
    replicas = [{"replica": "b", "isThis": False, "seenSecondsAgo": 42, "isSilent": True}]
    queues = [{"name": "q", "error": "no answer"}, {"name": "r", "visible": 0}]
    known = {
        "status": {"held": []},
        "fleet": {"streamShards": [row], "replicas": replicas},
        "queues": queues,
        "ages": {"status": 30, "fleet": 1, "queues": 1},
    }
    script = f"import('/page/overview.js').then(({{tilesOf}}) => tilesOf({json.dumps(known)}))"
    tiles = {one["label"]: (one["value"], one.get("isGrey", False)) for one in await page.evaluate(script)}
    assert tiles == {
        "replica, 1 silent": ("0", False),
        "stream shards": ("1", False),
        "highest lag: last seen 42.0 s ago": ("–", True),
        "records, all replicas: not known": ("–", True),
        "held targets: nobody reads the stream": ("–", True),
        "messages in 1 of 2 queues": ("0", False),
    }


async def run_top(world: PageWorld, *arguments: str, **env: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", "top", *arguments),
        env=world.stack.stack.env | {"PATH": os.environ["PATH"]} | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


async def test_top_shows_the_same_without_a_terminal(world: PageWorld) -> None:
    status, output, _ = await run_top(world)
    as_json, text, _ = await run_top(world, "--json")
    viewed, shown, _ = await run_top(world, "--url", world.url, API_TOKEN=VIEWER_TOKEN)
    refused, _, errors = await run_top(world, API_TOKEN="another")
    assert (status, as_json, viewed, refused) == (0, 0, 0, 1)
    assert "\x1b" not in output
    assert f"tenant {world.unregistered.tenant_id}" in output
    assert f"tenant {world.moving.tenant_id}" in output
    assert json.loads(text)["counts"]["leases"] == 2
    assert "Postgres shard takes no operations" in shown
    assert "not the bearer token" in errors
    assert "another" not in errors


async def test_fresh_page_shows_the_last_hour_of_each_stream_shard(world: PageWorld, page: BrowserTab) -> None:
    await go(page, "stream")
    await page.wait_for(f"{STREAM_CHARTS} === 4", within_s=HISTORY_WITHIN_S)  # lag and records of two stream shards
    await world.log_in(page, VIEWER_TOKEN)
    await go(page, "stream")
    await page.wait_for(f"{STREAM_CHARTS} === 4", within_s=SEEN_WITHIN_S)
    label = await page.evaluate("document.querySelector('#section-stream td svg').getAttribute('aria-label')")
    assert label.startswith("Lag of shardId-000000000000 from ")
    await go(page, "overview")
    await page.wait_for("document.querySelectorAll('#charts figure').length === 6", within_s=SEEN_WITHIN_S)
    ticks = "[...document.querySelectorAll('#chart-lagSeconds .axis span')].map((one) => one.innerText)"
    hour = await page.evaluate(ticks)
    await page.evaluate("document.getElementById('period-day').click()")
    day = await page.evaluate(ticks)
    assert (hour[-1], len(hour), hour[0] == day[0]) == (day[-1], 5, False)


async def test_operator_pauses_and_resumes_a_tenant_after_dialogs(world: PageWorld, page: BrowserTab) -> None:
    button = "document.querySelector('#section-tenant-controls td button')"
    await go(page, "tenants", world.steady.tenant_id)
    for title, shown in (("Pause for 4 hours", "pausedUntil"), ("Resume", "active")):
        await page.wait_for(f"{button}?.innerText === {json.dumps(title)}", within_s=SEEN_WITHIN_S)
        await page.evaluate(f"{button}.focus()")
        await page.press("Enter")
        assert world.steady.business_id in await answer_dialog(page, "dialog-act")
        await page.wait_for("document.getElementById('notice').innerText.startsWith('Done')")
        assert shown in await page.evaluate("document.getElementById('notice').innerText") or shown == "active"


async def test_page_of_a_worker_that_is_gone_claims_nothing(world: PageWorld, page: BrowserTab) -> None:
    axe = required_axe()
    await page.wait_for("document.querySelectorAll('#tiles .tile').length > 5")
    world.stack.worker.kill()
    await page.wait_for("document.getElementById('notice').innerText.includes('does not answer')", within_s=30)
    await page.wait_for(f"{text_of('verdict')}.startsWith('Nothing is known now')", within_s=30)
    values = "[...document.querySelectorAll('#tiles strong')].map((one) => one.innerText)"
    await page.wait_for(f"{values}.every((one) => one === '–')", within_s=30)
    assert " ago" in await page.evaluate(text_of("tiles"))
    for width, scheme in SCREENS:
        await page.show_as(width, scheme)
        for view in VIEWS:
            await go(page, view)
            assert (view, await page.find_violations(axe)) == (view, [])
    await go(page, "shards")
    assert "values are " in await page.evaluate(text_of("section-shards"))
