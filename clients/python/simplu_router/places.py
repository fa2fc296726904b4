"""Where tenants live and shards listen, as the file of the static map or Citrus has it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from simplu_router.errors import RouterError, ShardUnavailableError


@dataclass(frozen=True)
class Shard:
    """The connection strings of a shard and of its standby, if it has one."""

    url: str
    standby_url: str | None = None

    def __repr__(self) -> str:
        return f"Shard({urlsplit(self.url).hostname!r})"  # a string may have a password


class Places(Protocol):
    """Names the shards; a tenant's row on its shard decides."""

    async def list_shards(self) -> dict[str, Shard]:
        """Return the shards by id, read anew. Raises `ShardUnavailableError`."""

    async def find_shard(self, key: str) -> str | None:
        """Return the id of the shard that *key* is placed on, after `list_shards`; None: not registered."""


class MapFile:
    """The worker's `SHARD_MAP_FILE`."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._map: dict[str, Any] = {}

    async def list_shards(self) -> dict[str, Shard]:
        """Read the file; a shard that is retired may still have tenants."""
        try:
            self._map = json.loads(await asyncio.to_thread(self._path.read_bytes))
            return {
                one["shardId"]: Shard(one["connectionString"], one.get("replicaConnectionString"))
                for one in self._map["shards"]
            }
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ShardUnavailableError(f"The shard map {self._path} cannot be read ({type(exc).__name__}).") from None

    async def find_shard(self, key: str) -> str | None:
        """Return the shard that *key* is pinned or hashed to."""
        shards = self._map["shards"]
        if (pin := self._map.get("tenants", {}).get(key)) is not None:
            return str(pin)
        retired = {place for place, one in enumerate(shards) if one.get("retired")}
        return str(shards[place_of(key, len(shards), retired)]["shardId"])


class Citrus:
    """The shard manager at *url*; *timeout_s* bounds each request."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 5.0) -> None:
        self._url = urlsplit(url.rstrip("/"))
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._timeout_s = timeout_s
        self._known: dict[str, Shard] = {}

    async def list_shards(self) -> dict[str, Shard]:
        """Ask for all shards; one that is listed without an address keeps the address that it had."""
        entries = await asyncio.to_thread(self._get, "/api/shards/health")
        if not isinstance(entries, list):
            raise ShardUnavailableError("Citrus did not list its shards: check its GET /api/shards/health.")
        self._known |= {
            one["shardId"]: Shard(one["connectionString"]) for one in entries if one.get("connectionString")
        }
        return dict(self._known)

    async def find_shard(self, key: str) -> str | None:
        """Ask for the shard of a tenant."""
        answer = await asyncio.to_thread(self._get, f"/api/shard/{quote(key, safe='')}")
        return None if answer is None else str(answer["shardId"])

    def _get(self, path: str) -> Any:
        # http.client follows no redirect: a server elsewhere must not get the key.
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)
        try:
            connection.request("GET", self._url.path + path, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
            is_json = "json" in (response.getheader("Content-Type") or "").lower()
            if response.status == 404 and is_json:
                return None
            if response.status in {401, 403}:
                raise RouterError(f"Citrus answered {response.status}: check the API key.")
            if response.status != 200:
                raise ShardUnavailableError(f"Citrus answered {response.status}: try again later.")
            return json.loads(body)
        except (OSError, HTTPException, ValueError) as exc:
            raise ShardUnavailableError(f"Citrus gave no answer ({type(exc).__name__}): try again later.") from exc
        finally:
            connection.close()


def place_of(key: str, count: int, retired: Collection[int] = ()) -> int:
    """Return the place of *key* among *count* shards by the jump consistent hash, past the *retired* places."""
    text, attempt = key, 0
    while True:
        number = int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8])
        place, candidate = 0, 0
        while candidate < count:
            place = candidate
            number = (number * 2862933555777941757 + 1) % 2**64
            candidate = int((place + 1) * (2.0**31 / ((number >> 33) + 1)))
        if place not in retired or len(retired) >= count:
            return place
        attempt += 1
        text = f"{key}#{attempt}"
