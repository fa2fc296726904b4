"""Whether this machine has IPv6."""

from __future__ import annotations

import socket

from support.requires import require


def require_ipv6() -> None:
    """Skip the running test where the kernel has no IPv6 on loopback, or fail it as `require` does."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        require("IPv6 on loopback", found=False, how="sysctl net.ipv6.conf.lo.disable_ipv6=0")
