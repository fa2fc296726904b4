"""Build the programs of other vendors that `tests/peers` needs: `python3 run.py peers`.

What is built already stays. With --lock the hashes of the jars are written instead of compared: after a change of a
version. Maven fetches the jars and compares each with its own checksum first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import assert_never

from support.peers.programs import (
    BUILT,
    CUSTOM_RESOURCES,
    GO_PROGRAMS,
    JAVA_PROGRAMS,
    STAMP,
    BuiltProgram,
    GoFiles,
    GoProgram,
    JavaProgram,
    is_built,
)

COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.11.0:copy-dependencies"


class BuildError(Exception):
    """A program could not be built; the text says why."""


def main() -> None:
    """Build all; end with 1 when one of them cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", action="store_true", help="write the hashes of the jars")
    arguments = parser.parse_args()
    # Maven waits for the network most of the time, and Go compiles.
    lanes: tuple[tuple[BuiltProgram, ...], ...] = (JAVA_PROGRAMS, (CUSTOM_RESOURCES, *GO_PROGRAMS))
    with ThreadPoolExecutor() as pool:
        problems = [*chain.from_iterable(pool.map(partial(build_missing, is_locking=arguments.lock), lanes))]
    for problem in problems:
        _say(problem)
    sys.exit(1 if problems else 0)


def build_missing(programs: Iterable[BuiltProgram], *, is_locking: bool) -> list[str]:
    """Build those of *programs* that are not built yet, one after the other; return what went wrong with the first."""
    try:
        for program in programs:
            if is_locking or not is_built(program):
                started = time.monotonic()
                build(program, is_locking=is_locking)
                _say(f"{program.name} {program.version}: built in {time.monotonic() - started:.0f} s")
    except BuildError as error:
        return [str(error)]
    return []


def build(program: BuiltProgram, *, is_locking: bool) -> None:
    """Build *program* anew, and note what from. Raises BuildError."""
    shutil.rmtree(program.built, ignore_errors=True)
    program.built.mkdir(parents=True)
    match program:
        case JavaProgram():
            build_java(program, is_locking=is_locking)
        case GoProgram():
            # go.sum has the hashes of the modules.
            out = str(program.built / "program")
            _run("go", "build", "-mod=readonly", "-ldflags=-s -w", "-o", out, program.package, cwd=program.folder)
        case GoFiles():
            fetch_files(program)
        case _:
            assert_never(program)
    (program.built / STAMP).write_text(program.digest, encoding="utf-8")


def build_java(program: JavaProgram, *, is_locking: bool) -> None:
    """Fetch the jars of *program*, compare them with their pins, and compile it. Raises BuildError."""
    library, classes = program.built / "lib", program.built / "classes"
    _run("mvn", "-q", "-B", "-f", str(program.pom), COPY, f"-DoutputDirectory={library}", "-DincludeScope=runtime")
    found = jars_of(library)
    if is_locking:
        program.pins.write_text(found, encoding="utf-8")
    elif found != program.pins.read_text(encoding="utf-8"):
        raise BuildError(
            f"{program.pom}: expected the jars of {program.pins.name}, got other ones in {library}; "
            "after a change of versions: python3 run.py peers --lock"
        )
    _run("javac", "-cp", f"{library}/*", "-d", str(classes), *map(str, program.sources))


def fetch_files(program: GoFiles) -> None:
    """Fetch the modules of *program*, compare their hashes with the pins, and copy the files. Raises BuildError."""
    patterns = dict(program.paths)
    for path, version, pinned in program.modules:
        fetched = json.loads(_run("go", "mod", "download", "-json", f"{path}@{version}", cwd=program.built))
        if fetched["Sum"] != pinned:
            raise BuildError(f"{program.pins}: expected {path} {version} with {pinned}, got {fetched['Sum']}")
        for file in sorted(Path(fetched["Dir"]).glob(patterns[path])):
            shutil.copyfile(file, program.built / file.name)


def jars_of(library: Path) -> str:
    """Return the contents of a file of pins: hash and name of each jar, in order of their names."""
    jars = sorted(library.glob("*.jar"), key=lambda path: path.name)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in jars)


def _run(*command: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise BuildError(f"{command[0]} is not installed: it is needed for {BUILT}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode != 0:
        raise BuildError(f"{command[0]} ended with status {done.returncode}:\n{_tail(done.stdout + done.stderr)}")
    return done.stdout


def _tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.splitlines()[-lines:])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # as run.py does


if __name__ == "__main__":
    main()
