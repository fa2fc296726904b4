"""`FEED_FILE` and `FEED_ALLOWED_HOSTS`, checked as a whole before any of it is used (docs/feed.md). Pure.

Who may write `FEED_FILE`, or the DNS of a destination, must not lead the worker to its own ports, a metadata service or
a database. So an address that is not of the public internet needs a network of the list, whatever its name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Final, NamedTuple, Self, TypeAlias
from urllib.parse import SplitResult, urlsplit

import msgspec

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.types import DestinationTerms
from simplu_worker.vocabulary import DestinationKind, FeedBeginning, FeedData

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

VARIABLE: Final = "FEED_ALLOWED_HOSTS"
GLOBAL_UNICAST: Final = IPv6Network("2000::/3")  # IANA, Internet Protocol Version 6 Address Space
SIX_TO_FOUR: Final = IPv6Network("2002::/16")  # RFC 3056: each leads to an address of IPv4


class AllowedHosts(msgspec.Struct, frozen=True):
    """The list: patterns of names, as `*.example.com`, and networks, as `10.0.0.0/8`; empty: any public host."""

    patterns: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: tuple[str, ...]) -> Self:
        """Return the list with *entries*, each an address, a network or a pattern. Raises `ValueError`."""
        networks = {entry: network for entry in entries if (network := _network(entry)) is not None}
        patterns = tuple(entry.lower().rstrip(".") for entry in entries if entry not in networks)
        return cls(patterns, tuple(networks.values()))

    @property
    def is_empty(self) -> bool:
        """Whether the list has no entry."""
        return not self.patterns and not self.networks

    def host_problem(self, host: str) -> str | None:
        """Return why no destination may have *host*, a name or an address; None if its address decides."""
        if (address := parse_address(host)) is not None:
            return self.address_problem(host, address)
        if self.is_empty or self.networks or self._has_name(host):
            return None
        return f"expected a host of {VARIABLE}, got {host}"

    def address_problem(self, host: str, address: Address) -> str | None:
        """Return why *host* may not be connected to at *address*."""
        if any(address in network for network in self.networks):
            return None
        if not is_public(address):
            return f"expected an address of the public internet, or one of {VARIABLE}, got another for {host}"
        if self.is_empty or self._has_name(host):
            return None
        return f"expected a host of {VARIABLE}, got {host}"

    def _has_name(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def parse_address(host: str) -> Address | None:
    """Return the address that *host* is; None for a name, and for an address with a zone."""
    try:
        return None if "%" in host else ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Return whether *address* is of the public internet, by the registries of IANA."""
    is_unicast = isinstance(address, IPv4Address) or (address in GLOBAL_UNICAST and address not in SIX_TO_FOUR)
    return address.is_global and is_unicast and not address.is_multicast


def _network(entry: str) -> Network | None:
    try:
        return ip_network(entry)
    except ValueError:
        if "/" in entry:
            raise ValueError(f"expected a network such as 10.0.0.0/8, got {entry}") from None
        return None


DESTINATIONS_MAX: Final = 100
SECRETS_MAX: Final = 4  # each signs every request
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - not a secret
SECRET_MIN_BYTES, SECRET_MAX_BYTES = 24, 64  # Standard Webhooks, "Signature scheme"
EXPECTED_SECRET: Final = f"expected {SECRET_PREFIX} and {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes in base64"
_REGION: Final = "[a-z0-9]+(?:-[a-z0-9]+)+"  # the SDK refuses others, and then the whole feed would not start
_STREAM: Final = re.compile(rf"(arn:[a-z-]+:kinesis:{_REGION}:[0-9]{{12}}:stream/)?[a-zA-Z0-9_.-]{{1,128}}", re.ASCII)
_QUEUE: Final = re.compile(r"https?://[^\s@?#]+/[\w-]{1,75}\.fifo", re.ASCII)
_TARGETS: Final = {
    DestinationKind.KINESIS: (_STREAM, "the name or ARN of a stream"),
    DestinationKind.SQS: (_QUEUE, "the URL of a queue whose name ends in .fifo"),
}
_VISIBLE: Final = re.compile(r"[!-~]+")


class DestinationMembers(DestinationTerms, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """The members of one destination, as in the file; the repr does not show the target."""

    kind: DestinationKind
    target: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    all_tenants: bool = False
    secret_files: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=SECRETS_MAX)] | None = None

    def __repr__(self) -> str:
        return f"DestinationMembers({self.name!r}, {self.kind.value})"


class FeedDestination(NamedTuple):
    """A checked destination, with the secrets of a webhook, the one of the first signature first."""

    terms: DestinationMembers
    secrets: tuple[str, ...] = ()


DECODING_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Whole(msgspec.Struct, forbid_unknown_fields=True):
    destinations: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=DESTINATIONS_MAX)]


