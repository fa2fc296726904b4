"""The audit of the pins against a folder of advisories, on a small one that is made up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version
from support.advisories.audit import LOCKS, affects, is_in_range, read_locks
from support.requires import ROOT

DATABASE: dict[str, dict[str, Any]] = {
    # In the worker's pins, by a range; a range of commits says nothing of versions.
    "some-package/PYSEC-2026-1.yaml": {
        "aliases": ["CVE-2026-0001"],
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": "some_Package"},
                "ranges": [
                    {"type": "GIT", "events": [{"introduced": "0"}, {"fixed": "33ccdfb0a12690af5bb4"}]},
                    {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2.4"}]},
                ],
                "versions": ["1.2", "not-a-version"],
            }
        ],
    },
    # Mended in what is pinned; withdrawn; of another ecosystem; of a package that is not pinned.
    "some-package/PYSEC-2026-2.yaml": {
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": "some-package"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.0"}, {"fixed": "1.2.3"}]}],
            }
        ],
    },
    "some-package/PYSEC-2026-3.yaml": {
        "withdrawn": "2026-02-01T00:00:00Z",
        "affected": [{"package": {"ecosystem": "PyPI", "name": "some-package"}, "versions": ["1.2.3"]}],
    },
    "some-package/PYSEC-2026-4.yaml": {
        "affected": [{"package": {"ecosystem": "npm", "name": "some-package"}, "versions": ["1.2.3"]}],
    },
    "foreign/PYSEC-2026-5.yaml": {
        "affected": [{"package": {"ecosystem": "PyPI", "name": "foreign"}, "versions": ["1"]}],
    },
    # In those of development alone, by its name, and without a fixed version.
    "checker/PYSEC-2026-6.yaml": {
        "affected": [{"package": {"ecosystem": "PyPI", "name": "checker"}, "versions": ["4.0"]}],
    },
}
PINS = {
    "worker": "some-package==1.2.3 \\\n    --hash=sha256:{0}\n",
    "local": "",
    "dev": "checker==4 \\\n    --hash=sha256:{0}\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with lock files, each with the pins of the smaller ones, and a database."""
    (tmp_path / "requirements").mkdir()
    text = ""
    for lock in LOCKS:
        text += PINS[lock].format("0" * 64)
        (tmp_path / "requirements" / f"{lock}.txt").write_text(text, encoding="utf-8")
    for name, advisory in DATABASE.items():
        path = tmp_path / "database" / "vulns" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {"id": path.stem, "modified": f"2026-01-0{path.stem[-1]}T00:00:00Z"} | advisory
        path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return tmp_path


def run_audit(folder: Path, database: str = "database") -> subprocess.CompletedProcess[str]:
    """Run the audit as `make audit` does."""
    command = [sys.executable, "-m", "support.advisories.audit", "--requirements", str(folder / "requirements")]
    return subprocess.run(
        [*command, "--database", str(folder / database)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.slow(1)
def test_audit_names_each_pin_that_an_advisory_is_about(folder: Path) -> None:
    """With the smallest lock file that has it, the other names of the advisory, and the version that mends it."""
    done = run_audit(folder)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "requirements/dev.txt: checker 4: PYSEC-2026-6, no fixed version",
        "requirements/worker.txt: some-package 1.2.3: PYSEC-2026-1 (CVE-2026-0001), fixed in 1.2.4",
        "2 pins, 2 advisories about them; the newest advisory of the database is of 2026-01-06",
    ]


@pytest.mark.slow(1)
def test_audit_without_a_finding_is_a_success_and_without_a_database_none(folder: Path) -> None:
    """An empty folder is no proof that the pins are good."""
    for name in ("some-package/PYSEC-2026-1.yaml", "checker/PYSEC-2026-6.yaml"):
        (folder / "database" / "vulns" / name).unlink()
    done = run_audit(folder)
    assert (done.returncode, done.stdout.partition(";")[0]) == (0, "2 pins, 0 advisories about them")
    missing = run_audit(folder, "none")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "expected advisories" in missing.stderr


@pytest.mark.parametrize(
    ("events", "affected"),
    [
        ([{"introduced": "0"}], ["0.1", "1.0", "2.0rc1", "2.0", "3.0"]),
        ([{"introduced": "1.0"}, {"fixed": "2.0"}], ["1.0", "2.0rc1"]),
        ([{"introduced": "1.0"}, {"last_affected": "2.0"}], ["1.0", "2.0rc1", "2.0"]),
        ([{"fixed": "1.0"}, {"introduced": "0"}, {"introduced": "3.0"}], ["0.1", "3.0"]),
        ([{"introduced": "1.0"}, {"limit": "2.0"}], ["1.0", "2.0rc1"]),
        ([], []),
    ],
)
def test_range_is_evaluated_as_osv_does(events: list[Mapping[str, str]], affected: list[str]) -> None:
    """The last event that is not above a version decides, in whatever order they come."""
    versions = ["0.1", "1.0", "2.0rc1", "2.0", "3.0"]
    assert [version for version in versions if is_in_range(Version(version), events)] == affected


def test_version_without_a_range_is_affected_by_its_name() -> None:
    """In whatever way it is written."""
    affected = {"package": {"ecosystem": "PyPI", "name": "A.b"}, "versions": ["1.0"]}
    assert affects(affected, "a-b", "1")
    assert not affects(affected, "a-b", "1.0.1")
    assert not affects(affected, "c", "1")


def test_pins_of_the_project_are_read() -> None:
    """Those of the worker, and each further one of development."""
    pins = read_locks(ROOT / "requirements")
    assert pins["aiohttp"][0] == "worker"
    assert (pins["moto"][0], pins["pytest"][0]) == ("local", "dev")
