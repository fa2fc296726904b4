"""Which hosts a destination may have, and which addresses these may have: `FEED_ALLOWED_HOSTS`. Pure.

A person who may write `FEED_FILE`, or the DNS of a destination, must not lead the worker to what only this machine or
its network reaches: its own ports, the metadata service with its credentials, a database. So an address that is not of
the public internet needs a network of the list, whatever the host's name is.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self, TypeAlias

import msgspec

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
NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052
COMPATIBLE: Final = IPv6Network("::/96")  # RFC 4291, 2.5.5.1: obsolete


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
        """Return why *host* may not be connected to at *address*, one of its addresses; the same for each of these."""
        inner = embedded(address)
        if any(inner in network for network in self.networks if _may_admit(network, inner)):
            return None
        if not is_public(inner):
            return f"expected an address of the public internet, or one of {VARIABLE}, got another for {host}"
        if self.is_empty or self._has_name(host):
            return None
        return f"expected a host of {VARIABLE}, got {host}"

    def _has_name(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def parse_address(host: str) -> Address | None:
    """Return the address that *host* is; None for a name."""
    try:
        return ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def embedded(address: Address) -> Address:
    """Return the address of IPv4 that an address of IPv6 leads to, else the address itself, without its zone."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    is_compatible = address in COMPATIBLE and int(address) > 1  # the first two are "unspecified" and "loopback"
    if address in NAT64 or is_compatible:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return IPv6Address(int(address))


def is_public(address: Address) -> bool:
    """Return whether *address* is one of the public internet, by the registries of IANA, and no metadata service."""
    if address in METADATA or address.is_multicast:
        return False
    return address.is_global and (isinstance(address, IPv4Address) or address in GLOBAL_UNICAST)


def _may_admit(network: Network, address: Address) -> bool:
    """Return whether *network* can allow *address*: a metadata service has to be named by itself."""
    return address not in METADATA or network.num_addresses == 1


def _network(entry: str) -> Network | None:
    """Return the network that *entry* is. Raises `ValueError` for one with bits of a host."""
    try:
        return ip_network(entry)
    except ValueError:
        if "/" in entry:
            raise ValueError(f"expected a network such as 10.0.0.0/8, got {entry}") from None
        return None
