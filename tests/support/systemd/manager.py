"""A real systemd beside the one of the machine: in namespaces of its own, with units of ours alone.

It is process 1 of a PID namespace, with its own /run, /opt and /usr/local/bin, and with a cgroup of its own. Its /etc
is a copy of the machine's with /etc/simplu-worker added, and loses its changes at the end. (An overlay would lose what
is mounted there when the machine's changes.) The network is the tests'. It
needs root; where the kernel or a sandbox refuses one of its mounts, it is missing.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.requires import ROOT, require

SYSTEMD = Path("/lib/systemd/systemd")
START_S = 60.0
COMMAND_S = 180.0  # longer than a unit may take to start
STEP_S = 0.1
# The units see no home directories and no /tmp, where the checkout and its Python may be.
WORKER = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib
PYTHONPATH=/opt/checkout:/opt/checkout/{packages} exec /opt/python/bin/{python} -m simplu_worker "$@"
"""
# What every unit refers to by default, without all that a machine hangs below it.
TARGETS = ("sysinit.target", "basic.target", "shutdown.target", "multi-user.target", "network-online.target")
SCRIPT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /usr/local/bin
mount -t tmpfs tmpfs /opt
mkdir -p /opt/etc /opt/checkout /opt/python
mount --bind {root} /opt/checkout
mount --bind {python} /opt/python
if [ -e {folder}/simplu-worker ]; then install -D {folder}/simplu-worker /opt/simplu-worker/bin/simplu-worker; fi
cp --archive /etc/. /opt/etc
mount --bind /opt/etc /etc
mkdir -p /etc/simplu-worker /etc/systemd/system
mount --bind {folder}/etc /etc/simplu-worker
mount --bind {folder}/units /etc/systemd/system
# Credentials are mounted by a process with a namespace of its own.
mount --make-rshared /
exec env -i PATH="$PATH" container=tests SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_LOG_TARGET=console \
    {systemd} --system --unit=multi-user.target
"""


class Systemd:
    """A running manager. *folder* has its units in `units`, and in `etc` the contents of /etc/simplu-worker."""

    def __init__(self, folder: Path, init_pid: int) -> None:
        self.folder = folder
        self._init_pid = init_pid

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self._init_pid}", "--mount", "--pid", "--cgroup", *command]

    def run(self, *command: str, status: int | None = 0) -> str:
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, check=False, timeout=COMMAND_S)
        assert status in {None, done.returncode}, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def systemctl(self, *arguments: str, status: int | None = 0) -> str:
        return self.run("systemctl", "--no-pager", *arguments, status=status)

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        text = self.systemctl("show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in text.splitlines())

    def wait_for(self, unit: str, *, within_s: float = START_S, **expected: str) -> dict[str, str]:
        """Wait until properties of *unit* have the *expected* values; return them."""
        until = time.monotonic() + within_s
        while (found := self.properties(unit, *expected)) != expected and time.monotonic() < until:
            time.sleep(STEP_S)
        assert found == expected
        return found


@contextmanager
def running_systemd(folder: Path, *, has_worker: bool = True) -> Iterator[Systemd]:
    """Run a systemd whose units are in *folder*`/units`; skip or fail as `require` does where that cannot be.

    The worker in /opt/simplu-worker is that of the checkout; without it, *has_worker*, the place is free.
    """
    require("systemd", found=SYSTEMD.exists(), how="apt-get install --no-install-recommends systemd")
    require("root, for a systemd in namespaces", found=os.geteuid() == 0, how="run the tests as root")
    for target in TARGETS:
        (folder / "units" / target).write_text(f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
    cgroup = _new_cgroup()
    log = (folder / "systemd.log").open("wb")
    python = Path(f"python{sys.version_info.major}.{sys.version_info.minor}")
    packages = Path(sysconfig.get_path("purelib")).relative_to(ROOT)
    if has_worker:
        (folder / "simplu-worker").write_text(WORKER.format(packages=packages, python=python), encoding="utf-8")
    places = {"root": ROOT, "folder": folder, "python": sys.base_prefix, "systemd": SYSTEMD}
    script = SCRIPT.format(**{name: shlex.quote(str(place)) for name, place in places.items()})
    # The shell enters the cgroup before it unshares: the root of the namespace is that cgroup.
    unshare = "unshare --mount --pid --cgroup --ipc --uts --fork --kill-child"
    enter = f'echo $$ > {cgroup}/cgroup.procs && exec {unshare} sh -c "$0"'
    process = subprocess.Popen(["sh", "-c", enter, script], stdout=log, stderr=log, start_new_session=True)
    try:
        yield Systemd(folder, _wait_for_manager(process, folder))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        log.close()
        _remove_cgroup(cgroup)


def _new_cgroup() -> Path:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    folders = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    require("cgroups of version 2", found=bool(folders), how="a kernel that has them mounted")
    return Path(tempfile.mkdtemp(prefix="simplu-tests-", dir=folders[0]))


def _remove_cgroup(cgroup: Path) -> None:
    until = time.monotonic() + START_S
    while cgroup.exists() and time.monotonic() < until:
        folders = sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True)
        for folder in (*folders, cgroup):
            with suppress(OSError):  # a process that is being killed is still in it
                folder.rmdir()
        time.sleep(STEP_S)


def _wait_for_manager(process: subprocess.Popen[bytes], folder: Path) -> int:
    until = time.monotonic() + START_S
    found = ""
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, LookupError, AssertionError):  # not there yet
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
            manager = Systemd(folder, int(children[0]))
            found = manager.systemctl("is-active", "multi-user.target", status=None).strip()
            if found == "active":
                return int(children[0])
        time.sleep(STEP_S)
    said = (folder / "systemd.log").read_text(encoding="utf-8", errors="replace")
    require(
        "systemd in namespaces", found=False, how=f"a kernel that allows it; multi-user.target is {found!r}:\n{said}"
    )
    raise AssertionError
