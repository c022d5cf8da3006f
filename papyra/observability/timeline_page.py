"""The page of a timeline: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib.resources import files

import msgspec

from papyra.observability.lifecycles import Timeline

_PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")

#: What could end a script element, open a comment in it, or end a line of JavaScript. In JSON these
#: occur in strings only, where the escape means the same.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}

#: Strings, and numbers, in JSON.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*')
#: The greatest integer that JavaScript tells from its neighbours.
_GREATEST = str(2**53 - 1)


def page(lives: Timeline) -> str:
    """Return a page that shows `lives`. It can be written as UTF-8, whatever is in them.

    With a `head`, it follows what comes from then on: it asks its own URL for `data`, with the
    position in the query, as ``after``.
    """
    template = files("papyra.observability").joinpath("timeline.html").read_text("utf-8")
    content = {
        "title": html.escape(f"{_shown(lives.store)} - timeline"),
        "lives": data(lives).translate(_ESCAPES),
        "script": _source_of(template, '<script type="module">', "</script>"),
        "style": _source_of(template, "<style>", "</style>"),
        "connect": "" if lives.head is None else " connect-src 'self';",
    }
    # In one pass, so that data that looks like a placeholder stays what it is.
    return _PLACEHOLDER.sub(lambda found: content[found[1]], template)


def data(lives: Timeline) -> str:
    """Return `lives` as JSON, with great integers as strings, as JavaScript knows no such."""
    named = msgspec.structs.replace(lives, store=_shown(lives.store))
    return _TOKEN.sub(lambda token: _exact(token[0]), msgspec.json.encode(named).decode())


def _shown(store: str) -> str:
    # A path that is not valid UTF-8 comes with lone surrogates, which no encoding takes.
    return store.encode("utf-8", "backslashreplace").decode()


def _exact(token: str) -> str:
    """Return a string or a number as JavaScript keeps it: a great integer as a string."""
    digits = token.removeprefix("-")
    if not digits.isdigit() or len(digits) < len(_GREATEST):
        return token
    return f'"{token}"' if len(digits) > len(_GREATEST) or digits > _GREATEST else token


def _source_of(template: str, start: str, end: str) -> str:
    """Return what is between the tags `start` and `end` as a source for Content-Security-Policy.

    With the hash of its own script as the only source, the page runs nothing else, not even the
    handler in an attribute.
    """
    text = template.partition(start)[2].partition(end)[0]
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
