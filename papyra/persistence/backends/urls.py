"""URLs of stores that are kept at a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, unquote

from papyra._safe_repr import shown
from papyra.exceptions import InvalidStoreURL

__all__ = ("path_and_options",)


def path_and_options(
    url: str, options: Mapping[str, Callable[[str], object]]
) -> tuple[str, dict[str, object]]:
    """Return the path in a URL and the options in its query, each converted as `options` says.

    That is ``scheme:///an/absolute/path?option=value`` or ``scheme:a/relative/one``. Raises
    `InvalidStoreURL`, or the `ValueError` of a conversion.
    """
    scheme, _, rest = url.partition(":")
    path, _, query = rest.partition("?")
    if path.startswith("//") and not path.startswith("///"):
        raise InvalidStoreURL(
            f"a path is '{scheme}:///an/absolute/path' or '{scheme}:a/relative/one'"
        )
    given = dict(parse_qsl(query, keep_blank_values=True))
    path = unquote(path.removeprefix("//"))
    if not path or given.keys() - options.keys():
        known = f", and ?{', '.join(options)}=..." if options else ""
        raise InvalidStoreURL(f"'{scheme}:' takes a path{known}, not {shown(rest)}")
    return path, {name: options[name](value) for name, value in given.items()}
