"""The README files of this repository, and the code blocks in them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import CodeType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

_BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)


def files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of the repository below `folder`, without caches and environments."""
    found = sorted(folder.rglob(pattern))
    return [path for path in found if not any(map(_is_made, path.relative_to(ROOT).parts))]


def _is_made(part: str) -> bool:
    return part == "__pycache__" or part.startswith(".")


#: By a glob: no guide has to be listed anywhere to be tested.
GUIDES = [README] + [
    path for folder in ("papyra", "examples", "tests") for path in files(ROOT / folder, "README.md")
]


def name(path: Path) -> str:
    """Return the path within the repository, which is how a guide is called in a report."""
    return path.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A code block of a guide."""

    guide: Path
    line: int
    language: str
    code: str
    #: what the block after it shows, if that one is `text`, and nothing stands between the two
    printed: str | None

    @property
    def place(self) -> str:
        return f"{name(self.guide)}:{self.line}"

    def compile(self, *, without: str = "") -> CodeType:
        """Return the code object, whose tracebacks name the lines of the guide."""
        code = "\n" * self.line + self.code.replace(without, "")
        return compile(code, self.guide, "exec")


def blocks(guide: Path) -> list[Block]:
    """Return the code blocks of `guide` in their order."""
    text = guide.read_text(encoding="utf-8")
    found = list(_BLOCK.finditer(text))
    result = []
    for match, after in itertools.zip_longest(found, found[1:]):
        shown = after and after[1] == "text" and not text[match.end() : after.start()].strip()
        line = text.count("\n", 0, match.start()) + 1
        result.append(Block(guide, line, match[1], match[2], after[2] if after and shown else None))
    return result


def prose(guide: Path) -> str:
    """Return the text of `guide` without its code blocks."""
    return _BLOCK.sub("", guide.read_text(encoding="utf-8"))


BLOCKS = [block for guide in GUIDES for block in blocks(guide)]
