"""Servers that tests start, whichever kind: on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import secrets
import socket

__all__ = ("PATIENCE", "NoServer", "free_port")

#: Seconds that a server gets to start, or to stop.
PATIENCE = 60.0

#: Below the ports that systems give to outgoing connections, also with 10,000 more, as the nodes of
#: a cluster have a second one: so a server that is started again finds its port free.
_PORTS = range(10_000, 22_000)


class NoServer(Exception):
    """There is no server to start, or it did not start."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody has, at the moment."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
