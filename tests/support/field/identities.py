"""Sources of AWS credentials on loopback, and a service that accepts only what they gave out, until it ends.

One server is STS and the agent of a container.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from aiohttp import web

ROLE: Final = "arn:aws:iam::123456789012:role/worker"
STS_ANSWER: Final = """<{0}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{0}Result>
<AssumedRoleUser><Arn>{1}</Arn><AssumedRoleId>AROA:worker</AssumedRoleId></AssumedRoleUser><Credentials>
<AccessKeyId>{2}</AccessKeyId><SecretAccessKey>{3}</SecretAccessKey><SessionToken>{4}</SessionToken>
<Expiration>{5}</Expiration></Credentials></{0}Result></{0}Response>"""


class Health(Enum):
    """What a source does when it is asked."""

    WELL = auto()
    AWAY = auto()  # it closes the connection, or its file is not there
    GARBAGE = auto()


class Identities:
    """The server. Credentials live for *life_s*; *accepted* are the access keys that the service took, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.life_s = 2.0
        self.health = Health.WELL
        self.accepted: list[str] = []
        self.token = "token"  # of a web identity, and of the agent's caller
        self.url = ""
        self._ends_at: dict[str, float] = {}
        self.issued_count = 0

    def issue(self) -> dict[str, str]:
        self.issued_count += 1
        key = f"ASIA{self.issued_count:06}"
        self._ends_at[key] = time.time() + self.life_s
        ends = datetime.now(UTC) + timedelta(seconds=self.life_s)
        return {
            "AccessKeyId": key,
            "SecretAccessKey": f"secret-of-{key}",
            "Token": f"token-of-{key}",
            "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Identities]:
        application = web.Application()
        application.add_routes(
            [
                web.post("/", self._sts),
                web.get("/container", self._container),
                web.post("/kinesis", self._kinesis),
            ]
        )
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    def _answer(self, request: web.Request, make: Callable[[], str]) -> web.Response:
        match self.health:
            case Health.WELL:
                return web.Response(text=make())
            case Health.AWAY:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            case Health.GARBAGE:
                return web.Response(text="<html>hello</html>")

    async def _sts(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("WebIdentityToken", self.token) != self.token:
            raise web.HTTPBadRequest(
                text="<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code>"
                "<Message>The token is no token</Message></Error></ErrorResponse>"
            )

        def make() -> str:
            found = self.issue()
            values = (found[name] for name in ("AccessKeyId", "SecretAccessKey", "Token", "Expiration"))
            return STS_ANSWER.format(str(form["Action"]), ROLE, *values)

        return self._answer(request, make)

    async def _container(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != self.token:
            raise web.HTTPUnauthorized
        return self._answer(request, lambda: json.dumps(self.issue()))

    async def _kinesis(self, request: web.Request) -> web.Response:
        key = request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        kind = "application/x-amz-json-1.1"
        if self._ends_at.get(key, 0.0) < time.time():
            code = "ExpiredTokenException" if key in self._ends_at else "UnrecognizedClientException"
            return web.json_response({"__type": code, "message": "refused"}, status=400, content_type=kind)
        self.accepted.append(key)
        return web.json_response({"StreamNames": [], "HasMoreStreams": False}, content_type=kind)


class Source:
    """One source: the environment of a client that has no other, and ways to break it; *identities* runs."""

    def __init__(self, identities: Identities) -> None:
        self.identities = identities
        self.folder = identities.folder

    def env(self) -> dict[str, str]:
        raise NotImplementedError

    def make(self, health: Health) -> None:
        self.identities.health = health


def base_env(identities: Identities) -> dict[str, str]:
    return {
        "HOME": str(identities.folder),
        "AWS_REGION": "eu-west-1",
        "AWS_CONFIG_FILE": str(identities.folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(identities.folder / "credentials"),
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_STS": identities.url,
        "AWS_ENDPOINT_URL_SSO": identities.url,
        "AWS_ENDPOINT_URL_KINESIS": f"{identities.url}/kinesis",
    }


class WebIdentity(Source):
    """IRSA: a token in a file, for STS."""

    def env(self) -> dict[str, str]:
        return {"AWS_WEB_IDENTITY_TOKEN_FILE": str(self.folder / "token"), "AWS_ROLE_ARN": ROLE}

    def make(self, health: Health) -> None:
        super().make(Health.GARBAGE if health is Health.GARBAGE else Health.WELL)
        if health is Health.AWAY:
            (self.folder / "token").unlink(missing_ok=True)
        else:
            (self.folder / "token").write_text(self.identities.token)


class Container(Source):
    """The agent of EKS Pod Identity, or of ECS, with the caller's token in a file."""

    def env(self) -> dict[str, str]:
        (self.folder / "token").write_text(self.identities.token)
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.identities.url}/container",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(self.folder / "token"),
        }


class Caller:
    """A process that calls Kinesis all the time with a client of the worker's, and tells how each call ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.ends: list[dict[str, Any]] = []

    async def next_end(self) -> dict[str, Any]:
        """Return how the next call ended: `error`, null for an answer, and the `problem` of the credentials."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"expected the process to run, it ended with {await self._process.wait()}"
        end: dict[str, Any] = json.loads(line)
        self.ends.append(end)
        return end

    async def until(self, is_wanted: Callable[[dict[str, Any]], bool], *, within_s: float = 60.0) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            while not is_wanted(end := await self.next_end()):
                pass
        return end


@asynccontextmanager
async def calling(env: dict[str, str]) -> AsyncIterator[Caller]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.field.caller", env=env, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Caller(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
