"""Copies of errors that several tasks are to raise."""

from __future__ import annotations

import copy
from typing import TypeVar

ErrorT = TypeVar("ErrorT", bound=BaseException)


def copy_of(error: ErrorT) -> ErrorT:
    """Return an error that one caller can raise without adding to another's traceback.

    Whoever made its class may not have thought of copies: then it is the error itself.
    """
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 - users' classes may raise anything when they are made
        return error
    if type(copied) is not type(error):
        return error
    copied.__cause__ = error.__cause__
    return copied
