"""A proxy that knows where PostgreSQL's messages begin, and cuts connections at any of them."""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import ssl
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from tests.proxy import TcpProxy, hang_up

__all__ = ("PLACES", "Cut", "Place", "Proxy")

Place: TypeAlias = Literal["before", "in", "after", "late", "at"]
PLACES: tuple[Place, ...] = ("before", "in", "after", "late")

_SSL, _GSS = bytes.fromhex("04d2162f"), bytes.fromhex("04d21630")
#: After which the server says that it is ready: a query, and a synchronization.
_UNTIL_READY = (">Q", ">S")
#: After which it says that for the first time. Without a password, there is nothing to wait for.
_PASSWORD = ">p"


class Cut(NamedTuple):
    """Where to cut: at the message of this number, of those that go either way, from 0 on.

    ``before`` it is passed on, ``in`` its midst, or ``after`` it. ``late`` cuts the client off
    before it, and the server only when it has got it by `Proxy.release`: until then the server
    takes the client for a slow one. (What the server says is never late: that is ``before``.)
    ``at`` cuts nothing: `Proxy.meanwhile` is called before the message is passed on.
    """

    message: int
    place: Place


class Proxy(TcpProxy):
    """Passes everything on. From `arm` on it counts messages, and cuts one connection."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(target, tls)
        self.cut: Cut | None = None
        #: messages that were counted, as the letters of their types, upper case or not; ``>`` goes
        #: before what the client says, and ``<`` before what the server says
        self.seen: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self._late: tuple[_Connection, bytes] | None = None

    def __exit__(self, *exc_info: object) -> None:
        if self._late is not None:
            self._sockets.add(self._late[0].server)
        super().__exit__(*exc_info)

    def url(self, url: str) -> str:
        """Return the URL that leads to the same database through this proxy."""
        return re.sub(r"(//(?:[^@/]*@)?)[^@/]*", rf"\g<1>127.0.0.1:{self.port}", url, count=1)

    def arm(self, cut: Cut) -> None:
        """Count messages from now on, and cut there."""
        self.seen = []
        self.cut = cut

    def disarm(self) -> bool:
        """Cut nowhere any more; return whether it was cut."""
        cut, self.cut = self.cut, None
        return cut is None

    @property
    def is_late(self) -> bool:
        """Whether the server is to get something yet."""
        return self._late is not None

    def release(self) -> list[str]:
        """Let what is late arrive; return the types of what the server says to it."""
        late, self._late = self._late, None
        assert late is not None
        connection, data = late
        said: list[str] = []
        with contextlib.suppress(OSError):  # the server knew before that it is over
            connection.count_requests(data)
            connection.server.sendall(data)
            while connection.awaited and (reply := connection.late_replies.get(timeout=60)):
                said.append(reply)
            while not connection.late_replies.empty():
                said.append(connection.late_replies.get())
        hang_up(connection.server)
        return said

    def start_tls(self, client: socket.socket) -> socket.socket:
        """Answer the request that comes before, and return the encrypted connection."""
        if self.tls is None:
            return client
        asked = client.recv(8)
        if asked[4:] != _SSL:
            raise OSError("this client does not ask for TLS")
        client.sendall(b"S")
        return super().start_tls(client)

    def connect(self, client: socket.socket, server: socket.socket) -> _Connection:
        """Return what cuts this connection."""
        return _Connection(self, client, server)

    def _place(self, said: str) -> Place | None:
        """Count a message; return where to cut, if it is the one."""
        cut = self.cut
        if cut is None:
            return None
        self.seen.append(said)
        if len(self.seen) <= cut.message:
            return None
        self.cut = None
        return cut.place

    def _keep(self, connection: _Connection, data: bytes) -> None:
        self._sockets.discard(connection.server)
        self._late = (connection, data)


class _Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        #: how often the server is to say yet that it is ready
        self.awaited = 0
        self.is_late = False
        #: what the server says to nobody; nothing at its end
        self.late_replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_started = False
        self._asks_in_clear = 0

    def pass_requests(self) -> None:
        with contextlib.suppress(OSError):
            self._pass(self.client, self.server, self._next_request, ">")
        self._end()

    def pass_replies(self) -> None:
        with contextlib.suppress(OSError):
            self._pass(self.server, self.client, self._next_reply, "<")
        self.late_replies.put("")
        self._end()

    def count_requests(self, data: bytes) -> None:
        """Count how often the server is to say that it is ready, once it has this."""
        while size := self._next_request(data[:8]):
            said = f">{chr(data[0])}"
            self._passed(said, data)
            data = data[size:]

    def _end(self) -> None:
        hang_up(self.client)
        if not self.is_late:
            hang_up(self.server)

    def _passed(self, said: str, message: bytes) -> None:
        """Note what a message that is passed on changes."""
        if not self._is_started and said[0] == ">":
            if message[4:8] in (_SSL, _GSS):
                self._asks_in_clear += 1
            else:
                self._is_started = True
        elif self._asks_in_clear and said[0] == "<":
            self._asks_in_clear -= 1
        elif said == _PASSWORD:
            self.awaited = 1
        elif said in _UNTIL_READY:
            self.awaited += 1
        elif said == "<Z":
            self.awaited = max(0, self.awaited - 1)

    def _pass(
        self,
        source: socket.socket,
        target: socket.socket,
        next_message: Callable[[bytes], int],
        way: str,
    ) -> None:
        """Pass messages on, until one side hangs up, or a cut is made."""
        data = b""
        while more := source.recv(1 << 20):
            data += more
            passed = 0
            while (size := next_message(data[passed : passed + 8])) and passed + size <= len(data):
                said = way + (chr(data[passed]) if data[passed] else "-")
                place = None if self.is_late else self.proxy._place(said)
                if place == "at":
                    target.sendall(data[:passed])
                    data, passed = data[passed:], 0
                    self.proxy.meanwhile()
                elif place == "late" and way == ">":
                    target.sendall(data[:passed])
                    self.is_late = True
                    self.proxy._keep(self, data[passed:])
                    return
                elif place is not None:
                    part = {"in": size // 2, "after": size}.get(place, 0)
                    target.sendall(data[: passed + part])
                    return
                self._passed(said, data[passed : passed + 8])
                if self.is_late:
                    self.late_replies.put(said[1:])
                passed += size
            try:
                target.sendall(data[:passed])
            except OSError:
                if not self.is_late:  # of which there is no client any more
                    raise
            data = data[passed:]

    def _next_request(self, head: bytes) -> int:
        """Return the size of a client's next message, or 0 if that is not known yet."""
        if self._is_started:
            return 1 + int.from_bytes(head[1:5]) if len(head) >= 5 else 0
        return int.from_bytes(head[:4]) if len(head) == 8 else 0

    def _next_reply(self, head: bytes) -> int:
        """Return the size of a server's next message, or 0 if that is not known yet."""
        if self._asks_in_clear and head:
            return 1
        return 1 + int.from_bytes(head[1:5]) if len(head) >= 5 else 0
