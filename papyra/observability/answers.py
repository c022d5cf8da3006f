"""What is answered about a system, whichever way the question came."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qs

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import (
    InvalidPolicy,
    InvalidSetting,
    StoreError,
    StoreReplaced,
)
from papyra.observability.endpoint import Answer, plain
from papyra.observability.lifecycles import read_timeline_after
from papyra.observability.readiness import Readiness
from papyra.observability.timeline_page import data, page
from papyra.system import ActorSystem

#: Nobody may show the page in a frame, or learn its address.
_PAGE_HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
#: The greatest position that a store can give.
_LAST_POSITION = 2**63 - 1


def alive(system: ActorSystem | None) -> Answer:
    """Return whether the process should go on."""
    is_alive = system is None or system.failure is None
    return _json(200 if is_alive else 503, {"alive": is_alive})


def readiness(found: Readiness) -> Answer:
    """Return whether to send requests."""
    return _json(200 if found.ready else 503, found)


def figures(systems: Iterable[ActorSystem | None], accept: str) -> Answer:
    """Return the figures of those systems that there are, in the format that is accepted."""
    from papyra.observability.prometheus import scrape  # noqa: PLC0415 - an extra of its own

    body, content_type = scrape([each for each in systems if each is not None], accept)
    return Answer(200, content_type, body)


async def timeline(system: ActorSystem, query: str, records: int) -> Answer:
    """Return the page; or, for who asks for what comes after a position, that."""
    try:
        return await _timeline(system, query, records)
    except StoreReplaced:
        return plain(409, "The store has not come so far.")
    except StoreError:
        return plain(503, "The store does not answer.")


def no_timeline() -> Answer:
    """Return that there is nothing to be read, as the system does not run."""
    return plain(503, "The system does not run.")


def forbidden() -> Answer:
    """Return that this is for others."""
    return plain(403, "Forbidden")


def check_timeline(allow: object, records: object) -> None:
    """Raise `InvalidSetting` and `InvalidPolicy` for what makes no sense."""
    if not callable(allow):
        raise InvalidSetting(f"allow is a function that decides who may see it, not {shown(allow)}")
    if type(records) is not int or records < 0:
        raise InvalidPolicy(f"records is a whole number, 0 or more, not {shown(records)}")


async def _timeline(system: ActorSystem, query: str, records: int) -> Answer:
    backend = system.backend
    name = f"{system.system_id} in {backend.location}" if backend.location else system.system_id
    asked = parse_qs(query, keep_blank_values=True)
    if "after" not in asked:
        after = max(0, backend.last_seq - records)
        shown_page = page(await read_timeline_after(backend, name, after))
        return Answer(200, "text/html; charset=utf-8", shown_page.encode(), _PAGE_HEADERS)
    text = asked["after"][-1]
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LAST_POSITION):
        return plain(400, "after is a position, a whole number.")
    found = await read_timeline_after(backend, name, int(text))
    return Answer(200, "application/json", data(found).encode())


def _json(status: int, content: object) -> Answer:
    return Answer(status, "application/json", msgspec.json.encode(content))
