"""A source of AWS credentials: there late, ending every two seconds, away, and answering garbage."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from aiohttp import web
from support.requires import ROOT

BACK_S = 30.0  # "within seconds", on a machine that does other things too
LIVES = 2  # credentials that end while a client calls
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
            [web.post("/", self._sts), web.get("/container", self._container), web.post("/kinesis", self._kinesis)]
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


def web_identity_env(identities: Identities) -> dict[str, str]:
    """Return the variables of IRSA: a token in a file, for STS."""
    return {"AWS_WEB_IDENTITY_TOKEN_FILE": str(identities.folder / "token"), "AWS_ROLE_ARN": ROLE}


def make_web_identity(identities: Identities, health: Health) -> None:
    identities.health = Health.GARBAGE if health is Health.GARBAGE else Health.WELL
    if health is Health.AWAY:
        (identities.folder / "token").unlink(missing_ok=True)
    else:
        (identities.folder / "token").write_text(identities.token)


def container_env(identities: Identities) -> dict[str, str]:
    """Return the variables for the agent of EKS Pod Identity, or of ECS, with the caller's token in a file."""
    (identities.folder / "token").write_text(identities.token)
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{identities.url}/container",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(identities.folder / "token"),
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


@pytest_asyncio.fixture
async def identities(tmp_path: Path) -> AsyncIterator[Identities]:
    async with Identities(tmp_path).running() as running:
        yield running


def is_answered(end: dict[str, Any]) -> bool:
    return end["error"] is None


def has_no_credentials(end: dict[str, Any]) -> bool:
    """Return whether a call failed for lack of credentials, and says why.

    One that had some, and was refused, may come to its end when another one has none any more.
    """
    return end["error"] is not None and end["problem"] is not None and end["problem"] in end["error"]


@pytest.mark.slow(12)
async def test_client_has_credentials_again_whatever_its_source_did(identities: Identities) -> None:
    python = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": os.environ["PATH"]}
    env = python | base_env(identities) | container_env(identities)
    identities.health = Health.AWAY
    async with calling(env) as caller:
        await caller.until(has_no_credentials)
        for trouble in (None, Health.AWAY, Health.GARBAGE):
            if trouble is not None:
                identities.health = trouble
                end = await caller.until(has_no_credentials)
                assert not any(word in end["error"] for word in ("secret-of", "token-of", "hello"))
            identities.health = Health.WELL
            mended_at = time.monotonic()
            await caller.until(is_answered)
            assert time.monotonic() - mended_at < BACK_S
            seen = len(identities.accepted)
            while len(set(identities.accepted[seen:])) < LIVES:
                await caller.until(is_answered)
        problems = {end["problem"] for end in caller.ends if end["problem"]}
        errors = {end["error"] for end in caller.ends if end["error"]}
    others = [error for error in errors if not any(problem in error for problem in problems)]
    assert all("refused" in error for error in others)  # ended on the way: the next call has new ones


@pytest.mark.slow(6)
async def test_check_names_the_credentials(identities: Identities) -> None:
    shard = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": "1", "DATABASE_NAME": "d", "DATABASE_USERNAME": "u"}
    queues = {f"SQS_{name}_QUEUE_URL": f"http://127.0.0.1:1/1/{name}" for name in ("ORDER_EVENTS", "DEAD_LETTER")}
    env = base_env(identities) | web_identity_env(identities) | shard | queues
    found = []
    for health in (Health.AWAY, Health.GARBAGE, Health.WELL):
        make_web_identity(identities, health)
        status, report = await check(env)
        assert status == 1  # there is no shard
        found.append(next(one for one in report["dependencies"] if one["dependency"] == "credentials"))
    assert [one["status"] for one in found] == ["failed", "failed", "ok"]
    assert "No such file or directory" in found[0]["result"]
    assert "got something else" in found[1]["result"] or "invalid XML" in found[1]["result"]
    assert found[2]["result"] == "found by assume-role-with-web-identity"


async def check(env: dict[str, str]) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", "check", "--json"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert stdout, stderr.decode()
    return process.returncode or 0, json.loads(stdout)
