"""The proxy that the tests of Redis cut connections with."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.persistence.backends.redis.proxy import Cut, Proxy
from tests.redis_server import RedisServer


@pytest.mark.parametrize("first", [b"PING first", b"PING early"])
def test_the_tests_redis_proxy_pairs_a_late_request_with_its_own_answer(
    server: RedisServer, first: bytes
) -> None:
    """A client that sends its questions in one go is cut off before it has its first answer."""
    is_cut = threading.Event()
    server.cli("CONFIG", "RESETSTAT")  # others have sent a PING, too
    with Proxy(server.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        proxy.marker = b"l"  # in the first, too, or not
        proxy.cuts += [Cut("after")] * (b"l" in first) + [Cut("late")]
        proxy.meanwhile = lambda request: is_cut.wait(60)
        client.sendall(first + b"\r\n")
        while not server.cli("INFO", "commandstats").count("cmdstat_ping"):
            pass
        client.sendall(b"ECHO late\r\n")
        assert client.recv(100) == b""  # cut off
        is_cut.set()
        assert proxy.release() == b"$4\r\nlate\r\n"
