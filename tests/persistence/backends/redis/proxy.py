"""A proxy that cuts connections to a Redis server where a test says."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from tests.proxy import TcpProxy, hang_up

__all__ = ("Cut", "Proxy")

Place: TypeAlias = Literal["before", "in request", "after", "in reply", "late"]


_FENCE = b"the answers to what was late follow"


class Cut(NamedTuple):
    """Where to cut: ``before`` the request reaches the server, or after `at` bytes of it; ``after``
    it was answered, but before the answer is passed on, or after `at` bytes of that. ``late``
    cuts before, and sends the request on its way when `Proxy.release` is called.
    """

    place: Place
    at: int = 0


class Proxy(TcpProxy):
    """Passes everything on, but for requests that contain a marker, as long as there are cuts."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(target, tls)
        self.cuts: deque[Cut] = deque()
        self.marker = b""
        #: called with what a client asked, once the server has answered and before the client knows
        self.meanwhile: Callable[[bytes], object] | None = None
        self.cuts_made = 0
        self._late: list[tuple[_Connection, bytes]] = []
        self._late_answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def __exit__(self, *exc_info: object) -> None:
        for connection, _ in self._late:
            self._sockets.add(connection.server)
        super().__exit__(*exc_info)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def connect(self, client: socket.socket, server: socket.socket) -> _Connection:
        """Return what cuts this connection."""
        return _Connection(self, client, server)

    def release(self) -> bytes:
        """Let what is late arrive; return what the server says to the last of it."""
        answer = b""
        late, self._late = self._late, []
        for connection, data in late:
            self._sockets.add(connection.server)
            connection.is_released = True
            # What comes before this echo answers what was asked before.
            connection.server.sendall(b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(_FENCE), _FENCE))
            connection.server.sendall(data)
            answer = self._late_answers.get(timeout=60)
        return answer

    def _next_cut(self, data: bytes) -> Cut | None:
        if not self.cuts or self.marker not in data:
            return None
        self.cuts_made += 1
        return self.cuts.popleft()

    def _keep(self, connection: _Connection, data: bytes) -> None:
        self._sockets.discard(connection.server)
        self._late.append((connection, data))


class _Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        #: bytes of the next reply that are passed on before the cut; `None` for no cut
        self.passed: int | None = None
        self.is_late = False
        #: whether what is late was sent on its way
        self.is_released = False
        self._request = b""

    def pass_requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(1 << 20):
                self._request = data
                cut = self.proxy._next_cut(data)
                if cut is None:
                    self.server.sendall(data)
                    continue
                match cut.place:
                    case "before":
                        break
                    case "in request":
                        self.server.sendall(data[: cut.at])
                        break
                    case "late":
                        self.is_late = True
                        self.proxy._keep(self, data)
                        break
                    case "after" | "in reply":
                        self.passed = cut.at
                        self.server.sendall(data)
        hang_up(self.client)
        if not self.is_late:
            hang_up(self.server)

    def pass_replies(self) -> None:
        late = b""
        with contextlib.suppress(OSError):
            while data := self.server.recv(1 << 20):
                if self.is_released:
                    late += data
                    answer = late.partition(_FENCE + b"\r\n")[2]
                    if not answer:
                        continue
                    self.proxy._late_answers.put(answer)
                    return
                if self.proxy.meanwhile is not None:
                    self.proxy.meanwhile(self._request)
                # As it is now: once the client has its answer, it asks for more.
                passed = self.passed
                # Answers to what came before may come when nobody waits for them any more.
                with contextlib.suppress(OSError):
                    self.client.sendall(data[:passed])
                    if passed is None:
                        continue
                if not self.is_late:
                    break
        hang_up(self.client)
        if not self.is_late:
            hang_up(self.server)
