"""Stands in for the machines that transcode: a piece is a small text file here, and the work takes no time.

Everything is written under its final name at once, so that the same work done twice leaves the same file.
"""

from __future__ import annotations

import shutil
from pathlib import Path


class Damaged(Exception):
    """The chunk cannot be read, and never will be."""


class Studio:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def transcode(self, film: str, rendition: str, chunk: int) -> str:
        """The name of the piece."""
        return self._write(f"{film}/{rendition}/chunk-{chunk:06}", f"{film} {rendition} {chunk}\n")

    async def join(self, name: str, pieces: list[str]) -> str:
        """One file out of several, in their order."""
        return self._write(name, "".join((self.folder / piece).read_text() for piece in pieces))

    async def discard(self, film: str, rendition: str) -> None:
        shutil.rmtree(self.folder / film / rendition, ignore_errors=True)

    def _write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.half")
        half.write_text(text)
        half.replace(path)
        return name
