"""Every pin can be installed on every system we name, without a compiler."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename
from support.requires import ROOT, require_package_index, required_program

# glibc 2.28 is Debian 10, Ubuntu 20.04 and RHEL 8; macOS 14 is the oldest that Apple still mends.
PLATFORMS = {
    machine: [f"manylinux_2_{minor}_{machine}" for minor in range(28, 16, -1)] + [f"manylinux2014_{machine}"]
    for machine in ("x86_64", "aarch64")
} | {"macos_arm64": list(mac_platforms((14, 0), "arm64"))}
PYTHONS = ((3, 11), (3, 12), (3, 13))
LATER = ((3, 14),)  # the worker alone: not all tools of development have wheels for it
LOCKS = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt"))


def tags_of(platform: str, python: tuple[int, int]) -> set[Tag]:
    names = PLATFORMS[platform]
    interpreter = "cp{}{}".format(*python)
    return {*cpython_tags(python, platforms=names), *compatible_tags(python, interpreter, names)}


def missing(files: dict[str, list[str]], tags: set[Tag]) -> list[str]:
    return [name for name, wheels in files.items() if not any(parse_wheel_filename(w)[3] & tags for w in wheels)]


def asked_for(packages: list[dict[str, Any]], platform: str, python: tuple[int, int]) -> list[dict[str, Any]]:
    version = "{}.{}".format(*python)
    is_macos, machine = platform.startswith("macos_"), platform.removeprefix("macos_")
    environment = {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "sys_platform": "darwin" if is_macos else "linux",
        "platform_system": "Darwin" if is_macos else "Linux",
        "platform_machine": machine,
    }
    return [
        package for package in packages if "marker" not in package or Marker(package["marker"]).evaluate(environment)
    ]


def pinned_wheels(packages: Iterable[dict[str, Any]], hashes: set[str]) -> dict[str, list[str]]:
    return {
        package["name"]: [
            wheel.get("name") or PurePosixPath(wheel["url"]).name
            for wheel in package.get("wheels", [])
            if wheel["hashes"]["sha256"] in hashes
        ]
        for package in packages
    }


@pytest.mark.nightly
@pytest.mark.parametrize("lock", LOCKS)
def test_pins_have_a_wheel_for_each_system_and_python(lock: str) -> None:
    uv = required_program("uv", how="python3 run.py setup")
    path = ROOT / "requirements" / f"{lock}.txt"
    command = [uv, "pip", "compile", str(path), "--no-deps", "--universal", "--python-version", "3.11"]
    command += ["--python", sys.executable, "--format", "pylock.toml", "--no-header", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        require_package_index(done.stderr)
    assert done.returncode == 0, done.stderr
    hashes = set(re.findall("sha256:([0-9a-f]{64})", path.read_text()))
    packages = tomllib.loads(done.stdout)["packages"]
    wanting = {
        f"{platform} {python}": names
        for platform in PLATFORMS
        for python in (PYTHONS + LATER if lock == "worker" else PYTHONS)
        if (names := missing(pinned_wheels(asked_for(packages, platform, python), hashes), tags_of(platform, python)))
    }
    assert wanting == {}
