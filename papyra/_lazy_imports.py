"""Public names that are imported when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence


def finder(package: str, names: Sequence[str], modules: Sequence[str]) -> Callable[[str], object]:
    """Return a ``__getattr__`` for a package whose `names` are in some of its `modules`.

    They are searched in order, so those come first that the others stand on. What starts quickly
    then, as a command does, pays for the part that it uses; everybody else notices nothing.
    Type checkers follow none of this: for them, the package imports the same names once more.
    """

    def find(name: str) -> object:
        if name in names:
            for module in modules:
                found = importlib.import_module(f"{package}.{module}")
                if hasattr(found, name):
                    value: object = getattr(found, name)
                    setattr(sys.modules[package], name, value)  # found without this from now on
                    return value
        elif name.isidentifier() and not name.startswith("_"):
            # A module that nobody has imported yet: `import papyra; papyra.persistence`.
            try:
                return importlib.import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
