"""The roles of callers over HTTP, by their bearer tokens. Pure."""

from __future__ import annotations

import hmac

from simplu_worker.vocabulary import Role


class Tokens:
    """The token of each role; a role without one has no callers."""

    def __init__(self, *, operator: str | None = None, viewer: str | None = None) -> None:
        self._tokens = {
            role: token.encode() for role, token in ((Role.OPERATOR, operator), (Role.VIEWER, viewer)) if token
        }

    def __repr__(self) -> str:
        return f"Tokens({', '.join(self._tokens) or 'none'})"

    @property
    def roles(self) -> frozenset[Role]:
        """The roles that have a token."""
        return frozenset(self._tokens)

    def role_of(self, authorization: str) -> Role | None:
        """Return the role of the header `Authorization`; None for a wrong one.

        Every token is compared, each in a time that does not depend on its bytes.
        """
        scheme, _, sent = authorization.partition(" ")
        # aiohttp represents undecodable bytes as surrogates, which no token has.
        sent_token = sent.strip().encode(errors="surrogatepass")
        found = [role for role, token in self._tokens.items() if hmac.compare_digest(sent_token, token)]
        return found[0] if found and scheme.lower() == "bearer" else None
