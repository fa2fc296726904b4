"""Ask the sources of AWS credentials, for as long as it takes until one has some.

botocore asks its chain once, and keeps that it found nothing. Here it is asked when a request is to be signed, and
again when it had nothing, failed, or AWS refused what it had. Meanwhile requests get a transient
`CredentialRetrievalError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Final

import botocore.session
import structlog
from aiobotocore.credentials import AioCredentialResolver
from botocore import exceptions as botocore_errors
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, ProfileNotFound
from yarl import URL

from simplu_worker.network_errors import NO_ANSWER, NO_CONNECTION, network_cause
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import SharedAnswer

CA_SETTING: Final = "AWS_CA_BUNDLE"


def unanswered_text(exc: Exception) -> str:
    """Return the address and the cause, or the text of *exc*."""
    facts = getattr(exc, "kwargs", {})
    cause, address = facts.get("error"), facts.get("endpoint_url") or facts.get("proxy_url")
    if address is None:
        return str(exc) if cause is None else f"AWS: {network_cause(cause, ca_setting=CA_SETTING)}"
    place = URL(str(address)).with_user(None).with_query(None)
    if isinstance(exc, botocore_errors.ConnectTimeoutError):
        return f"{place}: {NO_CONNECTION}"
    if isinstance(exc, botocore_errors.ReadTimeoutError):
        return f"{place}: {NO_ANSWER}"
    if cause is None:
        return str(exc)
    return f"{place}: {network_cause(cause, ca_setting=CA_SETTING)}"


ANSWER_KEPT_S: Final = 1.0  # a refreshed one too: however short-lived credentials are, no request asks for itself alone
ASK_MAX_S: Final = 10.0  # longer than botocore tries an agent of a container: three times, for two seconds each
EXPIRED_AFTER_S: Final = 5.0
CAUSE_MAX_LENGTH: Final = 300
NOTHING_FOUND: Final = (
    "no source has any: expected them in the environment, a profile, a web identity, or the role of a container or "
    "an instance"
)

log = structlog.get_logger(__name__)


class CredentialSource:
    """The credentials of all clients; to botocore both its chain and what the chain found.

    *problem* is why there are none. *expired_since* is since when AWS says, in each answer, that they have expired.
    """

    def __init__(
        self, new_chain: Callable[[str | None], AioCredentialResolver], *, answer_kept_s: float = ANSWER_KEPT_S
    ) -> None:
        self.problem: str | None = None
        self.expired_since: float | None = None
        self.region: str | None = None  # of the first client; STS is asked there
        self._new_chain = new_chain
        self._answer_kept_s = answer_kept_s
        self._answers = SharedAnswer(self._ask, fresh_s=answer_kept_s)
        self._found: Any = None
        self._found_at = -inf
        self._frozen: ReadOnlyCredentials | None = None
        self._is_asking = False

    @property
    def method(self) -> str:
        """The source, as botocore names it."""
        return "any source" if self._found is None else str(self._found.method)

    async def load_credentials(self) -> CredentialSource:
        """Return itself, at once: a client can be made before there are credentials."""
        return self

    def get_deferred_property(self, _name: str) -> Callable[[], Awaitable[str | None]]:
        """Return what gives the account, for botocore."""
        return self.get_account_id

    async def get_account_id(self) -> str | None:
        """Return the account, where the source tells it. Raises CredentialRetrievalError."""
        account_id: str | None = (await self.get_frozen_credentials()).account_id
        return account_id

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the credentials to sign with. Raises CredentialRetrievalError.

        Concurrent requests share an answer. While credentials are renewed, the others use the old ones.
        """
        if self._frozen is None or not self._is_asking:
            await self._answers()
        if self._frozen is None:
            raise CredentialRetrievalError(provider=self.method, error_msg=self.problem)
        return self._frozen

    def forget(self) -> None:
        """Ask all sources again before the next request, as AWS refused the credentials; not those just found."""
        if loop_time() - self._found_at >= self._answer_kept_s:
            self._found = self._frozen = None
            self._answers.forget()

    def note_answer(self, *, are_expired: bool) -> None:
        """Take over whether AWS says that the credentials of a request have expired."""
        if not are_expired:
            self.expired_since = None
        elif self.expired_since is None:
            self.expired_since = loop_time()

    @property
    def are_expired(self) -> bool:
        """Whether they have been expired for longer than renewed ones need to come."""
        return self.expired_since is not None and loop_time() - self.expired_since > EXPIRED_AFTER_S

    async def _ask(self) -> None:
        self._is_asking, problem = True, None
        try:
            async with asyncio.timeout(ASK_MAX_S):
                if self._found is None:
                    self._found, self._found_at = await self._new_chain(self.region).load_credentials(), loop_time()
                self._frozen = None if self._found is None else await self._found.get_frozen_credentials()
            if self._frozen is None:
                problem = NOTHING_FOUND
        except Exception as exc:  # noqa: BLE001 - sources are files, programs and servers, and botocore parses them
            self._frozen, problem = None, describe(exc)
        finally:  # cancelled, too: the next one in the line asks
            self._is_asking = False
        if problem is not None and problem != self.problem:
            log.warning("credentials.unavailable", source=self.method, error=problem)
        if problem is None and self.problem is not None:
            log.info("credentials.available", source=self.method)
        self.problem = problem


def describe(exc: Exception) -> str:
    """Return why a source gave no credentials, without what it answered instead."""
    if isinstance(exc, OSError):  # a timeout too
        return f"{exc.filename}: {exc.strerror}" if exc.filename else network_cause(exc, ca_setting=CA_SETTING)
    # botocore's own: that a token may not contain a line break, that new credentials are expired already.
    if isinstance(exc, BotoCoreError):
        return " ".join(unanswered_text(exc).split())[:CAUSE_MAX_LENGTH]
    if isinstance(exc, ClientError) or type(exc) in {ValueError, RuntimeError}:
        return " ".join(str(exc).split())[:CAUSE_MAX_LENGTH]
    return f"expected credentials of AWS, got something else ({type(exc).__name__})"


def names_region(profile: str | None) -> bool:
    """Return whether *profile* names a region; True where opening a client will name its problem."""
    try:
        return "region" in botocore.session.Session(profile=profile or "default").get_scoped_config()
    except ProfileNotFound:
        return profile is not None
    except BotoCoreError:  # a file that is not in the format of profiles
        return True
