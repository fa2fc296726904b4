"""Pin tenants in the shard map to their new homes. Late is harmless: the shards themselves lead to the new ones."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.shards.routing.shard_map import ShardMap


def with_pins(content: bytes, pins: Mapping[str, str]) -> bytes:
    """Return the content of a map with tenants pinned to shards, and without pins to where they are hashed to anyway.

    The order of its members stays.
    """
    members = json.loads(content)
    pinned = {**members.get("tenants", {}), **pins}
    unpinned = msgspec.structs.replace(msgspec.json.decode(content, type=ShardMap), tenants={})
    needless = {one for one, shard_id in pins.items() if unpinned.shard_of(one).shard_id == shard_id}
    members["tenants"] = {one: shard_id for one, shard_id in pinned.items() if one not in needless}
    return json.dumps(members, indent=2, ensure_ascii=False).encode() + b"\n"


def pin_in_file(path: Path, pins: Mapping[str, str]) -> None:
    """Write *pins* into the map at *path*, in one step, with the rights of the old file.

    Raises `PermanentError` if that cannot be done, for example because the file is mounted read-only.
    """
    try:
        content = path.read_bytes()
        written = with_pins(content, pins)
        if written == content:
            return
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(written)
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise PermanentError(f"SHARD_MAP_FILE: expected to write {path}, got: {exc.strerror}") from None
