"""The locators, which name the shard of a tenant: Citrus, or a static map, in which tenants can be pinned."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Protocol, TypeAlias

import msgspec

from simplu_worker.errors import ConfigurationError, PermanentError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.shard_map import MapChange, ShardMap, change_of, parse_shard_map
from simplu_worker.vocabulary import Inability


class Registration(msgspec.Struct, frozen=True):
    """The shard that a tenant is registered on, and whether it is new there."""

    address: ShardAddress
    is_new: bool


Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Capacity(msgspec.Struct, frozen=True):
    """A shard's capacity as Citrus reports it."""

    business_count: Count | None = msgspec.field(name="businessCount", default=None)
    business_max: Count | None = msgspec.field(name="maxBusinesses", default=None)
    accepts_new: bool | None = msgspec.field(name="canAcceptNewBusiness", default=None)


class Locator(Protocol):
    """Names the shard of a tenant: Citrus or a static map. Raises `RetryableError` for no answer."""

    @property
    def inability(self) -> Inability | None:
        """Why it names no shards now."""

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard named for the tenant; None is a definite "not registered"."""

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:
        """Return the shard that the map names; there is no register of tenants."""

    async def list_possible_homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return the shards on which each tenant may live or have lived."""

    async def list_shards(self) -> list[ShardAddress]:
        """Return every shard."""

    def known_shards(self) -> list[ShardAddress]:
        """Return the shards of the last list."""

    def known_address(self, shard_id: str) -> ShardAddress | None:
        """Return the address that was last named for a shard."""


def read_shard_map(path: Path, allowed_hosts: tuple[str, ...]) -> ShardMap:
    """Read and check the map at *path*; raise `ConfigurationError` with every problem."""
    try:
        return parse_shard_map(path.read_bytes(), allowed_hosts)
    except OSError as exc:
        raise ConfigurationError(f"SHARD_MAP_FILE: expected a readable file at {path}, got: {exc.strerror}") from None


class StaticMap:
    """A map as a locator: every tenant has a shard, registered or not."""

    def __init__(self, shard_map: ShardMap) -> None:
        self.map = shard_map

    @property
    def inability(self) -> None:
        """Nothing: a map names a shard for every tenant."""
        return

    def replace(self, shard_map: ShardMap) -> MapChange:
        """Use another map from now on, and return the changes."""
        change, self.map = change_of(self.map, shard_map), shard_map
        return change

    async def locate(self, tenant_id: str) -> ShardAddress | None:
        """Return the shard that the tenant is pinned to or hashed to."""
        return self.map.shard_of(tenant_id).address

    async def register(self, business_id: str, location_id: str, business_type: str) -> Registration:  # noqa: ARG002
        """Return the shard that the map names; *is_new* is False, as there is no register of tenants."""
        return Registration(self.map.shard_of(tenant_id_of(business_id, location_id)).address, is_new=False)

    async def list_possible_homes(self, tenant_ids: Iterable[str]) -> dict[str, list[ShardAddress]]:
        """Return the pinned shard, and those that each key had for every smaller number of shards."""
        return {one: [shard.address for shard in self.map.possible_homes(one)] for one in tenant_ids}

    async def list_shards(self) -> list[ShardAddress]:
        """Return every shard of the map."""
        return self.known_shards()

    def known_shards(self) -> list[ShardAddress]:
        """Return every shard of the map."""
        return [shard.address for shard in self.map.shards]

    def known_address(self, shard_id: str) -> ShardAddress | None:
        """Return the address of a shard of the map."""
        shard = self.map.shard(shard_id)
        return None if shard is None else shard.address


def with_pins(content: bytes, pins: Mapping[str, str]) -> bytes:
    """Return the content of a map with tenants pinned to shards. Raises `ConfigurationError` if it is no map."""
    unpinned = parse_shard_map(content, ()).without_pins()
    members = json.loads(content)
    pinned = {**members.get("tenants", {}), **pins}
    needless = {one for one, shard_id in pins.items() if unpinned.shard_of(one).shard_id == shard_id}
    members["tenants"] = {one: shard_id for one, shard_id in pinned.items() if one not in needless}
    return json.dumps(members, indent=2, ensure_ascii=False).encode() + b"\n"


def pin_in_file(path: Path, pins: Mapping[str, str]) -> None:
    """Write *pins* into the map at *path*, in one step. Blocks. Raises `PermanentError` if that cannot be done."""
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
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # another command has it for milliseconds
        yield
    finally:
        os.close(descriptor)
