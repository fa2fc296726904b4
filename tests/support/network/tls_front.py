"""TLS in front of a server on loopback that has none, for clients that speak nothing else."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from support.network.tcp_proxy import READ_BYTES, TcpProxy
from support.requires import required_program


class TlsFront(TcpProxy):
    """Forwards what comes over TLS to the server at *url*; its certificate, made in *folder*, is nobody's."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__()
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._context = _context(folder)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "localhost", self.port, ssl=self._context)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(*self._target)
        self._connections |= {to_client, to_server}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(client, to_server))
                tasks.create_task(_pump(server, to_client))
        finally:
            self._connections -= {to_client, to_server}


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Forward until either side closes; then close the other."""
    try:
        while data := await source.read(READ_BYTES):
            target.write(data)
            await target.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        target.close()


def make_certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """Make a certificate that is nobody's, for *name*; return its file and that of its key."""
    openssl = required_program("openssl", how="apt-get install openssl")
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    names = ("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files],
        capture_output=True,
        check=True,
    )
    return certificate, key


def _context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(folder))
    return context
