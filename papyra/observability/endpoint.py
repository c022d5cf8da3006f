"""An answer to one question; and the ASGI application that gives it, in whatever framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ("Answer", "Endpoint", "Scope", "headers_of", "plain", "refused")

#: What ASGI hands to an application: about the request, for what it receives, and what it sends.
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Answers are about this moment, and are what their type says.
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Answer(NamedTuple):
    """A response to a request."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Endpoint:
    """An ASGI application that answers GET and HEAD, and refuses other methods and websockets.

    A framework has it at a path: ``Starlette(routes=[Route("/health", endpoint)])``, the same with
    FastAPI, and ``asgi("/health", copy_scope=True)(endpoint)`` with Litestar.
    """

    # Frameworks ask functions for these.
    __name__ = __qualname__ = "Endpoint"

    def __init__(self, answer: Callable[[Scope], Awaitable[Answer]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises `NotImplementedError` for what is neither, as ASGI says."""
        match scope["type"]:
            case "http":
                await _send(send, await self._respond(scope), has_body=scope["method"] != "HEAD")
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1000})
            case other:
                raise NotImplementedError(f"this answers requests of HTTP, and no {other}")

    async def _respond(self, scope: Scope) -> Answer:
        return refused(scope["method"]) or await self._answer(scope)


def refused(method: str) -> Answer | None:
    """Return the answer to a method that asks for more than to read; `None` for the others."""
    if method in ("GET", "HEAD"):
        return None
    return plain(405, "Method Not Allowed", (b"allow", b"GET, HEAD"))


def plain(status: int, text: str, *headers: tuple[bytes, bytes]) -> Answer:
    """Return an answer that is a line of text."""
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers)


def headers_of(answer: Answer) -> list[tuple[bytes, bytes]]:
    """Return all headers of an answer."""
    return [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        *_HEADERS,
        *answer.headers,
    ]


async def _send(send: Send, answer: Answer, *, has_body: bool) -> None:
    headers = headers_of(answer)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if has_body else b""})
