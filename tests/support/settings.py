"""Settings from the variables that a test hands to a process or to a command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from simplu_worker.config.settings import VARIABLES, Settings
from simplu_worker.shards.postgres.address import ShardAddress


def settings_in(environ: Mapping[str, str]) -> Settings:
    """Return the settings that *environ* has; an empty variable is unset, and others than the worker's are ignored."""
    return Settings.model_validate({name: value for name, value in environ.items() if value and name in VARIABLES})


def settings_of(folder: Path, *shards: ShardAddress, **more: str) -> Settings:
    listed = [{"shardId": shard.shard_id, "connectionString": shard.connection_string} for shard in shards]
    (path := folder / "map.json").write_text(json.dumps({"shards": listed}))
    return settings_in({"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(path)} | more)
