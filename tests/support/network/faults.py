"""Ways in which a server is not there or is not the expected one, each as an address to connect to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from simplu_local.processes.loopback import HOST, free_port

CA_FILE: Final = "trusted.pem"
_DAY: Final = dt.timedelta(days=1)


class Fault(StrEnum):
    """What is wrong with a server."""

    UNKNOWN_HOST = "unknown host"
    REFUSED = "refused port"
    RESET = "reset"
    SILENT = "timeout"
    UNKNOWN_CA = "TLS of an unknown CA"
    WRONG_NAME = "wrong certificate name"
    EXPIRED = "expired certificate"
    PLAIN = "HTTP in place of HTTPS"
    TLS = "HTTPS in place of HTTP"

    @property
    def is_asked_by_tls(self) -> bool:
        return self in CERTIFIED or self is Fault.PLAIN


CERTIFIED: Final = (Fault.UNKNOWN_CA, Fault.WRONG_NAME, Fault.EXPIRED)


def make_certificates(folder: Path) -> None:
    """Make the file of the trusted CA, and a certificate for each of CERTIFIED, in *folder*."""
    trusted, unknown = _make_ca("trusted"), _make_ca("unknown")
    (folder / CA_FILE).write_bytes(trusted[0].public_bytes(serialization.Encoding.PEM))
    now = dt.datetime.now(dt.UTC)
    _write(folder, Fault.UNKNOWN_CA, unknown, HOST, now + _DAY)
    _write(folder, Fault.WRONG_NAME, trusted, "127.0.0.9", now + _DAY)
    _write(folder, Fault.EXPIRED, trusted, HOST, now - _DAY)


def _make_ca(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    builder = _builder(name, name, key, now - 9 * _DAY, now + 9 * _DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256()), key


def _builder(
    name: str, issuer: str, key: ec.EllipticCurvePrivateKey, begins: dt.datetime, ends: dt.datetime
) -> x509.CertificateBuilder:
    subject, issued_by = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, f"simplu test {issuer}")
    )
    builder = x509.CertificateBuilder().subject_name(issued_by if name == issuer else subject).issuer_name(issued_by)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(begins).not_valid_after(ends)


def _write(
    folder: Path,
    fault: Fault,
    ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    host: str,
    ends: dt.datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = "trusted" if fault is not Fault.UNKNOWN_CA else "unknown"
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    certificate = _builder(host, issuer, key, ends - 5 * _DAY, ends).add_extension(names, critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca[1].public_key())
    signed = certificate.add_extension(authority, critical=False).sign(ca[1], hashes.SHA256())
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / f"{fault}.pem").write_bytes(
        signed.public_bytes(pem) + key.private_bytes(pem, private, serialization.NoEncryption())
    )


@contextlib.asynccontextmanager
async def serving_faults(folder: Path, *, is_postgres: bool) -> AsyncIterator[dict[Fault, tuple[str, int]]]:
    """Serve each fault; yield the hosts and ports. A client of Postgres asks for TLS before it begins it."""

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own: socket.socket = writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def be_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        writer.close()

    async def answer_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"N" if is_postgres else b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    def begin_tls(fault: Fault) -> object:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readexactly(8)
                writer.write(b"S")
                await writer.start_tls(context_of(fault))
                await reader.read(1)
            writer.close()

        return serve

    def context_of(fault: Fault) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{fault}.pem")
        return context

    async with AsyncExitStack() as stack:

        async def serve(client: object, context: ssl.SSLContext | None = None) -> tuple[str, int]:
            server = await asyncio.start_server(client, HOST, 0, ssl=context)  # type: ignore[arg-type]
            stack.callback(server.close)
            return HOST, server.sockets[0].getsockname()[1]

        places = {
            Fault.UNKNOWN_HOST: ("nowhere.invalid", 9),
            Fault.REFUSED: (HOST, free_port()),
            Fault.RESET: await serve(reset),
            Fault.SILENT: await serve(be_silent),
            Fault.PLAIN: await serve(answer_plainly),
            Fault.TLS: await serve(be_silent, context_of(Fault.UNKNOWN_CA)),
        }
        for fault in CERTIFIED:
            places[fault] = await serve(begin_tls(fault)) if is_postgres else await serve(be_silent, context_of(fault))
        yield places
