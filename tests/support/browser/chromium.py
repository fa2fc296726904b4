"""A headless Chromium, driven over the DevTools protocol: a page as a person sees it, and works it by keyboard."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import aiohttp
from support.requires import ROOT, require

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
AXE = ROOT / ".tools" / "node_modules" / "axe-core" / "axe.min.js"
START_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_S = 60.0
PATIENCE_S = 60.0
POLL_S = 0.02
PHONE_WIDTH = 390
ADDRESS = re.compile(r"DevTools listening on (ws://\S+)")
# A fixed look on every machine, and no request to anybody but the page's own server.
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"),
    *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--lang=en-US", "--font-render-hinting=none"),
)
KEYS = {"Tab": 9, "Enter": 13, "Space": 32}

Scheme = Literal["light", "dark"]


def required_chromium() -> str:
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    require("chromium", found=path is not None, how="apt-get install chromium-headless-shell")
    return path or ""


def required_axe() -> str:
    how = "install node, copy requirements/npm to .tools, and npm ci --prefix .tools"
    require("axe-core", found=AXE.is_file(), how=how)
    return AXE.read_text(encoding="utf-8")


class PageError(Exception):
    """A command of the protocol, or a script in the page, failed."""


class BrowserTab:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.faults: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None

    async def open(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def listen(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            answer = self._answers.pop(event.get("id"), None)
            if answer is not None and not answer.done():
                answer.set_result(event)
            self._note(event.get("method"), event.get("params", {}))

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["source"] in ("security", "violation", "javascript"):
            self.faults.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.faults.append(" ".join(str(one.get("description", one.get("value"))) for one in params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def _send(self, method: str, **params: Any) -> tuple[asyncio.Task[None], asyncio.Future[dict[str, Any]]]:
        number = next(self._numbers)
        self._answers[number] = answered = asyncio.get_running_loop().create_future()
        session = {} if self._session is None else {"sessionId": self._session}
        command = {"id": number, "method": method, "params": params} | session
        return asyncio.create_task(self._socket.send_json(command)), answered

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        sent, answered = self._send(method, **params)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await sent
            answer = await answered
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def visit(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def evaluate(self, script: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    async def wait_for(self, condition: str, *, within_s: float = PATIENCE_S) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not await self.evaluate(condition):  # noqa: ASYNC110  (the event is in another process)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise TimeoutError(f"expected {condition} within {within_s:g} s; the page has:\n{text}") from None

    async def show_as(self, width: int, scheme: Scheme = "light", *, height: int = 800, scale: float = 1) -> None:
        is_phone = width <= PHONE_WIDTH
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )
        preferences = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=preferences)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        code = KEYS[key]
        sent = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        text = {"Enter": "\r", "Space": " "}.get(key)
        await self.call("Input.dispatchKeyEvent", type="keyDown", **sent, **({} if text is None else {"text": text}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **sent)

    async def find_violations(self, axe: str) -> list[str]:
        await self.call("Runtime.evaluate", expression=axe)
        found = await self.evaluate(
            "axe.run(document).then(({violations}) => violations.map(({id, help, nodes}) => "
            "`${id}: ${help}: ${nodes.slice(0, 3).map((node) => node.html.slice(0, 200)).join(' | ')}`))"
        )
        return list(found)

    async def take_picture(self, *, height_max: int = 2600) -> bytes:
        metrics = await self.call("Page.getLayoutMetrics")
        size = metrics["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], height_max), "scale": 1}
        picture = await self.call(
            "Page.captureScreenshot", format="webp", quality=80, clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(picture["data"])


@asynccontextmanager
async def open_browser(folder: Path) -> AsyncIterator[BrowserTab]:
    command = [required_chromium(), *OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={folder / 'browser'}"]
    process = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            url = await _read_address(process.stderr)
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            tab = BrowserTab(socket)
            # No task group: a fixture of pytest is left in another task than it is entered in.
            listening = [asyncio.create_task(tab.listen()), asyncio.create_task(_drain(process.stderr))]
            try:
                await tab.open()
                yield tab
            finally:
                for task in listening:
                    task.cancel()
                await asyncio.gather(*listening, return_exceptions=True)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _read_address(output: asyncio.StreamReader) -> str:
    lines = []
    while line := (await output.readline()).decode(errors="replace"):
        if found := ADDRESS.search(line):
            return found[1]
        lines.append(line)
    raise PageError(f"expected a browser that starts, got one that ended: {''.join(lines)}")


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass
