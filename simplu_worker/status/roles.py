"""Callers by their tokens, and what each role sees of an answer. Pure.

Texts are shown by a list of members, states by a list of words; a new member is hidden until it is listed. Without a
token, where `API_OPEN_READS` allows it, counts and states are seen; viewers see names, ids, places and times too, and
no error text, result or record.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import ipaddress
import re
from collections import Counter
from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec

from simplu_worker import vocabulary
from simplu_worker.operations.operation import ID_MAX
from simplu_worker.shards.health.assessment import UNFINISHED
from simplu_worker.status.words import OK, ProblemCause, Role, Severity, UnreadyReason

if TYPE_CHECKING:
    from simplu_worker.status.tls import WatchedFiles

TOKENS_MAX: Final = 1000
VARIABLES: Final = {Role.OPERATOR: "API_TOKEN", Role.VIEWER: "API_VIEWER_TOKEN"}
LIST_VARIABLE: Final = "API_TOKENS_FILE"

Pattern: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_MAX)]


class TenantPattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Tenants by their two ids, in which `*` stands for any characters."""

    business_id: Pattern
    location_id: Pattern

    def fits(self, business_id: str, location_id: str) -> bool:
        """Return whether the tenant is one of these."""
        return _fits(self.business_id, business_id) and _fits(self.location_id, location_id)


class ListedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A token of API_TOKENS_FILE, by its SHA-256; a producer's has its tenants."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,64}$")]
    role: Role
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    tenants: Annotated[tuple[TenantPattern, ...], msgspec.Meta(max_length=100)] = ()


class Caller(NamedTuple):
    """Who calls: *name* is that of a token in API_TOKENS_FILE."""

    role: Role
    name: str | None = None
    tenants: tuple[TenantPattern, ...] = ()

    def may_see(self, business_id: str, location_id: str) -> bool:
        """Return whether the caller may see the tenant."""
        return self.role is not Role.PRODUCER or any(one.fits(business_id, location_id) for one in self.tenants)


class Tokens:
    """The tokens of the variables, and those of API_TOKENS_FILE."""

    def __init__(
        self,
        *,
        operator: str | None = None,
        viewer: str | None = None,
        listed: WatchedFiles[Sequence[ListedToken]] | None = None,
    ) -> None:
        own = ((Role.OPERATOR, operator), (Role.VIEWER, viewer))
        self._own = {role: _digest(token.encode()) for role, token in own if token}
        self._listed = listed

    def variables(self, roles: Collection[Role] | type[Role]) -> Sequence[str]:
        """Return the variables that hold tokens of *roles*."""
        own = [VARIABLES[role] for role in self._own if role in roles]
        return own if self._listed is None else [*own, LIST_VARIABLE]

    def caller_of(self, authorization: str) -> Caller | None:
        """Return the caller with the header `Authorization`, if any.

        Every token is compared, in a time that does not depend on its bytes.
        """
        scheme, _, sent = authorization.partition(" ")
        # aiohttp represents undecodable bytes as surrogates, which no token has.
        sent_digest = _digest(sent.strip().encode(errors="surrogatepass"))
        found = [Caller(role) for role, digest in self._own.items() if hmac.compare_digest(sent_digest, digest)]
        found += [
            Caller(one.role, one.name, one.tenants)
            for one in (() if self._listed is None else self._listed.value)
            if hmac.compare_digest(sent_digest, one.sha256)
        ]
        return found[0] if found and sent.strip() and scheme.lower() == "bearer" else None


def decode_tokens(text: bytes) -> Sequence[ListedToken]:
    """Return the tokens of API_TOKENS_FILE. Raises ValueError with an error for people."""
    try:
        tokens = msgspec.json.decode(text, type=_TokensFile).tokens
    except msgspec.ValidationError as exc:
        raise ValueError(str(exc)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise ValueError('expected JSON such as {"tokens": []}, got other bytes') from None
    for member in ("name", "sha256"):
        for value, count in Counter(getattr(one, member) for one in tokens).items():
            if count > 1:
                raise ValueError(f"{member}: expected another one for each token, got {value} twice")
    for one in tokens:
        if (one.role is Role.PRODUCER) != bool(one.tenants):
            expected = "some" if one.role is Role.PRODUCER else "none, as viewers and operators see all tenants"
            raise ValueError(f"tenants of {one.name}, {one.role}: expected {expected}, got {len(one.tenants)}")
    return tokens


class _TokensFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Annotated[list[ListedToken], msgspec.Meta(max_length=TOKENS_MAX)]


def _digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


def _fits(pattern: str, text: str) -> bool:
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]").replace("?", "[?]"))


