"""Each door to a vendor, asked where no server is, or not the expected one: what a person reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.network.faults import CA_FILE, Fault, make_certificates
from support.requires import ROOT

from simplu_worker import network_errors
from simplu_worker.shards.postgres import errors as error_words

LIBRARY = re.compile(
    r"errno|gaierror|\w(Error|Exception)\b|asyncpg|aiohttp|botocore|Connect call|ssl:|\[SSL|swordfish|worker:",
    re.IGNORECASE,
)
OF_NAME = "expected a certificate for that host, got one for others; correct the address, or the certificate"
OF_TIME = "expected a valid certificate, got one that has expired; have it renewed"
OF_CA = (
    "expected a certificate of a CA that is trusted here, got one of another; name the CA in SETTING, or correct the "
    "address"
)
# Any of these: what a name server or a server does with what it does not understand is its own affair.
CAUSES: dict[Fault, set[str]] = {
    Fault.UNKNOWN_HOST: {network_errors.UNKNOWN_HOST, network_errors.NO_DNS},
    Fault.REFUSED: {network_errors.NO_SERVER},
    Fault.RESET: {network_errors.CLOSED, error_words.state_words("08003")},
    Fault.SILENT: {network_errors.NO_ANSWER, "expected an answer within CITRUS_TIMEOUT, got none"},
    Fault.UNKNOWN_CA: {OF_CA},
    Fault.WRONG_NAME: {OF_NAME},
    Fault.EXPIRED: {OF_TIME},
    Fault.PLAIN: {network_errors.NO_TLS, error_words.NO_TLS},
    Fault.TLS: {network_errors.CLOSED, network_errors.NOT_HTTP, error_words.state_words("08003")},
}
CA_SETTINGS = ("AWS_CA_BUNDLE", "sslrootcert", "ssl_ca_certs of REDIS_URL", "SSL_CERT_FILE")


@pytest.mark.slow(6)
def test_errors_of_the_network_have_address_cause_and_remedy_at_each_door(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    own = {name: str(tmp_path / CA_FILE) for name in ("SSL_CERT_FILE", "AWS_CA_BUNDLE")}
    own |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "swordfish", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-m", "support.network.doors", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if not name.lower().endswith("proxy")} | own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    errors: dict[str, dict[Fault, str]] = json.loads(done.stdout)
    assert errors.keys() == {"AWS", "Citrus", "Postgres", "Redis", "replica", "webhook"}
    unexpected = [
        (door, fault, error)
        for door, by_fault in errors.items()
        for fault, error in by_fault.items()
        if LIBRARY.search(error) or "ADDRESS" not in error or cause_of(error) not in CAUSES[Fault(fault)]
    ]
    assert unexpected == []
    assert {fault for by_fault in errors.values() for fault in by_fault} == {*Fault}


def cause_of(error: str) -> str:
    cause = error.rpartition(": ")[2]
    for setting in CA_SETTINGS:
        cause = re.sub(rf"name the CA in {setting}[^;]*, or correct", "name the CA in SETTING, or correct", cause)
    return cause
