"""`FEED_FILE` and `FEED_ALLOWED_HOSTS`, checked as a whole before any of it is used (docs/feed.md). Pure.

Who may write `FEED_FILE`, or the DNS of a destination, must not lead the worker to its own ports, a metadata service or
a database. So an address that is not of the public internet needs a network of the list, whatever its name.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Final, Self, TypeAlias, assert_never
from urllib.parse import SplitResult, urlsplit

import msgspec

from simplu_worker.errors import ConfigurationError
from simplu_worker.feed.types import DestinationTerms, FeedFilter
from simplu_worker.vocabulary import DestinationKind, FeedBeginning, FeedData, FeedKind, OnRefusal

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

VARIABLE: Final = "FEED_ALLOWED_HOSTS"
# Services that hand out credentials of the machine: of AWS (EC2, ECS, EKS), Azure, Alibaba, Oracle, Google.
METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd20:ce::254",
    )
)
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
        if any(address in network for network in self.networks if _may_admit(network, address)):
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
    """Return whether *address* is of the public internet, by the registries of IANA, and no metadata service."""
    if address in METADATA or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return address.is_global
    return address.is_global and address in GLOBAL_UNICAST and address not in SIX_TO_FOUR


def _may_admit(network: Network, address: Address) -> bool:
    return address not in METADATA or network.num_addresses == 1  # a metadata service has to be named by itself


def _network(entry: str) -> Network | None:
    try:
        return ip_network(entry)
    except ValueError:
        if "/" in entry:
            raise ValueError(f"expected a network such as 10.0.0.0/8, got {entry}") from None
        return None


DESTINATIONS_MAX: Final = 100
NAMES_MAX: Final = 100_000  # of one filter
SECRETS_MAX: Final = 4  # each signs every request
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - not a secret
SECRET_MIN_BYTES, SECRET_MAX_BYTES = 24, 64  # Standard Webhooks, "Signature scheme"
_REGION: Final = "[a-z0-9]+(?:-[a-z0-9]+)+"  # the SDK refuses others, and then the whole feed would not start
_STREAM: Final = re.compile(rf"(arn:[a-z-]+:kinesis:{_REGION}:[0-9]{{12}}:stream/)?[a-zA-Z0-9_.-]{{1,128}}", re.ASCII)
_QUEUE: Final = re.compile(r"https?://[^\s@?#]+/[\w-]{1,75}\.fifo", re.ASCII)
_VISIBLE: Final = re.compile(r"[!-~]+")

_Names = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1)], ...], msgspec.Meta(min_length=1, max_length=NAMES_MAX)
]


class DestinationMembers(msgspec.Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """The members of one destination, as in the file."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,40}$")]
    kind: DestinationKind
    target: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    data: FeedData | None = None
    tenants: _Names | None = None
    all_tenants: bool = False
    business_types: _Names | None = None
    resource_types: _Names | None = None
    kinds: Annotated[tuple[FeedKind, ...], msgspec.Meta(min_length=1)] | None = None
    begin: str = FeedBeginning.NOW
    tries: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    on_refusal: OnRefusal = OnRefusal.CONTINUE
    secret_files: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=SECRETS_MAX)] | None = None


class FeedDestination(msgspec.Struct, frozen=True):
    """A checked destination, whose repr shows neither the target nor the secrets."""

    terms: DestinationTerms
    kind: DestinationKind
    target: str
    secrets: tuple[str, ...] = ()  # of a webhook, the one of the first signature first

    def __repr__(self) -> str:
        return f"FeedDestination({self.terms.name!r}, {self.kind.value})"

    @property
    def name(self) -> str:
        """The name, by which the shards keep its cursors."""
        return self.terms.name


class FeedFile(msgspec.Struct, frozen=True):
    """The destinations, in the order of the file."""

    destinations: tuple[FeedDestination, ...]


def parse_feed_file(content: bytes, allowed: AllowedHosts, read_secret: Callable[[str], str]) -> FeedFile:
    """Return the destinations; raise `ConfigurationError` with every problem, without secrets.

    *read_secret* returns the text of a file, or raises `OSError` or `ValueError`.
    """
    try:
        whole = msgspec.json.decode(content)
    except msgspec.DecodeError as exc:
        raise ConfigurationError(f"FEED_FILE: expected JSON, got something else: {exc}") from None
    except (UnicodeDecodeError, RecursionError):
        raise ConfigurationError("FEED_FILE: expected JSON in UTF-8, got something else") from None
    problems: list[str] = []
    entries = _entries(whole, problems)
    found = [(_label(entry, place), *_members(entry)) for place, entry in enumerate(entries)]
    names = Counter(members.name for _, members, _ in found if members is not None)
    destinations = []
    for label, members, wrong in found:
        problems += [f"{label}: {problem}" for problem in wrong]
        if members is None:
            continue
        rules = list(_rule_problems(members, allowed))
        if names[members.name] > 1:
            rules.append("name: expected another one for each destination, got it more than once; rename one")
        secrets = _read_secrets(members, read_secret, rules)
        problems += [f"{label}: {problem}" for problem in rules]
        destinations.append(_destination(members, secrets))
    if problems:
        raise ConfigurationError(*(f"FEED_FILE: {problem}" for problem in dict.fromkeys(problems)))
    return FeedFile(tuple(destinations))


