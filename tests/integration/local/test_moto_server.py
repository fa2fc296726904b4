"""moto, as tests and the local stack run it."""

from __future__ import annotations

from http.client import HTTPConnection
from urllib.parse import urlsplit


def test_moto_answers_on_one_connection_again_and_again(endpoint_url: str) -> None:
    connection = HTTPConnection(urlsplit(endpoint_url).netloc, timeout=10)
    sockets = []
    for _ in range(3):
        connection.request("GET", "/")
        reply = connection.getresponse()
        assert (reply.status, reply.read()[:5]) == (200, b"<?xml")
        sockets.append(connection.sock)
    connection.close()

    assert sockets[0] is not None
    assert sockets == sockets[:1] * 3
