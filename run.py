#!/usr/bin/env python3
"""Set up and run simplu-worker from a clone with nothing but Python; `make` only calls this.

Standard library and the syntax of Python 3.6 only: an old `python3` must get far enough to find a newer one.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Tuple

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
TOOLS_VENV = os.path.join(ROOT, ".venv-tools")
MINISTACK_VENV = os.path.join(ROOT, ".venv-ministack")
BENCH_VENV = os.path.join(ROOT, ".venv-bench")
MUTANTS_VENV = os.path.join(ROOT, ".venv-mutants")
FUZZ_VENV = os.path.join(ROOT, ".venv-fuzz")
VENVS = (VENV, TOOLS_VENV, MINISTACK_VENV, BENCH_VENV, MUTANTS_VENV, FUZZ_VENV)
OLDEST = (3, 11)
NAMES = ("python3.13", "python3.12", "python3.11")
STAMP = "simplu-worker.json"
PROBE_TIMEOUT_S = 30
# A file system in memory, on Linux; in containers it is small, or no program in it may run: see is_roomy.
MEMORY_FOLDER = "/dev/shm"  # noqa: S108 - the folder for TMPDIR: tempfile draws the names in it
MEMORY_MIN_BYTES = 4 * 1024**3
# Printed as one JSON line; Debian without python3-venv has venv and lacks ensurepip.
PROBE = (
    "import importlib.util as u, json, sys; "
    "print(json.dumps([list(sys.version_info[:3]), bool(u.find_spec('venv') and u.find_spec('ensurepip')), "
    "bool(u.find_spec('pip'))]))"
)
COMPILE = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-header", "-q"]
# simplu-local is on no index: its dependencies come from its own pyproject.toml.
BOTH = ["pyproject.toml", "simplu_local/pyproject.toml", "--extra", "cache", "--extra", "tracing"]
LOCKS = {
    "worker": ["pyproject.toml", "--extra", "cache", "--extra", "tracing"],
    "local": [*BOTH, "--group", "build"],
    "dev": [*BOTH, "--group", "build", "--group", "test", "--group", "lint"],
    "build": ["--group", "build"],
    "uv": ["requirements/uv.in"],
    "tools": ["requirements/tools.in"],
    "ministack": ["requirements/ministack.in"],
    "bench": ["requirements/bench.in", "-c", "requirements/worker.txt"],
    "mutants": [
        *["requirements/mutants.in", *BOTH, "--group", "build", "--group", "test"],
        *["-c", "requirements/dev.txt"],
    ],
    "fuzz": [
        *["requirements/fuzz.in", "pyproject.toml", "--extra", "cache", "--group", "build"],
        *["-c", "requirements/dev.txt"],
    ],
}
WITHOUT_US = ("tools", "ministack", "bench")  # the sets of environments into which our own package is not installed
LINTERS = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["lint-imports"])
CACHES = (
    *("mutants", "site", ".site", ".fuzz"),
    *(".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".import_linter_cache"),
)


class Python(NamedTuple):
    """An interpreter that ran when asked."""

    path: str
    version: Tuple[int, int, int]
    makes_venvs: bool
    has_pip: bool


class Choice(NamedTuple):
    """The interpreter to use, if there is one, and what was looked for and found on the way."""

    python: Optional[Python]
    looked: List[str]
    lacks_venv: Optional[Python]


class CommandFailedError(Exception):
    """A command ended with a status other than 0; the text is all it said."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stop(text: str) -> NoReturn:
    say(text)
    sys.exit(1)