def parse_feed_file(
    content: bytes, allowed: AllowedHosts, read_secret: Callable[[str], str]
) -> tuple[FeedDestination, ...]:
    """Return the destinations, in their order; raise `ConfigurationError` with every problem, without secrets.

    *read_secret* returns the text of a file, or raises `OSError`.
    """
    try:
        entries = msgspec.json.decode(content, type=_Whole).destinations
    except DECODING_ERRORS as exc:
        raise ConfigurationError(f"FEED_FILE: {_describe(exc)}") from None
    problems: list[str] = []
    destinations: list[FeedDestination] = []
    for number, entry in enumerate(entries, 1):
        try:
            members = msgspec.json.decode(entry, type=DestinationMembers)
        except DECODING_ERRORS as exc:
            problems.append(f"destination {number}: {_describe(exc)}")
            continue
        if members.kind is DestinationKind.NOTIFICATION and members.data is None:  # which always had the data
            members = msgspec.structs.replace(members, data=FeedData.CURRENT)
        wrong = list(_rule_problems(members, allowed))
        if any(one.terms.name == members.name for one in destinations):
            wrong.append("name: expected another one for each destination, got it more than once; rename one")
        destinations.append(FeedDestination(members, _read_secrets(members, read_secret, wrong)))
        problems += [f"destination {members.name}: {problem}" for problem in wrong]
    if problems:
        raise ConfigurationError(*(f"FEED_FILE: {problem}" for problem in problems))
    return tuple(destinations)


def _describe(error: Exception) -> str:
    if not isinstance(error, msgspec.ValidationError):
        return "expected JSON in UTF-8, got something else"
    text, _, place = str(error).replace("`", "").partition(" - at $.")
    if text.startswith("Invalid enum value"):  # which it quotes
        text = "expected one of the values of docs/feed.md, got another"
    return f"{place}: {text}" if place else text


def _rule_problems(members: DestinationMembers, allowed: AllowedHosts) -> Iterator[str]:
    if members.all_tenants == (members.tenants is not None):
        got = "both" if members.all_tenants else "neither"
        yield f"tenants, allTenants: expected either a list of tenants or allTenants true, got {got}"
    if not _is_beginning(members.begin):
        yield "begin: expected now, oldest or a time such as 2026-01-31T09:00:00Z, got something else"
    is_webhook = members.kind is DestinationKind.WEBHOOK
    if is_webhook and members.secret_files is None:
        yield "secretFiles: expected the path of a file with a secret, whsec_ and base64, got none; webhooks are signed"
    if not is_webhook and members.secret_files is not None:
        yield "secretFiles: expected none, since only webhooks are signed; remove it"
    if members.kind not in _TARGETS:
        yield from _url_problems(members, allowed)
    elif _TARGETS[members.kind][0].fullmatch(members.target) is None:
        yield f"target: expected {_TARGETS[members.kind][1]}, got something else"


def _is_beginning(text: str) -> bool:
    try:
        return text in [*FeedBeginning] or bool(msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)]))
    except msgspec.ValidationError:
        return False


def _url_problems(members: DestinationMembers, allowed: AllowedHosts) -> Iterator[str]:
    url = _split_url(members.target)
    if url is None or url.scheme not in {"http", "https"}:
        yield "target: expected an https URL, got something else"
        return
    if url.username is not None or url.fragment:
        yield "target: expected a URL without user, password and fragment"
    if members.kind is DestinationKind.NOTIFICATION and url.query:
        yield "target: expected a URL without a query, since /api/notifications is appended"
    if url.scheme == "http" and allowed.is_empty:
        yield f"target: expected https; for http, which anyone on the way can read, name the host in {VARIABLE}"
    if (problem := allowed.host_problem(url.hostname or "")) is not None:
        yield f"target: {problem}"


def _split_url(text: str) -> SplitResult | None:
    try:
        url = urlsplit(text)
        is_whole = bool(url.hostname) and url.port != 0  # .port raises ValueError for one over 65535
    except ValueError:
        return None
    return url if is_whole and _VISIBLE.fullmatch(text) is not None and "\\" not in text else None


def _read_secrets(
    members: DestinationMembers, read_secret: Callable[[str], str], problems: list[str]
) -> tuple[str, ...]:
    secrets = []
    for path in members.secret_files or ():
        try:
            secrets.append(read_secret(path).strip())
        except OSError as exc:
            problems.append(f"secretFiles: expected a readable file at {path}, got: {exc.strerror}")
        else:
            if not is_secret(secrets[-1]):
                problems.append(f"secretFiles: {path}: {EXPECTED_SECRET}, got another text")
    return tuple(secrets)


def is_secret(text: str) -> bool:
    """Return whether *text* is the secret of a webhook."""
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return text.startswith(SECRET_PREFIX) and SECRET_MIN_BYTES <= len(key) <= SECRET_MAX_BYTES
