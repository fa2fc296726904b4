#!/usr/bin/env python3
"""Find a Python, make environments with uv, and hand over to a program in them; `make` only calls this.

Standard library and the syntax of Python 3.6 only: an old `python3` must get far enough to say what it needs.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV, TOOLS_VENV = os.path.join(ROOT, ".venv"), os.path.join(ROOT, ".venv-tools")
NAMES = ("python3.13", "python3.12", "python3.11")
# Print the version; end with status 1 if the Python is too old or lacks one of the modules in the arguments.
PROBE = (
    "import importlib.util as u, sys; print('%d.%d' % sys.version_info[:2]); "
    "sys.exit(sys.version_info < (3, 11) or not all(map(u.find_spec, sys.argv[1:])))"
)
NO_PYTHON = """\
simplu-worker needs Python 3.11 or newer with venv, or with uv on the PATH. Install it and run this again:
  Debian 12, Ubuntu 24.04 and newer: apt-get install python3 python3-venv
  Fedora: dnf install python3.13
  macOS:  brew install python@3.13"""
LINTERS = ["ruff check", "ruff format --check", "mypy", "lint-imports"]
AUDIT = "pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements/"
PINS = sorted(name for name in os.listdir(os.path.join(ROOT, "requirements")) if name.endswith(".txt"))
CACHES = ".hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .fuzz .faults .site site mutants"

# Each command: its help, the lock files to install, the programs to run. Arguments go to each of the programs.
COMMANDS: Dict[str, Tuple[str, List[str], List[str]]] = {
    "demo": ("Run the main job on an embedded stack.", ["local"], ["simplu-worker demo"]),
    "test": ("Run the tests; arguments go to pytest.", ["dev"], ["python -m pytest -n 4"]),
    "lint": ("Run ruff, mypy and import-linter.", ["dev"], LINTERS),
    "bench": ("Run the benchmark of that name.", ["dev"], ["python -m benchmarks"]),
    "mutants": ("Run the unit tests on mutants of the pure modules.", ["dev"], ["python -m mutation.run"]),
    "fuzz": ("Send made-up inputs to all parsers.", ["dev"], ["python -m fuzz.run"]),
    "faults": ("Have real processes go through faults, and judge them.", ["dev"], ["python -m faults"]),
    "count": ("Count lines and words by part, beside their bounds.", ["dev"], ["python -m support.counts"]),
    "setup": ("Make .venv with everything for development.", ["dev"], []),
    "tools": ("Make .venv-tools, with checkers of deploy/, HTTP and SQS.", ["tools"], []),
    "site": ("Build the documentation site into site/.", ["dev", "tools"], ["python -m support.site.build"]),
    "peers": ("Build the programs that tests/peers runs.", ["dev"], ["python -m support.peers.build"]),
    "clients": ("Build the packages for producers into dist/.", ["dev"], ["python -m support.clients.packages"]),
    "audit": ("Look for advisories about the pins.", ["tools"], [AUDIT + name for name in PINS]),
    "lock": ("Compile requirements/*.txt; arguments go to uv.", ["uv"], ["python requirements/lock.py"]),
    "clean": ("Remove the environments and caches.", [], ["rm -rf .venv .venv-tools " + CACHES]),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ask(python: str, *modules: str) -> Tuple[str, bool]:
    """Return the version of *python* and whether it suits; no version if it does not run, as a shim may not."""
    try:
        command = [python, "-c", PROBE, *modules]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return "", False
    return done.stdout.decode().strip(), done.returncode == 0


def find_python(*modules: str) -> str:
    """Return the first Python on the PATH that suits, or the running one; never one of our own environments."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    paths = [os.path.join(folder, name) for name in NAMES for folder in folders] + [os.path.realpath(sys.executable)]
    for path in paths:
        if os.access(path, os.X_OK) and not path.startswith(ROOT + os.sep):
            version, suits = ask(path, *modules)
            say("{} {} ({})".format("Using" if suits else "Passing over", path, version or "it does not run"))
            if suits:
                return path
    sys.exit(NO_PYTHON)


def find_program(name: str, venv: str = VENV) -> str:
    return shutil.which(venv + "/bin/" + name) or shutil.which(name) or ""


def run(*command: str) -> None:
    if subprocess.call(command, stdin=subprocess.DEVNULL):
        sys.exit("Failed: " + " ".join(command))


def install(python: str, *what: str) -> None:
    """Install *what* with uv. pip installs uv, and what uv cannot: it has settings of its own, say for a mirror."""
    uv = find_program("uv")
    if not uv or subprocess.call([uv, "pip", "install", "-q", "--python", python, *what]):
        run(VENV + "/bin/python", "-m", "pip", "--python", python, "install", "-q", *what)


def ensure(lock: str) -> None:
    """Bring the environment of *lock* to its pins. A stamp in the environment tells what is installed already."""
    venv = TOOLS_VENV if lock == "tools" else VENV
    python, stamp_file = venv + "/bin/python", Path(venv, "simplu-worker.json")
    stamp: Dict[str, str] = json.loads(stamp_file.read_text() or "{}") if stamp_file.exists() else {}
    if stamp.get("python") != ask(python)[0] or stamp.get("folder") != ROOT:
        shutil.rmtree(venv, ignore_errors=True)
        uv = find_program("uv")
        how = [uv, "venv", "-q", "--python", find_python()] if uv else [find_python("venv", "ensurepip"), "-m", "venv"]
        run(*how, venv)
        stamp = {"python": ask(python)[0], "folder": ROOT}
    lock = "dev" if lock == "local" and "dev" in stamp else lock  # dev has all of local
    pins = "requirements/" + lock + ".txt"
    digest = hashlib.sha256(Path(pins).read_bytes() + Path("pyproject.toml").read_bytes()).hexdigest()
    if stamp.pop(lock, "") != digest:
        say("Installing {} into {} ...".format(pins, venv))
        with stamp_file.open("w") as out:  # empty until all is installed
            install(python, "--require-hashes", "--only-binary", ":all:", "-r", pins)
            if lock in ("local", "dev"):
                install(python, "--no-deps", "--no-build-isolation", "-e", ".")
            json.dump(dict(stamp, **{lock: digest}), out)


def main(name: str, args: List[str]) -> None:
    _, locks, commands = COMMANDS[name]
    os.chdir(ROOT)
    # A private CA is known to the system, and not to uv. Before 0.11, uv has the second name.
    os.environ.update(UV_SYSTEM_CERTS="1", UV_NATIVE_TLS="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    with open("run.py", "r+") as own_text:  # for writing: network file systems refuse an exclusive lock otherwise
        try:
            fcntl.flock(own_text, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another run of this script to finish installing ...")
            fcntl.flock(own_text, fcntl.LOCK_EX)
        for lock in locks and ["uv", *locks]:
            ensure(lock)
    statuses = [0]
    for command in commands:
        program, *words = command.split() + args
        words = [find_program(program, TOOLS_VENV if locks == ["tools"] else VENV), *words]
        if len(commands) == 1:
            os.execv(words[0], words)  # noqa: S606 - no shell between a signal and the program
        say("$ " + " ".join(words))
        statuses.append(subprocess.call(words))
    sys.exit(max(statuses))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        usage = ["  {:<7} {}".format(name, command[0]) for name, command in COMMANDS.items()]
        sys.exit("\n".join(["Usage: python3 run.py COMMAND [ARGUMENT ...]", *usage]))
    main(sys.argv[1], sys.argv[2:])