def probe(path: str) -> Optional[Python]:
    """Run *path* and return what it is; None when it does not really run, as shims of version managers may not."""
    try:
        done = subprocess.run(
            [path, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT_S,
            check=True,
        )
        version, makes_venvs, has_pip = json.loads(done.stdout.decode())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Python(path, (version[0], version[1], version[2]), makes_venvs, has_pip)


def places(name: str, search_path: str) -> List[str]:
    """Return every executable *name* on *search_path*, less those inside our own environments (they get remade)."""
    found = [os.path.join(folder, name) for folder in search_path.split(os.pathsep) if folder]
    own = tuple(venv + os.sep for venv in VENVS)
    return [path for path in found if os.access(path, os.X_OK) and not os.path.abspath(path).startswith(own)]


def choose_python(search_path: str, running: str, *, have_uv: bool) -> Choice:
    """Return the first of NAMES on *search_path* that runs and suits, else *running* when it does.

    Without uv an interpreter also has to have venv and ensurepip.
    """
    looked: List[str] = []
    lacks_venv: Optional[Python] = None
    for name, paths in [(name, places(name, search_path)) for name in NAMES] + [("the running one", [running])]:
        if not paths:
            looked.append(name + " not found")
        for path in paths:
            python = probe(path)
            if python is None:
                looked.append(name + " does not run (" + path + ")")
            elif python.version[:2] < OLDEST:
                looked.append("{} is {}.{}.{} ({})".format(name, *python.version, path))
            elif not (python.makes_venvs or have_uv):
                looked.append(name + " lacks venv or ensurepip (" + path + ")")
                lacks_venv = lacks_venv or python
            else:
                return Choice(python, looked, lacks_venv)
    return Choice(None, looked, lacks_venv)


def how_to_install(lacks_venv: Optional[Python]) -> str:
    """Return the command that brings what is missing, for the systems we know."""
    if lacks_venv is not None:
        return (
            "Python {0}.{1} is here, but not its venv module. Install it and run this again:\n"
            "  Debian, Ubuntu: apt-get install python3-venv (or python{0}.{1}-venv, for this very version)\n"
            "  elsewhere:      put uv on the PATH, it needs neither venv nor pip"
        ).format(*lacks_venv.version)
    return (
        "simplu-worker needs Python 3.11 or newer. Install one and run this again:\n"
        "  Debian 12, Ubuntu 24.04 and newer: apt-get install python3 python3-venv\n"
        "  Fedora: dnf install python3.13\n"
        "  macOS:  brew install python@3.13"
    )


def chosen_python() -> Python:
    """Return the interpreter to build on and say in one line how it was found; ends the program when there is none."""
    running = sys.executable
    if os.path.abspath(running).startswith(tuple(venv + os.sep for venv in VENVS)):
        # The environment this runs in may be removed below: build on what it was made from.
        running = os.path.join(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info[:2]))
    choice = choose_python(os.environ.get("PATH", ""), running, have_uv=shutil.which("uv") is not None)
    looked = "; ".join(choice.looked)
    if choice.python is None:
        stop("Looked for Python: " + looked + "\n" + how_to_install(choice.lacks_venv))
    found = "{}.{}.{} ({})".format(*choice.python.version, choice.python.path)
    say("Looked for Python: " + (looked + "; " if looked else "") + "using " + found)
    return choice.python


def quiet(command: List[str]) -> None:
    """Run *command* without a word. Raises CommandFailedError with everything it said when it fails."""
    # A user-wide `user = true` of pip cannot work in an environment.
    environ = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace")
        raise CommandFailedError("$ {}\n{}\n(exit status {})".format(" ".join(command), said, done.returncode))


