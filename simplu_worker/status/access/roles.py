"""The callers over HTTP, by their bearer tokens: roles, and the tenants that a producer may ask for. Pure."""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec

from simplu_worker.operations.operation import ID_MAX
from simplu_worker.vocabulary import Role

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
    """A token of API_TOKENS_FILE, by its SHA-256; a producer's has the tenants that it may ask for."""

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
        """Return whether the caller may see the tenant: a producer only those of its token."""
        return self.role is not Role.PRODUCER or any(one.fits(business_id, location_id) for one in self.tenants)


class Tokens:
    """The tokens of operators and viewers, and what *listed* returns at the moment, None without a file."""

    def __init__(
        self,
        *,
        operator: str | None = None,
        viewer: str | None = None,
        listed: Callable[[], Sequence[ListedToken]] | None = None,
    ) -> None:
        own = ((Role.OPERATOR, operator), (Role.VIEWER, viewer))
        self._own = {role: _digest(token.encode()) for role, token in own if token}
        self._listed = listed

    def __repr__(self) -> str:
        return f"Tokens({', '.join(self.variables(Role)) or 'none'})"

    def variables(self, roles: Collection[Role] | type[Role]) -> Sequence[str]:
        """Return the variables that hold tokens of *roles*."""
        own = [VARIABLES[role] for role in self._own if role in roles]
        return own if self._listed is None else [*own, LIST_VARIABLE]

    def caller_of(self, authorization: str) -> Caller | None:
        """Return the caller with the header `Authorization`; None for a wrong one.

        Every token is compared, each in a time that does not depend on its bytes.
        """
        scheme, _, sent = authorization.partition(" ")
        # aiohttp represents undecodable bytes as surrogates, which no token has.
        sent_digest = _digest(sent.strip().encode(errors="surrogatepass"))
        found = [Caller(role) for role, digest in self._own.items() if hmac.compare_digest(sent_digest, digest)]
        found += [
            Caller(one.role, one.name, one.tenants)
            for one in (() if self._listed is None else self._listed())
            if hmac.compare_digest(sent_digest, one.sha256)
        ]
        return found[0] if found and sent.strip() and scheme.lower() == "bearer" else None


def decode_tokens(text: bytes) -> Sequence[ListedToken]:
    """Return the tokens of API_TOKENS_FILE, `{"tokens": [{"name", "role", "sha256", "tenants"}]}`.

    Raises ValueError with an error for people.
    """
    try:
        tokens = msgspec.json.decode(text, type=_TokensFile).tokens
    except msgspec.ValidationError as exc:
        raise ValueError(str(exc)) from None
    except (msgspec.DecodeError, UnicodeError):
        raise ValueError('expected JSON such as {"tokens": []}, got other bytes') from None
    for member, values in (("name", [one.name for one in tokens]), ("sha256", [one.sha256 for one in tokens])):
        if repeated := _first_repeated(values):
            raise ValueError(f"{member}: expected another one for each token, got {repeated} twice")
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


def _first_repeated(values: Iterable[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)
