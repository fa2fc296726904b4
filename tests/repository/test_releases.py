"""What a release leaves unchanged from then on (docs/releasing.md)."""

from __future__ import annotations

import hashlib
import re

from support.requires import ROOT

MIGRATIONS = ROOT / "simplu_worker" / "shards" / "sql" / "migrations"
DIGESTS = ROOT / "tests" / "repository" / "released_migrations.sha256"


def test_released_migrations_never_change() -> None:
    lines = DIGESTS.read_text(encoding="utf-8").splitlines() if DIGESTS.exists() else []
    released = {name: digest for digest, name in (line.split() for line in lines)}
    now = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in MIGRATIONS.glob("*.sql")}
    assert {name: now.get(name) for name in released} == released
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert bool(released) == bool(re.search(r"^## \[\d", changelog, flags=re.MULTILINE))
