"""Every source of AWS credentials: there late, ending every two seconds, away, and answering garbage."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.field.identities import SOURCES, Container, Health, Identities, Source, WebIdentity, base_env, calling
from support.requires import ROOT

BACK_S = 10.0  # "within seconds", on a machine that does other things too
LIVES = 3  # credentials that end while a client calls
QUICK = {"web identity"}


def is_answered(end: dict[str, Any]) -> bool:
    return end["error"] is None


def has_no_credentials(end: dict[str, Any]) -> bool:
    return end["error"] is not None and end["problem"] is not None


@pytest_asyncio.fixture
async def identities(tmp_path: Path) -> AsyncIterator[Identities]:
    async with Identities(tmp_path).running() as running:
        yield running


def environment(source: Source) -> dict[str, str]:
    """Return the environment of a caller whose only source is *source*."""
    python = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": os.environ["PATH"]}
    return python | base_env(source.identities) | source.env()


@pytest.mark.parametrize("name", [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow(12)) for one in SOURCES])
async def test_client_has_credentials_again_within_seconds_whatever_its_source_did(
    name: str, identities: Identities
) -> None:
    """Missing at the start, ended under load, away and garbage: a call fails for a while, and nothing ends."""
    source = SOURCES[name](identities)
    env = environment(source)
    source.make(Health.AWAY)
    async with calling(env) as caller:
        await caller.until(has_no_credentials)
        for trouble in (None, Health.AWAY, Health.GARBAGE):
            if trouble is not None:
                source.make(trouble)
                end = await caller.until(has_no_credentials)
                assert end["problem"] in end["error"]
                assert not any(word in end["error"] for word in ("secret-of", "token-of", "hello"))
            source.make(Health.WELL)
            mended_at = time.monotonic()
            await caller.until(is_answered)
            assert time.monotonic() - mended_at < BACK_S
            seen = len(identities.accepted)
            while len(set(identities.accepted[seen:])) < LIVES:
                if name == "key file":  # nothing ends by itself there: another program writes new keys
                    source.make(Health.WELL)
                await caller.until(is_answered)
        refused = {end["error"] for end in caller.ends if end["error"] and end["problem"] is None}
    assert all("refused" in error for error in refused)  # ended on the way: the next call has new ones


async def test_token_file_with_a_line_break_is_named(identities: Identities) -> None:
    """botocore refuses it for an agent; STS refuses it as a web identity."""
    for kind, cause in ((Container, "not a legal header value"), (WebIdentity, "InvalidIdentityToken")):
        source = kind(identities)
        source.make(Health.WELL)
        env = environment(source)
        (identities.folder / "token").write_text(f"{identities.token}\n")
        async with calling(env) as caller:
            end = await caller.until(has_no_credentials)
            assert cause in end["error"]
            (identities.folder / "token").write_text(identities.token)
            await caller.until(is_answered)