# Names that labels of the metrics show as well, which need no token either; and times.
SHOWN_TEXTS: Final = frozenset(
    {"kind", "lastCheckAt", "lastHealthCheck", "name", "queue", "shardId", "streamShard", "version"}
)
STATE_MEMBERS: Final = frozenset(
    {"ready", "unable", "reason", "role", "state", "step", "citrus", "clock", "cause", "severity"}
)
STATES: Final[frozenset[str]] = frozenset(
    [
        *(OK, *UnreadyReason, *vocabulary.SourceState, *vocabulary.StreamShardState, *vocabulary.HoldState),
        *(*vocabulary.ShardState, *vocabulary.ServerRole, *vocabulary.Inability, *UNFINISHED, *Role),
        *(*vocabulary.HoldReason, *ProblemCause, *Severity),
    ]
)
OTHER_STATE: Final = "other"  # a state with a text of its own, such as an error
HIDDEN_MEMBERS: Final = frozenset({"result", "record", "recordBase64", "messageAttributes"})

VIEWER_TEXTS: Final = SHOWN_TEXTS | frozenset(
    [
        *("replica", "owner", "place", "target", "targets", "loop", "reads", "problems", "stream", "advice", "runbook"),
        *("checkpoint", "position", "at", "from", "level", "event", "about", "epochMovedAt", "serverVersion"),
        *("businessId", "locationId", "businessType", "movedTo", "createdAt", "shardsWithoutAnswer"),
        *("requestId", "status", "operation", "resourceType", "resourceId", "receivedAt", "completedAt", "rejectedAt"),
        *("tenant", "tenantIds", "sourceShard", "targetShard", "phase", "startedAt", "notedAt"),
        *("problem", "subject", "stoppedShards"),
        *("source", "sequenceNumber", "messageId", "deadLetterQueue", "since"),
        *("readUpTo", "answerUntil", "searchedTo", "next"),
    ]
)
VIEWER_STATES: Final = STATES | {*vocabulary.TenantState, *vocabulary.DeadLetterReason, vocabulary.OTHER_REPLICA}
OUTCOMES: Final[frozenset[str]] = frozenset(vocabulary.Failure)  # the errors that are words, and quote nothing
HIDDEN_CAUSE: Final = "this answer failed; the cause is shown to operators, and in the worker's log"

_EVENT: Final = re.compile(r"[a-z_]+\.[a-z_]+")  # of the worker; a library's event is a text
_HOST: Final = re.compile(r"(?P<name>\[[^\]]*\]|[^:\[\]]*)(:\d*)?")


class Reduction(msgspec.Struct, frozen=True):
    """The shown texts: of members in *texts*, words in *states*, and *errors* that are words."""

    texts: frozenset[str]
    states: frozenset[str]
    errors: frozenset[str] = frozenset()
    hidden: frozenset[str] = HIDDEN_MEMBERS

    def apply(self, view: Any) -> Any:
        """Return the shown part of a JSON value."""
        match view:
            case dict():
                shown = {name: self._member(name, value) for name, value in view.items() if name not in self.hidden}
                return {name: value for name, value in shown.items() if value is not None or view[name] is None}
            case list() | tuple():
                shown_items = [(self.apply(item), item) for item in view]
                return [shown for shown, item in shown_items if shown is not None or item is None]
            case bool() | int() | float():
                return view
            case _:
                return None

    def _member(self, name: str, value: Any) -> Any:
        if isinstance(value, list | tuple) and name in self.texts:
            return [str(item) if isinstance(item, str) else self.apply(item) for item in value]
        if not isinstance(value, str):
            return self.apply(value)
        if name in STATE_MEMBERS:
            return str(value) if value in self.states else OTHER_STATE
        if name == "error":
            return str(value) if value in self.errors else None
        is_shown = name in self.texts and (name != "event" or _EVENT.fullmatch(value) is not None)
        return str(value) if is_shown else None


COUNTS_AND_STATES: Final = Reduction(SHOWN_TEXTS, STATES, hidden=HIDDEN_MEMBERS | {"recentErrors", "troubles"})
FOR_VIEWERS: Final = Reduction(VIEWER_TEXTS, VIEWER_STATES, errors=OUTCOMES)


def for_viewers(status: int, answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as viewers see it: errors of the request itself stay."""
    plain = msgspec.to_builtins(answer, builtin_types=(msgspec.Raw,))
    shown: dict[str, Any] = FOR_VIEWERS.apply(plain)
    if isinstance(error := plain.get("error"), str) and "error" not in shown:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            shown["error"] = HIDDEN_CAUSE
        elif status >= HTTPStatus.BAD_REQUEST:
            shown["error"] = error
    return shown


def for_producers(status: int, answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as a producer sees it, without what is wrong with a shard."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and "error" in answer:
        return answer | {"error": HIDDEN_CAUSE}
    return answer


def is_own_host(host: str, http_host: str | None) -> bool:
    """Return whether the `Host` of a request is *http_host*, an IP address or localhost.

    A page of another site may lead here by a name of its own (DNS rebinding), which a browser then sends.
    """
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["name"].strip("[]").lower()
    if name in {"localhost", (http_host or "localhost").lower()}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
