"""Results of stages, and which stages are due. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

import msgspec

_PASSED = re.compile(r"^=+ (\d+ passed.*?) in [\d.]+s.*=+$", re.MULTILINE)
_INPUTS = re.compile(r"([\d,]+) inputs, none failed")


class Result(msgspec.Struct, frozen=True):
    """When a stage has passed last, with which files: their digest and number, and what it did."""

    digest: str
    file_count: int
    date: str
    commit: str
    seconds: int
    figures: str


def digest_of(declaration: str, blobs: Mapping[str, str]) -> str:
    """Return one digest of a stage's *declaration*, and of its files, which are Git's blobs by their paths."""
    lines = [declaration, *(f"{blob} {path}" for path, blob in sorted(blobs.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def due_stages(digests: Mapping[str, str], results: Mapping[str, Result]) -> list[str]:
    """Return the stages without a result of the same files, in their order."""
    return [name for name, digest in digests.items() if name not in results or results[name].digest != digest]


def describe(name: str, digest: str, result: Result | None) -> str:
    """Return the line that says why a stage runs, or why it need not."""
    if result is None:
        return f"{name}: due, it has no result"
    passed = f"passed on {result.date} at {result.commit[:12]}"
    if result.digest != digest:
        return f"{name}: due, its files have changed since it {passed}"
    return f"{name}: {passed}, none of its {result.file_count} files changed since"


def figures_of(outputs: Iterable[str]) -> str:
    """Return what the programs of a stage have counted."""
    text = "\n".join(outputs)
    inputs = sum(int(count.replace(",", "")) for count in _INPUTS.findall(text))
    return ", ".join([*_PASSED.findall(text), *([f"{inputs:,} inputs"] if inputs else [])])