def wait_for_lock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Waiting for another run of this script to finish installing ...")
        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep other runs of this script in this folder out until done; the lock goes with the process."""
    # Open for writing: network file systems refuse an exclusive lock otherwise.
    try:
        own_text = os.open(os.path.join(ROOT, "run.py"), os.O_RDWR)
    except PermissionError:
        stop("Cannot write in " + ROOT + ", where .venv has to be made: use a clone that is yours.")
    try:
        wait_for_lock(own_text)
        yield
    finally:
        os.close(own_text)


def read_stamp(venv: str) -> Dict[str, str]:
    """Return what the last finished installation into *venv* was of; empty when there was none."""
    try:
        with open(os.path.join(venv, STAMP)) as stamp:
            return {str(key): str(value) for key, value in json.load(stamp).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_stamp(venv: str, stamp: Dict[str, str]) -> None:
    with open(os.path.join(venv, STAMP), "w") as out:
        json.dump(stamp, out)


def digest(requirements: str) -> str:
    """Return a hash over what decides whether an installation of *requirements* is still the right one."""
    sha = hashlib.sha256()
    for name in (os.path.join("requirements", requirements + ".txt"), "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as text:
            sha.update(hashlib.sha256(text.read()).digest())
    return sha.hexdigest()


def wanted_set(requirements: str, stamp: Dict[str, str]) -> str:
    """Return what to install for *requirements*: an environment that has `dev`, which contains `local`, keeps it."""
    return "dev" if requirements == "local" and stamp.get("requirements") == "dev" else requirements


def usable(venv: str, python: Python, stamp: Dict[str, str], *, have_uv: bool) -> bool:
    """Tell whether *venv* can be installed into: it runs, on the same Python, and did not move with its folder."""
    inside = probe(os.path.join(venv, "bin", "python"))
    return (
        inside is not None
        and inside.version[:2] == python.version[:2]
        and (inside.has_pip or have_uv)
        and stamp.get("folder", ROOT) == ROOT
    )


def make_venv(venv: str, python: Python, uv: Optional[str]) -> None:
    shutil.rmtree(venv, ignore_errors=True)
    quiet([uv, "venv", "-q", "--python", python.path, venv] if uv else [python.path, "-m", "venv", venv])
    with open(os.path.join(venv, ".gitignore"), "w") as ignore:
        ignore.write("*\n")


def installer(venv: str, uv: Optional[str]) -> List[str]:
    """Return the command that installs into *venv*: of uv, or without one of the pip in it."""
    inside = os.path.join(venv, "bin", "python")
    # Bytecode is made at first import: most modules of the emulators never are imported, and compiling them all takes
    # a quarter of pip's time. (uv does not compile unless told.)
    pip = [inside, "-m", "pip", "install", "--no-compile"]
    return [*([uv, "pip", "install", "--python", inside] if uv else pip), "-q"]


def install_pins(venv: str, requirements: str, uv: Optional[str]) -> None:
    pins = os.path.join("requirements", requirements + ".txt")
    quiet([*installer(venv, uv), "--require-hashes", "--only-binary", ":all:", "-r", pins])


def find_uv(venv: str) -> Optional[str]:
    """Return the uv on the PATH, or for an environment other than .venv the one in .venv; None: there is none yet."""
    return shutil.which("uv") or (None if venv == VENV else shutil.which("uv", path=os.path.join(VENV, "bin")))


def fetch_uv(venv: str) -> Optional[str]:
    """Return a uv in *venv*, by pip if need be: which takes ten times as long to install the rest. None: no wheel."""
    path = os.path.join(venv, "bin", "uv")
    try:
        if not os.access(path, os.X_OK):
            install_pins(venv, "uv", None)
    except CommandFailedError:
        return None
    return path


def install(venv: str, requirements: str, uv: Optional[str]) -> None:
    """Install the pins of *requirements*, and our own package in place where it belongs."""
    install_pins(venv, requirements, uv)
    if requirements not in WITHOUT_US:
        quiet([*installer(venv, uv), "--no-deps", "--no-build-isolation", "-e", "."])


def prepare(venv: str, requirements: str, python: Python, uv: Optional[str]) -> None:
    """Make *venv* if need be; its stamp says that it has nothing yet."""
    if not usable(venv, python, read_stamp(venv), have_uv=uv is not None):
        make_venv(venv, python, uv)
    write_stamp(venv, {"requirements": requirements, "folder": ROOT, "digest": ""})


def build(venv: str, requirements: str, python: Python) -> None:
    """Make *venv* if need be and install; the stamp says what is in it only once all is."""
    found = find_uv(venv)
    prepare(venv, requirements, python, found)
    uv = found or fetch_uv(venv)
    try:
        install(venv, requirements, uv)
    except CommandFailedError as failure:
        if uv is None or not python.makes_venvs:
            raise
        # uv reads other settings than pip (mirrors, certificates): pip may well get through.
        say("uv could not install, trying pip:\n" + str(failure))
        shutil.rmtree(venv, ignore_errors=True)
        prepare(venv, requirements, python, None)
        install(venv, requirements, None)
    write_stamp(venv, {"requirements": requirements, "folder": ROOT, "digest": digest(requirements)})


def ensure(venv: str, requirements: str) -> None:
    """Bring *venv* to the pins of *requirements*; nothing is done when it has them already."""
    python = chosen_python()
    with alone():
        stamp = read_stamp(venv)
        requirements = wanted_set(requirements, stamp)
        is_usable = usable(venv, python, stamp, have_uv=find_uv(venv) is not None)
        if is_usable and stamp.get("digest") == digest(requirements):
            return
        say("Installing requirements/{}.txt into {} ...".format(requirements, os.path.basename(venv)))
        started = time.monotonic()
        try:
            build(venv, requirements, python)
        except CommandFailedError as failure:
            stop(str(failure))
        say("Installed in {:.0f} s".format(time.monotonic() - started))


def become(command: List[str]) -> NoReturn:
    os.chdir(ROOT)
    os.execv(command[0], command)  # noqa: S606 - no shell between a signal and the program


def in_venv(name: str) -> str:
    return os.path.join(VENV, "bin", name)


def demo(args: List[str]) -> None:
    """Run the main job on an embedded stack."""
    ensure(VENV, "local")
    become([in_venv("simplu-worker"), "demo", *args])


def is_roomy(folder: str) -> bool:
    """Tell whether temporary files of the tests, and programs among them, can be in *folder*."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return False
    is_big = facts.f_bavail * facts.f_frsize >= MEMORY_MIN_BYTES
    return is_big and not facts.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK | os.X_OK)


def test(args: List[str]) -> None:
    """Run the tests; arguments go to pytest."""
    ensure(VENV, "dev")
    # Programs are started by the hundred, and each would compile again all that it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # So are Postgres servers, whose files nobody keeps: on a disk they cost several times the processor time.
    if "TMPDIR" not in os.environ and is_roomy(MEMORY_FOLDER):
        os.environ["TMPDIR"] = MEMORY_FOLDER
    become([in_venv("python"), "-m", "pytest", "-n", "4", *args])


