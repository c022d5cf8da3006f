"""Where an actor is."""

from __future__ import annotations

import re

import msgspec

from papyra._safe_repr import shown
from papyra.exceptions import InvalidActorName


class ActorAddress(msgspec.Struct, frozen=True, order=True):
    """The place of an actor in its system: ``str(address)`` is ``"shop/cart/line-1"``.

    An address names a place, not an incarnation: it stays the same when the actor restarts,
    and once an actor has stopped, a later one may take its place.
    """

    system_id: str
    #: the names from the top-level actor down, joined with ``/``
    path: str

    def __str__(self) -> str:
        return f"{self.system_id}/{self.path}" if self.path else self.system_id

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> ActorAddress | None:
        """The address of the parent, or ``None`` for a top-level actor."""
        above = self.path.rpartition("/")[0]
        return ActorAddress(self.system_id, above) if above else None

    def child(self, name: str) -> ActorAddress:
        """Return the address of the child called `name`.

        Raises `InvalidActorName` when `name` is not a printable string without ``/``.
        """
        plain = check_name(name)
        return ActorAddress(self.system_id, f"{self.path}/{plain}" if self.path else plain)


#: Characters in one name. A longer one is no name but data that got there by mistake.
MAX_NAME_LENGTH = 1_000


def check_name(name: object) -> str:
    """Return `name` as it is written into addresses.

    Raises `InvalidActorName` unless it can be a part of one.
    """
    # A member of an enum, say, may show itself as something else.
    plain = str.__str__(name) if isinstance(name, str) else ""
    if not plain or not plain.isprintable() or "/" in plain:
        raise _invalid(name, "use a printable string without '/'")
    if len(plain) > MAX_NAME_LENGTH:
        raise _invalid(name, f"use at most {MAX_NAME_LENGTH:,} characters")
    return plain


def users_name(name: object) -> str:
    """Return the name that a user gives to an actor.

    Raises `InvalidActorName` as `check_name` does, and for those that start with ``$``: they are
    the system's own.
    """
    plain = check_name(name)
    if plain.startswith("$"):
        raise _invalid(name, "names that start with '$' are the system's own")
    return plain


#: What `escaped` replaces. All that is not ASCII is among it: which other characters are printable
#: depends on the version of Python, and a name must not.
_ESCAPED = re.compile(r"[^ -~]|[%/$]")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")


def escaped(text: str) -> str:
    """Return the name that stands for `text`, whatever that holds: ``a/ü`` is ``a%2F%C3%BC``.

    Escaped as in URLs, each text gives another name, of any length.
    """
    return _ESCAPED.sub(_escape, text)


def unescaped(name: str) -> str:
    """Return the text for which `name` stands."""
    plain = _ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), name.encode())
    return plain.decode(errors="surrogatepass")


def _escape(character: re.Match[str]) -> str:
    # No UTF-8 holds half of a surrogate pair, but a string may.
    return "".join(f"%{byte:02X}" for byte in character[0].encode(errors="surrogatepass"))


def _invalid(name: object, why: str) -> InvalidActorName:
    return InvalidActorName(f"{shown(name, length=60)} can't be part of an address: {why}")
