"""A disk that says what it may hold when the power is cut, after any call."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from papyra.persistence.backends._files.disk import Disk

#: The files of a directory that a cut has left.
State: TypeAlias = dict[str, bytes]


@dataclass
class Medium:
    """One file: what is on the device, and what was done to it since it was synced."""

    synced: bytes = b""
    #: writes, each with its offset, and lengths to which it was cut
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)

    def sync(self) -> None:
        self.synced, self.pending = self.after_a_cut(lambda *_: True), []

    def after_a_cut(self, keeps: Callable[..., bool], block: int = 512) -> bytes:
        """Return what is there, if `keeps` says which changes came to the device."""
        data = bytearray(self.synced)
        for change in self.pending:
            if isinstance(change, int):
                if keeps(change):
                    del data[change:]
                continue
            offset, written = change
            parts = list(_blocks(offset, written, block))
            kept = [part for part in parts if keeps(part)]
            longer = offset + len(written) if keeps(offset) else 0
            size = max([start + len(part) for start, part in kept] + [longer])
            data.extend(bytes(max(0, size - len(data))))
            for start, part in kept:
                data[start : start + len(part)] = part
        return bytes(data)


def _blocks(offset: int, data: bytes, block: int) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        length = block - (offset + position) % block
        yield offset + position, data[position : position + length]
        position += length


class PoweredDisk(Disk):
    """Works, and calls `watch` before and after whatever changes something."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.watch: Callable[[str], None] = lambda call: None
        #: how many of the next syncs fail
        self.failing_syncs = 0
        self._media: dict[int, Medium] = {}
        self._names: dict[str, Medium] = {}
        self._synced_names: dict[str, Medium] = {}
        #: what was done to names since the directory was synced
        self._renames: list[tuple[str, Medium | None]] = []

    def states(self, chance: random.Random, count: int) -> list[State]:
        """Return some of the states that a cut would leave now."""
        found: list[State] = []
        for number in range(count):
            names = dict(self._synced_names)
            upto = chance.randint(0, len(self._renames)) if number % 3 else len(self._renames)
            for name, medium in self._renames[:upto]:
                if medium is None:
                    names.pop(name, None)
                else:
                    names[name] = medium
            keeps = _choice(chance, number)
            block = chance.choice([512, 4096])
            state = {name: medium.after_a_cut(keeps, block) for name, medium in names.items()}
            if state not in found:
                found.append(state)
        return found

    def open(self, path: Path, flags: int) -> int:
        existed = path.exists()
        fd = super().open(path, flags)
        name = self._name(path)
        if not existed:
            self._rename(name, Medium())
        elif name not in self._names:
            self._names[name] = self._synced_names[name] = Medium(path.read_bytes())
        medium = self._media[fd] = self._names[name]
        if flags & os.O_TRUNC and existed:
            medium.pending.append(0)
        return fd

    def create(self, path: Path, like: os.stat_result | None = None, *, copy: bool = False) -> int:
        fd = super().create(path, like, copy=copy)
        name = self._name(path)
        self._rename(name, Medium())
        self._media[fd] = self._names[name]
        return fd

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.watch("write")
        written = super().write(fd, data, offset)
        self._media[fd].pending.append((offset, bytes(data[:written])))
        self.watch("written")
        return written

    def truncate(self, fd: int, length: int) -> None:
        self.watch("truncate")
        super().truncate(fd, length)
        self._media[fd].pending.append(length)
        self.watch("truncated")

    def sync(self, fd: int) -> None:
        self.watch("sync")
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, "the device has failed")
        self._media[fd].sync()
        self.watch("synced")

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._rename(self._name(target), self._names[self._name(source)])
        self._rename(self._name(source), None)
        self.watch("replaced")

    def remove(self, path: Path) -> None:
        existed = path.exists()
        super().remove(path)
        if existed:
            self._rename(self._name(path), None)
            self.watch("removed")

    def sync_directory(self, path: Path) -> None:
        self.watch("sync directory")
        self._synced_names = dict(self._names)
        self._renames.clear()
        self.watch("synced directory")

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _rename(self, name: str, medium: Medium | None) -> None:
        if medium is None:
            self._names.pop(name, None)
        else:
            self._names[name] = medium
        self._renames.append((name, medium))


def _choice(chance: random.Random, number: int) -> Callable[..., bool]:
    """Return what decides which changes come to the device: all, none, or some of them."""
    match number % 6:
        case 0:
            return lambda change: True
        case 1:
            return lambda change: False
        case 2:
            return lambda change: isinstance(change, int)  # longer, and nothing in it
        case 3:
            blocks = itertools.count()  # all but the first
            return lambda change: isinstance(change, int) or next(blocks) > 0
        case _:
            share = chance.random()
            return lambda change: chance.random() < share
