"""pages - the fenced blocks of a page of documentation, so that a test can run what a reader would type"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """One page. A ```python or ```toml block is a file, and begins with "# NAME"."""

    path: Path

    def blocks(self) -> list[tuple[str, str]]:
        """(kind, text) of every fenced block, in order."""
        return re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", self.path.read_text(encoding="utf-8"))

    def of(self, kind: str) -> list[str]:
        """The blocks of one kind."""
        return [text for found, text in self.blocks() if found == kind]

    def files(self) -> dict[str, str]:
        """The files that the page shows."""
        found = {}
        for kind, text in self.blocks():
            if kind in ("python", "toml"):
                name = re.match(r"# ([\w.-]+)\n", text)
                assert name, f"a {kind} block begins with the name of its file: {text[:60]!r}"
                found[name[1]] = text
        return found
