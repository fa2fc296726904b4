"""Give resource types of a running stack a history, as an operator does: by their file, and `types apply`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from simplu_local.processes.loopback import StackError


async def keep_histories(env: Mapping[str, str], types: Collection[str], others: Iterable[str] = ()) -> None:
    """Have all resource types of these business types keep their histories, on each shard with a schema.

    The resource types *others* too, of which their files know nothing.

    Raises:
        StackError: a command failed.

    """
    shown = json.loads(await _run(env, "show", "--json"))["types"]
    files = {one["name"]: _with_histories(one["definition"], others) for one in shown if one["name"] in types}
    with TemporaryDirectory() as folder:
        _write(Path(folder), files)
        await _run(env, "apply", folder, "--apply")


def _with_histories(text: str, others: Iterable[str]) -> str:
    definition = json.loads(text)
    definition["resourceTypes"] += [{"name": name} for name in others]
    for one in definition["resourceTypes"]:
        one["history"] = {"keep": "forever"}
    return json.dumps(definition)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


async def _run(env: Mapping[str, str], *arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "simplu_worker", "types", *arguments),
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise StackError(f"types {' '.join(arguments)} ended with {process.returncode}: {errors.decode()[-1000:]}")
    return output
