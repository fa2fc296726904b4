"""Write the bill of materials of an environment as CycloneDX 1.6, from the lock file that it was installed from.

    python sbom.py requirements/worker.txt /opt/simplu-worker > sbom.cdx.json

Only the standard library: the image runs it while it is built. A package without a pin, or of another version than its
pin, ends it with status 1. The same environment gives the same bytes: no time and no random number are in it.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, NamedTuple

OURS = "simplu-worker"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class Pin(NamedTuple):
    """A version, and the SHA-256 of each file that may be installed for it."""

    version: str
    hashes: tuple[str, ...]


class SbomError(Exception):
    """The environment is not that of the lock file; the text says what differs."""


def canonical(name: str) -> str:
    """Return *name* as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> dict[str, Pin]:
    """Return the pins of a lock file by canonical name."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    pins = {}
    for line in lines.replace("\\\n", " ").splitlines():
        if found := _PIN.match(line):
            pins[canonical(found[1])] = Pin(found[2], tuple(_HASH.findall(line)))
    return pins


def bill_of(packages: list[Distribution], pins: dict[str, Pin]) -> dict[str, Any]:
    """Return the bill of *packages*, with the hashes of *pins*. Raises SbomError."""
    known = {canonical(one.name): one for one in packages}
    if OURS not in known:
        raise SbomError(f"expected {OURS} in the environment, got {sorted(known)}")
    ours = known.pop(OURS)
    unpinned = [
        f"{name} {one.version}" for name, one in sorted(known.items()) if pins.get(name, Pin("", ()))[0] != one.version
    ]
    if unpinned:
        raise SbomError(f"expected the versions of the lock file, got {', '.join(unpinned)}; install from it")
    components = [component(known[name], pins[name]) for name in sorted(known)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(ours, None) | {"type": "application"}},
        "components": components,
        "dependencies": [dependency(one, known) for one in (ours, *(known[name] for name in sorted(known)))],
    }


def component(package: Distribution, pin: Pin | None) -> dict[str, Any]:
    """Return the entry of *package*."""
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package.name,
        "version": package.version,
        "purl": reference(package),
    }
    expression = package.metadata["License-Expression"]
    if expression:
        found["licenses"] = [{"expression": expression}]
    if pin is not None:
        found["hashes"] = [{"alg": "SHA-256", "content": content} for content in sorted(pin.hashes)]
    return found


def reference(package: Distribution) -> str:
    """Return the package URL of *package*."""
    return f"pkg:pypi/{canonical(package.name)}@{package.version}"


def dependency(package: Distribution, known: dict[str, Distribution]) -> dict[str, Any]:
    """Return which of *known* the *package* needs; those of extras count where they are installed."""
    names = {canonical(re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0]) for need in package.requires or ()}
    return {
        "ref": reference(package),
        "dependsOn": sorted(reference(known[name]) for name in names if name in known),
    }


def main(lock: str, environment: str) -> int:
    """Write the bill to stdout; return 1 with a line on stderr if the environment is not that of the lock file."""
    (packages,) = Path(environment).glob("lib/python3.*/site-packages")
    try:
        bill = bill_of(list(distributions(path=[str(packages)])), read_pins(Path(lock).read_text(encoding="utf-8")))
    except SbomError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(bill, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
