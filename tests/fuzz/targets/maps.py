"""Shard maps and variables: a map or settings, or problems for people without a secret."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final
from unittest.mock import patch

from fuzz.inputs import messages, spliced
from fuzz.quiet import PASSWORD, begin, check_faults, check_secrets
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_worker.assembly.shards import only_shard
from simplu_worker.config.loading import draft_settings, find_misspellings, load_env_file
from simplu_worker.config.settings import VARIABLES
from simplu_worker.errors import ConfigurationError
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.shard_map import ShardMap, parse_shard_map, refusals_of

ALLOWED_HOSTS: Final = ("*.internal", "10.0.*")
OF_VARIABLES: Final = b"#"  # the input is a file of variables
KEYS: Final = ("clinic-main", "", "漢", "x" * 257)


def address_of(name: str) -> str:
    return f"postgresql://user:{PASSWORD}@{name}.internal:5432/one?sslmode=require"


SHARDS: Final[list[dict[str, object]]] = [
    {"shardId": "a", "connectionString": address_of("a"), "replicaConnectionString": address_of("r")},
    {"shardId": "b", "connectionString": address_of("b"), "retired": True},
    {"shardId": "c", "connectionString": address_of("c.internal,d")},
]
PINS: Final = {"clinic-main": "c", "clinic-other": "a"}
USUAL: Final = {"shards": SHARDS, "tenants": PINS}
before: Final = parse_shard_map(json.dumps(USUAL).encode(), ALLOWED_HOSTS)


def check(data: bytes) -> None:
    begin(data)
    try:
        if data[:1] == OF_VARIABLES:
            check_variables(data)
        else:
            check_map(parse_shard_map(data, ALLOWED_HOSTS))
    except ConfigurationError as exc:
        check_secrets(str(exc))
    check_faults()


def check_map(shard_map: ShardMap) -> None:
    for key in (*KEYS, *list(shard_map.tenants)[:3]):
        try:
            key.encode()
        except UnicodeEncodeError:
            continue
        assert shard_map.shard_of(key) in shard_map.shards
        homes = shard_map.possible_homes(key)
        assert len(homes) <= len(shard_map.shards)
        assert shard_map.shard_of(key) in homes
    check_secrets("\n".join(refusals_of(before, shard_map)))
    locator = StaticMap(before)
    locator.replace(shard_map)
    assert {shard.shard_id for shard in locator.known_shards()} == {shard.shard_id for shard in shard_map.shards}
    check_secrets(repr(shard_map.shards[0]) + repr(locator.known_shards()[0]))


def check_variables(data: bytes) -> None:
    with NamedTemporaryFile(prefix="variables-") as file, patch.dict(os.environ, clear=True):
        file.write(data.decode("utf-8", "replace").encode())
        file.flush()
        load_env_file(Path(file.name))
        for name in [name for name in os.environ if name.endswith("_FILE")]:
            del os.environ[name]
        settings, problems = draft_settings(for_run=True)
        check_secrets("\n".join([*problems, repr(settings)]))
        find_misspellings(list(os.environ)[:3])
    if settings.database_host is not None:
        check_secrets(repr(only_shard(settings)))


VALUES: Final = {
    "KINESIS_STREAM_NAME": "resources-operations",
    "AWS_REGION": "eu-central-1",
    "SQS_DEAD_LETTER_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/000000000000/dead",
    "DATABASE_HOST": "db.internal",
    "DATABASE_PORT": "5432",
    "DATABASE_USERNAME": "user",
    "DATABASE_PASSWORD": PASSWORD,
    "DATABASE_NAME": "one",
    "DATABASE_ALLOWED_HOSTS": "*.internal, 10.0.*",
    "SQS_RETRY_DELAYS_SECONDS": "1,5,15",
    "KINESIS_INITIAL_POSITION": "2026-01-31T09:00:00Z",
    "REDIS_URL": f"redis://:{PASSWORD}@cache:6379/0",
    "LOG_LEVEL": "info",
}
SEEDS: Final = (
    json.dumps(USUAL).encode(),
    json.dumps({"shards": SHARDS[:1]}).encode(),
    OF_VARIABLES + "\n".join(["", *(f"{name}={value}" for name, value in VALUES.items())]).encode(),
    OF_VARIABLES + b"\nexport DATABASE_HOST='db'\"x\"\\ y # z\nDATABASE_PORT=tcp://10.0.0.1:5432\nHTTP_HOST=::1",
)
WORDS: Final = (
    *(json.dumps(name).encode() for name in ("shards", "tenants", *SHARDS[0], "retired", "wasRetired")),
    *(f"\n{name}=".encode() for name in VARIABLES),
    *(b"\n#", b"export ", b"'", b"tcp://", b"postgresql://", b"@", b"?sslmode=", b"%00", b"*", b"[::1]", b"inf"),
    b"nan",
)
TEXTS: Final = st.text(max_size=8) | st.sampled_from(
    ["", "0", "-1", "inf", "nan", "1e9", "٣", "a b", "a@b", "[", "http://["]
)
LINES: Final = st.lists(st.tuples(st.sampled_from(list(VALUES)), TEXTS).map("=".join), max_size=6)
SHARD: Final = messages(SHARDS[0] | {"retired": False}).map(lambda text: text.decode("utf-8", "surrogatepass"))
MAPS: Final = st.tuples(st.lists(SHARD, max_size=4), messages(PINS)).map(
    lambda drawn: f'{{"shards":[{",".join(drawn[0])}],"tenants":'.encode("utf-8", "surrogatepass") + drawn[1] + b"}"
)
TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=WORDS,
    inputs=messages(USUAL)
    | MAPS
    | LINES.map(lambda lines: OF_VARIABLES + "\n".join(["", *lines]).encode("utf-8", "surrogatepass"))
    | spliced(st.sampled_from(SEEDS), WORDS),
    bytes_per_byte=2_000,
)
