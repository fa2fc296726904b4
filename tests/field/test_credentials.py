"""A source of AWS credentials: there late, ending every two seconds, away, and answering garbage."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from botocore.exceptions import CredentialRetrievalError
from support.field.identities import Container, Health, Identities, WebIdentity, base_env, calling
from support.requires import ROOT

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import running_processes
from simplu_worker.aws import clients
from simplu_worker.aws.credentials import CredentialSource
from simplu_worker.network_errors import NO_ANSWER

BACK_S = 30.0  # "within seconds", on a machine that does other things too
LIVES = 2  # credentials that end while a client calls


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


def environment(source: Container) -> dict[str, str]:
    python = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": os.environ["PATH"]}
    return python | base_env(source.identities) | source.env()


@pytest.mark.slow(12)
async def test_client_has_credentials_again_whatever_its_source_did(identities: Identities) -> None:
    source = Container(identities)
    env = environment(source)
    source.make(Health.AWAY)
    async with calling(env) as caller:
        await caller.until(has_no_credentials)
        for trouble in (None, Health.AWAY, Health.GARBAGE):
            if trouble is not None:
                source.make(trouble)
                end = await caller.until(has_no_credentials)
                assert not any(word in end["error"] for word in ("secret-of", "token-of", "hello"))
            source.make(Health.WELL)
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


@pytest.mark.slow
async def test_program_that_hangs_is_named_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number_path = tmp_path / "number"
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\necho $$ >> {number_path}\nexec sleep 600\n")
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    number_path.touch()
    numbers: set[int] = set()
    for ask_max_s in (0.5, 10.0, 60.0):  # a busy machine may not begin the program in the shortest time
        source = CredentialSource(clients._new_chain, ask_max_s=ask_max_s)
        with pytest.raises(CredentialRetrievalError, match=NO_ANSWER):
            await source.get_frozen_credentials()
        if numbers := {int(number) for number in number_path.read_text().split()}:
            break

    async def are_gone() -> bool:
        return numbers.isdisjoint(process.pid for process in running_processes())

    assert len(numbers) == 1
    assert await poll_until(are_gone, within_s=60.0)


@pytest.mark.slow(6)
async def test_check_names_the_credentials(identities: Identities) -> None:
    source = WebIdentity(identities)
    shard = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": "1", "DATABASE_NAME": "d", "DATABASE_USERNAME": "u"}
    queues = {f"SQS_{name}_QUEUE_URL": f"http://127.0.0.1:1/1/{name}" for name in ("ORDER_EVENTS", "DEAD_LETTER")}
    env = base_env(identities) | source.env() | shard | queues
    found = []
    for health in (Health.AWAY, Health.GARBAGE, Health.WELL):
        source.make(health)
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
