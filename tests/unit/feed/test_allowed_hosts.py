"""Which hosts and addresses a destination may have."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from simplu_worker.feed.feed_file import AllowedHosts, is_public, parse_address

INSIDE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1"),
    *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "ff0e::1", "2001:db8::1"),
    *("4000::1", "64:ff9b:1::a00:1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    # Addresses of IPv4 within those of IPv6.
    *("::ffff:10.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:808:808::1"),
    "169.254.169.254",
)
PUBLIC = ("8.8.8.8", "2001:4860:4860::8888")


@pytest.mark.parametrize("text", INSIDE)
def test_address_is_refused_when_it_is_not_of_the_public_internet(text: str) -> None:
    address = ip_address(text)
    assert not is_public(address)
    for allowed in (AllowedHosts(), AllowedHosts.parse(("*", "hooks.example"))):
        assert "public internet" in (allowed.address_problem("hooks.example", address) or "")
        assert allowed.host_problem(text) is not None
    alone = AllowedHosts.parse((text,))
    assert alone.address_problem("hooks.example", address) is None
    assert alone.host_problem(text) is None


@pytest.mark.parametrize("text", PUBLIC)
def test_address_of_the_public_internet_is_allowed_unless_a_list_has_neither_it_nor_its_name(text: str) -> None:
    address = ip_address(text)
    assert AllowedHosts().address_problem("hooks.example", address) is None
    assert AllowedHosts.parse(("*.example",)).address_problem("HOOKS.example.", address) is None
    assert AllowedHosts.parse(("0.0.0.0/0", "::/0")).address_problem("hooks.example", address) is None
    assert AllowedHosts.parse(("other.example",)).address_problem("hooks.example", address) is not None
    assert AllowedHosts.parse(("10.0.0.0/8",)).address_problem("hooks.example", address) is not None


def test_host_is_judged_before_any_connection_as_far_as_its_name_tells() -> None:
    assert AllowedHosts().host_problem("hooks.example") is None
    assert AllowedHosts.parse(("*.example",)).host_problem("hooks.example") is None
    assert AllowedHosts.parse(("*.example",)).host_problem("hooks.test") == (
        "expected a host of FEED_ALLOWED_HOSTS, got hooks.test"
    )
    assert AllowedHosts.parse(("*.example", "10.0.0.0/8")).host_problem("hooks.test") is None
    assert AllowedHosts.parse(("10.0.0.0/8",)).host_problem("10.1.1.1") is None
    assert AllowedHosts.parse(("10.0.0.0/8",)).host_problem("[::1]") is not None


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "300.0.0.0/8", "a/b"])
def test_entry_with_a_slash_has_to_be_a_network(entry: str) -> None:
    with pytest.raises(ValueError, match="expected a network such as"):
        AllowedHosts.parse((entry,))


def test_list_has_names_in_small_letters_without_a_dot_at_the_end_and_networks_apart() -> None:
    assert AllowedHosts.parse(("Hooks.Example.", "10.0.0.0/8", "*.test")) == AllowedHosts(
        ("hooks.example", "*.test"), (ip_network("10.0.0.0/8"),)
    )


def test_address_with_a_zone_is_none() -> None:
    assert parse_address("fe80::1%eth0") is None


def test_problem_names_the_address_that_a_destination_has() -> None:
    assert (AllowedHosts().host_problem("127.0.0.1") or "").endswith("got another for 127.0.0.1")


def test_names_that_look_like_numbers_are_names() -> None:
    assert [parse_address(host) for host in ("127.1", "2130706433", "0x7f000001", "localhost", "")] == [None] * 5
