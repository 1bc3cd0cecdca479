"""The Python files that the rules of this folder look at."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(root: Path, *folders: str) -> Iterator[tuple[str, ast.Module, str]]:
    """Path from ``root``, syntax tree and text of each file in these folders; a folder may be missing."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            yield path.relative_to(root).as_posix(), parsed(text, str(path)), text


def parsed(text: str, name: str) -> ast.Module:
    """CPython 3.11 fails with a SystemError if a finalizer compiles something while it builds a tree (gh-106905)."""
    gc.disable()
    try:
        return ast.parse(text, name)
    finally:
        gc.enable()


def plant(root: Path, path: str, text: str = "") -> None:
    """A file with a violation, for the tests of the rules themselves."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
