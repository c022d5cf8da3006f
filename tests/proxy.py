"""A TCP proxy on the loopback interface, whose connections tests cut."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Protocol, Self

__all__ = ("Connection", "TcpProxy", "hang_up")


class Connection(Protocol):
    """One connection through a proxy, each way in a thread of its own."""

    def pass_requests(self) -> None:
        """Pass on what the client sends, until it is over."""

    def pass_replies(self) -> None:
        """Pass on what the server sends, until it is over."""


class TcpProxy:
    """Accepts connections, and makes one to the server for each."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        #: what ends TLS here
        self.tls = tls
        #: the port that connections go to; may be changed
        self.target = target
        #: connections that were made
        self.connections = 0
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # A close alone would not wake who waits for a connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join()

    def cut_all(self) -> None:
        """Cut every connection there is."""
        for each in tuple(self._sockets):
            hang_up(each)

    def are_closed(self) -> bool:
        """Wait until every connection has come to its end."""
        for thread in self._threads[1:]:
            thread.join(60)
        return not any(thread.is_alive() for thread in self._threads[1:])

    def connect(self, client: socket.socket, server: socket.socket) -> Connection:
        """Return what passes on between the two."""
        raise NotImplementedError

    def start_tls(self, client: socket.socket) -> socket.socket:
        """Return the connection to a client, encrypted if there is TLS; raises `OSError`."""
        return client if self.tls is None else self.tls.wrap_socket(client, server_side=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                client = self.start_tls(client)
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # whoever called did not trust us, or the server is away
                client.close()
                continue
            self._sockets |= {client, server}
            connection = self.connect(client, server)
            for target in (connection.pass_requests, connection.pass_replies):
                thread = threading.Thread(target=target, daemon=True)
                self._threads.append(thread)
                thread.start()


def hang_up(connection: socket.socket) -> None:
    """Close a connection, also for who reads from it now."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
