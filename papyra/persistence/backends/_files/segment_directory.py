"""The directory of a journal in segments: their names, what is foreign there, what is left over."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from papyra.exceptions import StoreMoved
from papyra.persistence.backends._files.disk import Disk, identity, is_regular
from papyra.persistence.backends._files.location import Place, printable
from papyra.persistence.backends.store import MAX_SEQ
from papyra.persistence.reports import PersistenceAnomaly

# A position has 14 digits at most.
_NAME = re.compile(r"(?!0{20})(0{6}\d{14})\.(ndjson|ndjson\.new|index|index\.new)", re.ASCII)


class SegmentDirectory:
    """A directory that is known by its identity, and not by its name."""

    def __init__(self, place: Place, disk: Disk) -> None:
        self.path = place.path
        self._name = place.name
        self._disk = disk
        self._identity = (0, 0)
        #: segments that a compaction had removed, and somebody has put there again
        self.put_back: list[Path] = []

    def make(self) -> None:
        """Make the directory, if there is none."""
        real = Path(os.path.realpath(self.path))  # where a link leads, which may be nowhere yet
        if self._disk.make_directory(real):
            self._disk.sync_directory(real.parent)

    def open(self) -> None:
        """Take note of which directory has the name now."""
        self._identity = identity(self._disk.stat(self.path))

    def check_name(self) -> None:
        """Raise `StoreMoved` if the name leads to another directory by now, or to none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if identity(self._disk.stat(self.path)) == self._identity:
                return
        raise StoreMoved(
            f"{self._name} was renamed, removed or replaced while it was open: "
            "put it back, or open the store anew"
        )

    def path_of(self, base: int) -> Path:
        """Return the path of the segment that follows record `base`."""
        return self.path / f"{base + 1:020}.ndjson"

    def bases(self) -> tuple[list[int], list[Path]]:
        """Return the record before each segment, in order, and unfinished files to remove."""
        bases, unfinished = [], []
        for name in self._disk.list(self.path):
            base, kind = self._parse(name) or (0, "foreign")
            if kind == "ndjson":
                bases.append(base)
            elif kind in ("ndjson.new", "index.new"):
                unfinished.append(self.path / name)
        return bases, unfinished

    def has_segment_after(self, base: int) -> bool:
        """Return whether there is a segment behind the one that follows record `base`."""
        return any(
            other > base and kind == "ndjson"
            for other, kind in filter(None, map(self._parse, self._disk.list(self.path)))
        )

    def _parse(self, name: str) -> tuple[int, str] | None:
        """Return base and kind of one of the journal's files; `None` for what is foreign."""
        match = _NAME.fullmatch(name)
        if match is None or not 0 < int(match[1]) <= MAX_SEQ or not is_regular(self.path / name):
            return None
        return int(match[1]) - 1, match[2]

    # Foreign files

    def foreign_files(self) -> list[Path]:
        """Return what does not belong in the directory."""
        names = self._disk.list(self.path)
        foreign = [self.path / name for name in names if name[0] != "." and not self._parse(name)]
        # But for those that were removed just now, as a compaction does it.
        return list(filter(os.path.lexists, foreign)) + self.put_back

    def anomalies(self) -> list[PersistenceAnomaly]:
        """Return an anomaly for each foreign file."""
        return [
            PersistenceAnomaly("foreign_file", self._why_foreign(path), self._named(path))
            for path in self.foreign_files()
        ]

    def _why_foreign(self, path: Path) -> str:
        if path in self.put_back:
            return "a compaction has removed the records of this segment"
        if _NAME.fullmatch(path.name) and not is_regular(path):
            return "this has the name of a segment, and is a link or no file at all"
        return "this is no file of a Papyra journal"

    def _named(self, path: Path) -> str:
        """Return the name in reports of something in the directory, whatever bytes it is of."""
        return printable(self._name / path.name)


class Leftovers:
    """Files that count for nothing, and are removed before anything else is written."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._paths: list[Path] = []

    def add(self, *paths: Path) -> None:
        """Add files that are to be removed."""
        self._paths += paths

    def clear(self) -> None:
        """Leave them to whoever looks at the directory next."""
        self._paths = []

    def remove(self) -> None:
        """Remove them, in order. Raises `OSError`; what is left is tried again."""
        while self._paths:
            self._disk.remove(self._paths[0])
            del self._paths[0]

    def hide(self, paths: Sequence[Path]) -> None:
        """Remove these, or, where that fails, give them a name that says that they don't count."""
        self._paths = list(paths)
        left = []
        for path in paths:
            try:
                self._disk.remove(path)
            except OSError:
                if path.exists():  # or it had not been made yet
                    hidden = path.with_name(path.name + ".new")
                    self._disk.replace(path, hidden)
                    left.append(hidden)
        self._paths = left

    @property
    def are_hidden(self) -> bool:
        """Whether none of them has the name of a segment."""
        return all(path.suffix == ".new" for path in self._paths)
