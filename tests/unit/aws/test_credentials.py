"""One question to the sources of credentials at a time, and one answer for all who wait. No request leaves here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiobotocore.credentials import AioCredentialResolver, AioCredentials
from botocore.exceptions import CredentialRetrievalError

from simplu_worker.aws.clients import ANSWER_KEPT_S, CredentialSource, describe
from simplu_worker.network_errors import NO_ANSWER


class ScriptedProvider:
    METHOD = "scripted"

    def __init__(self, *answers: Callable[[], AioCredentials | None]) -> None:
        self.answers = list(answers)
        self.asked_count = 0
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def load(self) -> AioCredentials | None:
        self.asked_count += 1
        await self.is_open.wait()
        return self.answers.pop(0)()


def keys(name: str) -> Callable[[], AioCredentials]:
    return lambda: AioCredentials(name, "secret", method="scripted")


def source_of(provider: ScriptedProvider, *, answer_kept_s: float = ANSWER_KEPT_S) -> CredentialSource:
    return CredentialSource(lambda _: AioCredentialResolver(providers=[provider]), answer_kept_s=answer_kept_s)


async def test_source_is_asked_once_for_all_who_wait() -> None:
    provider = ScriptedProvider(keys("one"))
    source = source_of(provider)
    found = await asyncio.gather(*(source.get_frozen_credentials() for _ in range(100)))
    assert {frozen.access_key for frozen in found} == {"one"}
    assert provider.asked_count == 1
    assert (source.method, source.problem) == ("scripted", None)


async def test_refused_credentials_are_asked_for_anew() -> None:
    source = source_of(ScriptedProvider(keys("one"), keys("two")), answer_kept_s=0.0)
    assert (await source.get_frozen_credentials()).access_key == "one"
    source.forget()
    assert (await source.get_frozen_credentials()).access_key == "two"


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (FileNotFoundError(2, "No such file or directory", "/token"), "/token: No such file or directory"),
        (TimeoutError(), NO_ANSWER),
        (ValueError("Auth token value is not a legal header value"), "Auth token value is not a legal header value"),
        (KeyError("secret"), "expected credentials of AWS, got something else (KeyError)"),
        (UnicodeDecodeError("utf-8", b"secret", 0, 1, "x"), "expected credentials of AWS, got something else"),
        (CredentialRetrievalError(provider="p", error_msg="a\n b " + "x" * 999), "from p: a b xxx"),
    ],
)
def test_cause_is_named_without_what_the_source_answered(exc: Exception, expected: str) -> None:
    text = describe(exc)
    assert expected in text
    assert "secret" not in text
    assert len(text) <= 300
