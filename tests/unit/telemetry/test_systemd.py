from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from simplu_worker.telemetry.systemd import EXTEND_START, SystemdNotifier


@pytest.fixture
def systemd() -> Iterator[tuple[str, socket.socket]]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="notify-") as folder:
        path = str(Path(folder) / "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(path)
            sock.settimeout(1)
            yield path, sock


def test_notifier_sends_one_message_per_call(systemd: tuple[str, socket.socket]) -> None:
    path, sock = systemd
    SystemdNotifier({"NOTIFY_SOCKET": path}).notify(EXTEND_START)
    assert sock.recv(1000) == b"EXTEND_TIMEOUT_USEC=60000000"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_notifier_does_nothing_when_there_is_no_unix_socket(environ: dict[str, str]) -> None:
    notifier = SystemdNotifier({**environ, "WATCHDOG_USEC": "30000000"})
    notifier.notify(EXTEND_START)
    assert notifier.watchdog_interval_s is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval_is_half_of_what_systemd_allows(environ: dict[str, str], expected: float | None) -> None:
    assert expected == SystemdNotifier({"NOTIFY_SOCKET": "/run/x", **environ}).watchdog_interval_s
