"""docs/routing.md has the hash of the static map in Go, too: it places tenants as the worker does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from support.requires import ROOT, required_program

from simplu_worker.shards.routing.shard_map import parse_shard_map

MAIN: Final = """
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	var cases []struct {
		Key     string
		Shards  int
		Retired []int
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	for _, one := range cases {
		retired := map[int]bool{}
		for _, place := range one.Retired {
			retired[place] = true
		}
		fmt.Println(Place(one.Key, one.Shards, retired))
	}
}
"""


EXAMPLES = ROOT / "docs" / "examples"


def worker_place(case: dict[str, Any]) -> int:
    shards = [
        {"shardId": f"{place}", "connectionString": f"postgresql://u@h/{place}", "retired": place in case["retired"]}
        for place in range(case["shards"])
    ]
    return int(parse_shard_map(json.dumps({"shards": shards}).encode(), ()).shard_of(case["key"]).shard_id)


@pytest.mark.peers(10)
def test_go_of_the_examples_finds_the_workers_shard(tmp_path: Path) -> None:
    cases = json.loads((EXAMPLES / "static_map_vectors.json").read_text(encoding="utf-8")) + [
        {"key": f"café-{number}", "shards": number, "retired": list(range(0, number - 1, 3))}
        for number in range(1, 300)
    ]
    shutil.copy(EXAMPLES / "static_map.go", tmp_path / "place.go")
    (tmp_path / "main.go").write_text(MAIN, encoding="utf-8")
    go = required_program("go", how="install Go 1.26")
    ran = subprocess.run(
        [go, "run", "place.go", "main.go"],
        input=json.dumps(cases).encode(),
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr.decode()) == (0, "")
    assert [int(line) for line in ran.stdout.split()] == [worker_place(case) for case in cases]
