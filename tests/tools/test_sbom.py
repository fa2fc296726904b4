"""The bill of materials: what is installed, and nothing that the lock file does not have."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from support.requires import ROOT

SCRIPT = ROOT / "deploy" / "container" / "sbom.py"
LOCK = ROOT / "requirements" / "worker.txt"
FIRST, SECOND = "0" * 64, "1" * 64
PINS = f"""\
# a comment
some-package==1.2.3 \\
    --hash=sha256:{SECOND} \\
    --hash=sha256:{FIRST}
    # via simplu-worker
other==4 ; python_full_version < '3.13' \\
    --hash=sha256:{SECOND}
"""


def environment(folder: Path, **packages: str) -> Path:
    """Make an environment with *packages* by version; the worker needs the first one, and one that is not there."""
    for name, version in packages.items():
        info = folder / "lib" / "python3.12" / "site-packages" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        needs = "Requires-Dist: Some_Package>=1\nRequires-Dist: redis>=8; extra == 'cache'\n"
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
            + (needs if name == "simplu_worker" else "")
        )
    return folder


def bill_of(folder: Path, lock: Path) -> subprocess.CompletedProcess[str]:
    """Run the script, with nothing but the standard library."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), str(lock), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """Give a lock file with two packages."""
    path = tmp_path / "lock.txt"
    path.write_text(PINS)
    return path


def test_bill_has_each_installed_package_with_the_hashes_of_its_pin(lock: Path, tmp_path: Path) -> None:
    """Pins that are not installed, for another Python, are left out; the same environment gives the same bytes."""
    folder = environment(tmp_path / "venv", simplu_worker="0.1.0", some_package="1.2.3")
    done = bill_of(folder, lock)
    bill = json.loads(done.stdout)
    assert bill["metadata"]["component"]["purl"] == "pkg:pypi/simplu-worker@0.1.0"
    assert bill["components"] == [
        {
            "type": "library",
            "bom-ref": "pkg:pypi/some-package@1.2.3",
            "name": "some_package",
            "version": "1.2.3",
            "purl": "pkg:pypi/some-package@1.2.3",
            "licenses": [{"expression": "MIT"}],
            "hashes": [{"alg": "SHA-256", "content": FIRST}, {"alg": "SHA-256", "content": SECOND}],
        }
    ]
    assert bill["dependencies"][0] == {
        "ref": "pkg:pypi/simplu-worker@0.1.0",
        "dependsOn": ["pkg:pypi/some-package@1.2.3"],
    }
    assert bill_of(folder, lock).stdout == done.stdout


@pytest.mark.parametrize(
    ("packages", "problem"),
    [
        ({"simplu_worker": "1", "some_package": "1.2.4"}, "got some-package 1.2.4"),
        ({"simplu_worker": "1", "surprise": "1"}, "got surprise 1"),
        ({"some_package": "1.2.3"}, "expected simplu-worker in the environment"),
    ],
)
def test_environment_that_is_not_of_the_lock_file_is_refused(
    packages: dict[str, str], problem: str, lock: Path, tmp_path: Path
) -> None:
    """A build does not go on with something else in the image."""
    done = bill_of(environment(tmp_path / "venv", **packages), lock)
    assert (done.returncode, done.stdout) == (1, "")
    assert problem in done.stderr


def test_pins_of_the_lock_file_are_all_read() -> None:
    """As many as it has, each with hashes."""
    text = LOCK.read_text(encoding="utf-8")
    pins = runpy.run_path(str(SCRIPT))["read_pins"](text)
    assert len(pins) == text.count("==") - text.count("extra ==")
    assert all(pin.hashes for pin in pins.values())
    assert sum(len(pin.hashes) for pin in pins.values()) == text.count("--hash=sha256:")
