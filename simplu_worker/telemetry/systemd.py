"""Tell systemd how the worker is (sd_notify(3)): one datagram a message, nothing where systemd is not asking."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

WATCHDOG_MARGIN = 2  # sd_watchdog_enabled(3): notify every half of the time that systemd allows


class SystemdNotifier:
    """The service's side of `Type=notify`, as *environ* describes it; every call does nothing without a socket.

    Each message opens its own socket, which leaves nothing to close. A message that systemd does not take is dropped:
    its own time limits are what notices.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of Linux's abstract names; anything but these two is not a Unix socket.
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        self.watchdog_interval_s = _watchdog_interval_s(environ) if self._address else None
        """Seconds between two calls of `watchdog`, or None where systemd does not watch this process."""

    def __repr__(self) -> str:
        return f"SystemdNotifier({self._address!r}, watchdog_interval_s={self.watchdog_interval_s})"

    def notify_ready(self) -> None:
        """Say that starting is over."""
        self._send("READY=1")

    def notify_stopping(self) -> None:
        """Say that draining has begun."""
        self._send("STOPPING=1")

    def set_status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send("STATUS=" + " ".join(text.split()))  # a line break would begin another assignment

    def notify_watchdog(self) -> None:
        """Say that the worker is alive; call it every `watchdog_interval_s`, and only while it is."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a full queue must not stop the event loop
            sock.sendto(message.encode(), self._address)


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """Return half of WATCHDOG_USEC, or None where it is unset, not a positive number, or another process's."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        return None
    return int(text) / 1_000_000 / WATCHDOG_MARGIN
