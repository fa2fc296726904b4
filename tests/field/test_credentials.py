"""A source of AWS credentials: there late, ending every two seconds, away, and answering garbage.

Of the role of a service account `test_worker_credentials.py` shows it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import CredentialRetrievalError
from support.field.identities import Container, Health, Identities, base_env, calling
from support.requires import ROOT

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.watchdog import running_processes
from simplu_worker.aws import clients
from simplu_worker.aws.credentials import CredentialSource
from simplu_worker.network_errors import NO_ANSWER

BACK_S = 30.0  # "within seconds", on a machine that does other things too
LIVES = 2  # credentials that end while a client calls


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