def _entries(whole: Any, problems: list[str]) -> Sequence[Any]:
    if not isinstance(whole, dict):
        problems.append('expected an object {"destinations": [...]}, got another value')
        return ()
    problems += ["expected no member beside destinations, got another" for name in whole if name != "destinations"]
    entries = whole.get("destinations")
    if not isinstance(entries, list) or not 1 <= len(entries) <= DESTINATIONS_MAX:
        count = f"{len(entries)}" if isinstance(entries, list) else "no array"
        problems.append(
            f"destinations: expected an array of 1 to {DESTINATIONS_MAX}, got {count}; unset FEED_FILE to have no feed"
        )
        return ()
    return entries


def _label(entry: Any, place: int) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    is_name = isinstance(name, str) and re.fullmatch("[a-z0-9-]{1,40}", name) is not None
    return f"destination {name}" if is_name else f"destination {place + 1}"


def _members(entry: Any) -> tuple[DestinationMembers | None, list[str]]:
    try:
        return msgspec.convert(entry, DestinationMembers), []
    except msgspec.ValidationError as exc:
        text, _, place = str(exc).replace("`", "").partition(" - at $.")
    if text.startswith("Invalid enum value"):  # which it quotes
        text = "expected one of the values of docs/feed.md, got another"
    return None, [f"{place}: {text}" if place else text]


def _rule_problems(members: DestinationMembers, allowed: AllowedHosts) -> Iterator[str]:
    if members.all_tenants == (members.tenants is not None):
        got = "both" if members.all_tenants else "neither"
        yield f"tenants, allTenants: expected either a list of tenants or allTenants true, got {got}"
    if _beginning(members.begin) is None:
        yield "begin: expected now, oldest or a time such as 2026-01-31T09:00:00Z, got something else"
    is_webhook = members.kind is DestinationKind.WEBHOOK
    if is_webhook and members.secret_files is None:
        yield "secretFiles: expected the path of a file with a secret, whsec_ and base64, got none; webhooks are signed"
    if not is_webhook and members.secret_files is not None:
        yield "secretFiles: expected none, since only webhooks are signed; remove it"
    match members.kind:
        case DestinationKind.KINESIS:
            if _STREAM.fullmatch(members.target) is None:
                yield "target: expected the name or ARN of a stream, got something else"
        case DestinationKind.SQS:
            if _QUEUE.fullmatch(members.target) is None:
                yield "target: expected the URL of a queue whose name ends in .fifo, got something else"
        case DestinationKind.WEBHOOK | DestinationKind.NOTIFICATION:
            yield from _url_problems(members, allowed)
        case _:
            assert_never(members.kind)


def _beginning(text: str) -> FeedBeginning | datetime | None:
    if text in [*FeedBeginning]:
        return FeedBeginning(text)
    try:
        time: datetime = msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        return None
    return time


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
            secret = read_secret(path).strip()
        except OSError as exc:
            problems.append(f"secretFiles: expected a readable file at {path}, got: {exc.strerror}")
        except ValueError as exc:
            problems.append(f"secretFiles: {path}: {exc}")
        else:
            if (problem := secret_problem(secret)) is not None:
                problems.append(f"secretFiles: {path}: {problem}")
            secrets.append(secret)
    return tuple(secrets)


def secret_problem(secret: str) -> str | None:
    """Return what is wrong with the secret of a webhook, None for a right one; never the secret."""
    expected = f"expected {SECRET_PREFIX} and {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes in base64"
    if not secret.startswith(SECRET_PREFIX):
        return f"{expected}, got another text"
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return f"{expected}, got no base64"
    if not SECRET_MIN_BYTES <= len(key) <= SECRET_MAX_BYTES:
        return f"{expected}, got {len(key)} bytes"
    return None


def _destination(members: DestinationMembers, secrets: tuple[str, ...]) -> FeedDestination:
    is_notification = members.kind is DestinationKind.NOTIFICATION  # which always had the data
    return FeedDestination(
        terms=DestinationTerms(
            name=members.name,
            filter=FeedFilter(
                tenants=_set(members.tenants),
                business_types=_set(members.business_types),
                resource_types=_set(members.resource_types),
                kinds=_set(members.kinds),
            ),
            data=members.data or (FeedData.CURRENT if is_notification else FeedData.NONE),
            begin=_beginning(members.begin) or FeedBeginning.NOW,
            tries=members.tries,
            on_refusal=members.on_refusal,
        ),
        kind=members.kind,
        target=members.target.rstrip("/") if is_notification else members.target,
        secrets=secrets,
    )


def _set(values: tuple[Any, ...] | None) -> frozenset[Any] | None:
    return None if values is None else frozenset(values)
