"""`python -m support.advisories.audit --database FOLDER`: compare the pins with a copy of pypa/advisory-database.

For a machine that reaches no service with advisories. FOLDER has `vulns/PACKAGE/ID.yaml`, in the form of OSV. Nothing
is fetched, and nothing is compared that the copy does not have: the day of its newest advisory is printed.
"""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.requires import ROOT

LOCKS = ("worker", "local", "dev")  # a larger one has the pins of the smaller ones
MODIFIED = re.compile(r"^modified: ['\"]?(\d{4}-\d\d-\d\d)", re.MULTILINE)


class Finding(NamedTuple):
    """An advisory about a pin, and the versions that mend it."""

    lock: str
    name: str
    version: str
    advisory: str
    aliases: tuple[str, ...]
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        also = f" ({', '.join(self.aliases)})" if self.aliases else ""
        fixed = f"fixed in {', '.join(self.fixed)}" if self.fixed else "no fixed version"
        return f"requirements/{self.lock}.txt: {self.name} {self.version}: {self.advisory}{also}, {fixed}"


def affects(affected: Mapping[str, Any], name: str, version: str) -> bool:
    """Return whether one of the `affected` of an advisory is *version* of the package *name*, as OSV evaluates it."""
    package = affected["package"]
    if package["ecosystem"] != "PyPI" or canonicalize_name(package["name"]) != name:
        return False
    wanted = Version(version)
    if any(Version(one) == wanted for one in affected.get("versions", ()) if is_version(one)):
        return True
    ranges = [one["events"] for one in affected.get("ranges", ()) if one["type"] in {"ECOSYSTEM", "SEMVER"}]
    return any(is_in_range(wanted, events) for events in ranges)


def is_version(text: str) -> bool:
    """Return whether *text* is a version of today's packages; old ones have others."""
    try:
        Version(text)
    except ValueError:
        return False
    return True


def is_in_range(version: Version, events: Iterable[Mapping[str, str]]) -> bool:
    """Return whether *events* leave *version* affected: the last of them that is not above it decides."""
    ordered = sorted((_place(kind, text), kind) for event in events for kind, text in event.items())
    is_affected = False
    for (limit, is_after), kind in ordered:
        if limit < version or (limit == version and not is_after):
            is_affected = kind == "introduced"
    return is_affected


def _place(kind: str, text: str) -> tuple[Version, bool]:
    """Return where an event takes effect: at its version, or for the last one that is affected right after it."""
    return Version(text), kind == "last_affected"


def findings_in(advisory: Mapping[str, Any], pins: Mapping[str, tuple[str, str]]) -> Iterator[Finding]:
    """Yield a finding for each of *pins*, lock and version by name, that *advisory* is about; none if withdrawn."""
    if advisory.get("withdrawn"):
        return
    for affected in advisory.get("affected", ()):
        name = canonicalize_name(affected["package"]["name"])
        lock, version = pins.get(name, ("", ""))
        if lock and affects(affected, name, version):
            yield Finding(
                lock, name, version, advisory["id"], tuple(advisory.get("aliases", ())), tuple(fixed_in(affected))
            )


def fixed_in(affected: Mapping[str, Any]) -> list[str]:
    """Return the versions that mend it, without commits."""
    ranges = [one["events"] for one in affected.get("ranges", ()) if one["type"] != "GIT"]
    return [event["fixed"] for events in ranges for event in events if "fixed" in event]


def read_locks(folder: Path) -> dict[str, tuple[str, str]]:
    """Return, by name, the smallest lock file in *folder* with a pin, and its version."""
    read_pins = runpy.run_path(str(ROOT / "deploy" / "container" / "sbom.py"))["read_pins"]
    pins: dict[str, tuple[str, str]] = {}
    for lock in reversed(LOCKS):
        found = read_pins((folder / f"{lock}.txt").read_text(encoding="utf-8"))
        pins |= {name: (lock, pin.version) for name, pin in found.items()}
    return pins


def audit(database: Path, pins: Mapping[str, tuple[str, str]]) -> tuple[list[Finding], str]:
    """Return what *database* has against *pins*, and the day of its newest advisory. Raises ValueError."""
    found: set[Finding] = set()
    newest = ""
    for path in sorted((database / "vulns").glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        newest = max([newest, *MODIFIED.findall(text)])
        if canonicalize_name(path.parent.name) in pins:
            found.update(findings_in(yaml.load(text, yaml.CSafeLoader), pins))
    if not newest:
        raise ValueError(
            f"expected advisories, {database}/vulns/PACKAGE/ID.yaml, got none; clone pypa/advisory-database"
        )
    return sorted(found), newest


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is found; return 1 if that is anything, 2 without a database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True, metavar="FOLDER", help="a copy of the advisories")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements", help="the folder of the lock files")
    given = parser.parse_args(arguments)
    pins = read_locks(given.requirements)
    try:
        found, newest = audit(given.database, pins)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command
        return 2
    end = f"{len(pins)} pins, {len(found)} advisories about them; the newest advisory of the database is of {newest}"
    print(*found, end, sep="\n")  # noqa: T201 - a command
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
