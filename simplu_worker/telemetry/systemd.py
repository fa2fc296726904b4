"""Notify systemd (sd_notify(3)), if it wants that."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

WATCHDOG_MARGIN = 2  # sd_watchdog_enabled(3): notify every half of the time that systemd allows
START_EXTENSION_S = 60  # longer than any pause between two tries of what a start waits for
READY: Final = "READY=1"  # the end of the start
EXTEND_START: Final = (
    f"EXTEND_TIMEOUT_USEC={START_EXTENSION_S * 1_000_000}"  # while it waits for what no restart brings
)
STOPPING: Final = "STOPPING=1"  # the beginning of the drain
WATCHDOG: Final = "WATCHDOG=1"  # the worker is live; every `watchdog_interval_s`


class SystemdNotifier:
    """The service's side of `Type=notify`; without a socket every call does nothing.

    Each message has a socket of its own. One that systemd does not accept is dropped: its time limits detect the loss.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of Linux's abstract names; any other beginning is no Unix socket.
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        self.watchdog_interval_s = _watchdog_interval_s(environ) if self._address else None
        """Seconds between two messages WATCHDOG; None if systemd does not watch this process."""

    def notify(self, message: str) -> None:
        """Send one of the messages above."""
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a full queue must not stop the event loop
            sock.sendto(message.encode(), self._address)


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        return None
    return int(text) / 1_000_000 / WATCHDOG_MARGIN
