"""Build the packages for producers into `dist/`: `python3 run.py clients`. Without node, the one for Python alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.peers.programs import NODE_MODULES
from support.requires import ROOT, require

CLIENTS = ROOT / "clients"
COMPILER = NODE_MODULES / "typescript" / "bin" / "tsc"
LIBRARIES = ("@aws-sdk/client-kinesis", "@aws-sdk/client-sqs", "typescript")
HOW = "install node, copy requirements/npm to .tools, and npm ci --prefix .tools"


def main() -> None:
    """Build both; without node the wheel alone, and say so."""
    folder = ROOT / "dist"
    folder.mkdir(exist_ok=True)
    _say(build_wheel(folder))
    if not has_node():
        _say(f"The package for TypeScript is left out: to build it, {HOW}")
        return
    with typescript_copy() as copy:
        _say(build_tarball(copy, folder))


def has_node() -> bool:
    return shutil.which("node") is not None and all((NODE_MODULES / library).is_dir() for library in LIBRARIES)


def require_node() -> None:
    require("node with TypeScript", found=has_node(), how=HOW)


def build_wheel(folder: Path) -> Path:
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=CLIENTS / "python")
    (wheel,) = folder.glob("simplu_client-*.whl")
    return wheel


@contextmanager
def typescript_copy() -> Iterator[Path]:
    """Give a copy of the client in TypeScript, compiled, in a folder below which node finds its libraries."""
    with tempfile.TemporaryDirectory(dir=NODE_MODULES.parent, prefix="client-") as name:
        copy = Path(name)
        shutil.copytree(CLIENTS / "typescript", copy, dirs_exist_ok=True)
        _run("node", str(COMPILER), "--project", str(copy), cwd=copy)
        yield copy


def build_tarball(copy: Path, folder: Path) -> Path:
    _run("npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), cwd=copy)
    (tarball,) = folder.glob("simplu-client-*.tgz")
    return tarball


@contextmanager
def installed_typescript() -> Iterator[Path]:
    with typescript_copy() as copy:
        folder = copy / "installed"
        modules = folder / "node_modules"
        modules.mkdir(parents=True)
        with tarfile.open(build_tarball(copy, folder)) as archive:
            archive.extractall(modules, filter="data")
        (modules / "package").rename(modules / "simplu-client")
        yield folder


def compile_program(path: Path) -> Path:
    options = ("--strict", "--module", "NodeNext", "--target", "ES2022", "--types", "node", "--skipLibCheck")
    _run("node", str(COMPILER), *options, str(path), cwd=path.parent)
    return path.with_suffix(".mjs")


def run_node(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a program of node to its end; return what it printed."""
    return _run("node", *arguments, cwd=ROOT, env=env)


def _run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[:3]} ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def _say(text: object) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # as run.py does


if __name__ == "__main__":
    main()
