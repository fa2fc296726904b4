"""Pin tenants in the shard map to their new homes. Late is harmless: the shards themselves lead to the new ones."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.shards.routing.shard_map import parse_shard_map

LOCK_WITHIN_S: Final = 10.0  # of another command, which has it for milliseconds
LOCK_TRIES_EVERY_S: Final = 0.05


def with_pins(content: bytes, pins: Mapping[str, str]) -> bytes:
    """Return the content of a map with tenants pinned to shards, and without pins to where they are hashed to anyway.

    The order of its members stays. Raises `ConfigurationError` if the content is no map.
    """
    unpinned = parse_shard_map(content, ()).without_pins()
    members = json.loads(content)
    pinned = {**members.get("tenants", {}), **pins}
    needless = {one for one, shard_id in pins.items() if unpinned.shard_of(one).shard_id == shard_id}
    members["tenants"] = {one: shard_id for one, shard_id in pinned.items() if one not in needless}
    return json.dumps(members, indent=2, ensure_ascii=False).encode() + b"\n"


def pin_in_file(path: Path, pins: Mapping[str, str]) -> None:
    """Write *pins* into the map at *path*, in one step, with the owner and the rights of the old file. Blocks.

    A link stays one. Raises `PermanentError` if that cannot be done, for example because the file is mounted read-only.
    """
    try:
        path = path.resolve()
        with _locked(path.parent):
            content = path.read_bytes()
            written = with_pins(content, pins)
            if written != content:
                _replace(path, written)
    except ConfigurationError as exc:
        raise PermanentError("; ".join(exc.problems)) from None
    except OSError as exc:
        raise PermanentError(f"SHARD_MAP_FILE: expected to write {path}, got: {exc.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    old = path.stat()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            new = os.fstat(file.fileno())
            if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):  # the worker has to read it as before
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), old.st_mode & 0o777)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude other commands that pin tenants in a map of *folder*: each reads the map, and writes all of it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        ends_at = time.monotonic() + LOCK_WITHIN_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= ends_at:
                    raise PermanentError(
                        f"SHARD_MAP_FILE: expected the lock of {folder}, got none within {LOCK_WITHIN_S:g} s: "
                        "another command has it"
                    ) from None
                time.sleep(LOCK_TRIES_EVERY_S)
        yield
    finally:
        os.close(descriptor)