def lint(_args: List[str]) -> None:
    """Run ruff, mypy and import-linter, all of them even when one finds something."""
    ensure(VENV, "dev")
    failed = []
    for command in LINTERS:
        say("$ " + " ".join(command))
        if subprocess.run([in_venv(command[0]), *command[1:]], cwd=ROOT, check=False).returncode != 0:
            failed.append(" ".join(command))
    if failed:
        stop("Failed: " + ", ".join(failed))


def bench(args: List[str]) -> None:
    """Run the benchmark of that name; further arguments go to it."""
    names = sorted(name.split(".")[0] for name in os.listdir(os.path.join(ROOT, "benchmarks")) if name[0] not in "_.")
    if not args or args[0] not in names:
        stop("Expected one of " + ", ".join(names))
    if args[0] == "throughput":
        ensure(BENCH_VENV, "bench")
    ensure(VENV, "local")
    become([in_venv("python"), "-m", "benchmarks." + args[0], *args[1:]])


def mutants(args: List[str]) -> None:
    """Mutate the pure modules and run the unit tests on each mutant; arguments name modules."""
    ensure(MUTANTS_VENV, "mutants")
    # Runs are to be alike: hypothesis tries the examples of CI.
    os.environ["CI"] = "1"
    become([os.path.join(MUTANTS_VENV, "bin", "python"), "-m", "mutation.run", *args])


def fuzz(args: List[str]) -> None:
    """Send made-up inputs to all that parses what comes from outside; arguments choose the targets and the time."""
    ensure(FUZZ_VENV, "fuzz")
    become([os.path.join(FUZZ_VENV, "bin", "python"), "-m", "fuzz.run", *args])


def setup(_args: List[str]) -> None:
    """Make .venv with everything for development."""
    ensure(VENV, "dev")


def tools(_args: List[str]) -> None:
    """Make .venv-tools with checkers of deploy/ and of HTTP, and .venv-ministack, an SQS to compare ours with."""
    ensure(TOOLS_VENV, "tools")
    ensure(MINISTACK_VENV, "ministack")


def site(args: List[str]) -> None:
    """Build the documentation site into site/, and check its links; with --pictures, its look in a browser too."""
    ensure(TOOLS_VENV, "tools")
    ensure(VENV, "dev")
    become([in_venv("python"), "-m", "support.site.build", *args])


def peers(args: List[str]) -> None:
    """Build the programs of other vendors that tests/peers runs, in .tools/peers; needs Java, Maven and Go."""
    ensure(VENV, "dev")
    become([in_venv("python"), "-m", "support.peers.build", *args])


def audit(args: List[str]) -> None:
    """Compare the pins with the advisories of the package index, or with --database FOLDER with a copy of them."""
    if args:
        ensure(VENV, "dev")
        become([in_venv("python"), "-m", "support.advisories.audit", *args])
    ensure(TOOLS_VENV, "tools")
    options = ["--strict", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    become([os.path.join(TOOLS_VENV, "bin", "pip-audit"), *options, "-r", "requirements/worker.txt"])


def lock(args: List[str]) -> None:
    """Compile requirements/*.txt anew; arguments (say --upgrade) go to uv."""
    uv = find_uv(TOOLS_VENV)
    if uv is None:
        ensure(TOOLS_VENV, "tools")
        uv = fetch_uv(TOOLS_VENV)
    if uv is None:
        stop("uv has no wheel for this system: put it on the PATH")
    for name, sources in LOCKS.items():
        out = "requirements/" + name + ".txt"
        say("Compiling " + out)
        try:
            quiet([uv, "pip", "compile", *sources, *COMPILE, *args, "-o", out])
        except CommandFailedError as failure:
            stop(str(failure))


def clean(_args: List[str]) -> None:
    """Remove the environments and caches."""
    with alone():
        for name in (*VENVS, *CACHES):
            shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)


COMMANDS: Dict[str, Callable[[List[str]], None]] = {
    "demo": demo,
    "test": test,
    "lint": lint,
    "bench": bench,
    "mutants": mutants,
    "fuzz": fuzz,
    "setup": setup,
    "tools": tools,
    "site": site,
    "peers": peers,
    "audit": audit,
    "lock": lock,
    "clean": clean,
}


def usage() -> str:
    lines = ["  {:<6} {}".format(name, (command.__doc__ or "").split("\n")[0]) for name, command in COMMANDS.items()]
    return "\n".join(["Usage: python3 run.py COMMAND [ARGUMENT ...]", *lines])


def main(argv: List[str]) -> None:
    if argv[1:2] in (["help"], ["-h"], ["--help"]):
        print(usage())
    elif not argv[1:] or argv[1] not in COMMANDS:
        say(usage())
        sys.exit(2)
    else:
        try:
            COMMANDS[argv[1]](argv[2:])
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main(sys.argv)
