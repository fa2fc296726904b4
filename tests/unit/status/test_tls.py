from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from support.network.faults import Fault, make_certificates
from support.network.tls_front import make_certificate

from simplu_worker.status.tls import ServerTls


def test_certificate_tells_its_end_expired_or_not(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert now < ServerTls(*make_certificate(tmp_path)).read() < now + timedelta(days=4000)
    make_certificates(tmp_path)
    expired = tmp_path / f"{Fault.EXPIRED}.pem"
    assert ServerTls(expired, expired).read() < now
