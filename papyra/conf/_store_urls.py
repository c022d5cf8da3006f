"""Stores, as URLs name them."""

from __future__ import annotations

from papyra.exceptions import (
    InvalidEnvironment,
    InvalidStoreURL,
    MissingExtra,
    UnsupportedPlatform,
)
from papyra.persistence.backends import registry
from papyra.persistence.backends.base import PersistenceBackend


def backend_from_url(url: str, *, read_only: bool = False) -> PersistenceBackend:
    """Return a new backend, not opened yet, on the store that `url` names.

    Such as ``memory:``, ``json:///var/lib/app/events.ndjson?fsync=everysec``,
    ``rotating:///var/lib/app/journal``, ``redis://localhost/0?system_id=orders`` or
    ``unix:///run/redis.sock?db=0``; `papyra.persistence.backends.registry` says how others join
    these. Of files, one that is `read_only` takes no lock. Raises `InvalidStoreURL`, which repeats
    no part of it that may be secret.
    """
    scheme, colon, _ = url.partition(":")
    try:
        registration = registry.find(scheme) if colon else None
        if registration is not None:
            return registration.from_url(url, read_only=read_only)
    except InvalidStoreURL:
        raise
    # What makes no sense (an InvalidPolicy is a ValueError, too), or can't be had here.
    except (ValueError, InvalidEnvironment, MissingExtra, UnsupportedPlatform) as error:
        raise InvalidStoreURL(str(error)) from error
    known = ", ".join(f"{name}:" for name in sorted(registry.schemes()))
    # The scheme only: the rest of a URL may hold a password.
    wrong = f"unknown scheme {scheme + ':'!r}" if colon else "a URL without a scheme"
    raise InvalidStoreURL(f"{wrong}; known: {known}")
