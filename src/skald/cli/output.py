"""What commands print: one JSON document, or text for people; tables with lines only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec


def plain(text: str) -> str:
    """One printable line: what stored data holds must not steer the terminal, nor fake another line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, length: int) -> str:
    line = plain(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def say(text: str = "") -> None:
    """A line for people, on stdout."""
    print(text)


def note(text: str) -> None:
    """A remark that is not part of the result."""
    sys.stdout.flush()
    print(text, file=sys.stderr)


def json_text(value: Any) -> str:
    encoded = msgspec.json.encode(value)
    return (msgspec.json.format(encoded, indent=2) if sys.stdout.isatty() else encoded).decode()


def print_json(value: Any) -> None:
    print(json_text(value))


async def print_json_array(values: AsyncIterator[Any]) -> None:
    """One document, written as it comes, so that a long log needs no memory."""
    separator = "["
    async for value in values:
        print(f"{separator}{msgspec.json.encode(value).decode()}", end="")
        separator = ",\n"
    print("[]" if separator == "[" else "]")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """``right``: the columns of numbers. Without a terminal, aligned columns without lines, and nothing cut off."""
    cells = [[plain("" if cell is None else str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headers, cells, right)
        return
    widths = [max(len(row[n]) for row in [list(headers), *cells]) for n in range(len(headers))]
    for row in [list(headers), *cells]:
        texts = [t.rjust(w) if n in right else t.ljust(w) for n, (t, w) in enumerate(zip(row, widths, strict=True))]
        say("  ".join(texts).rstrip())


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for n, header in enumerate(headers):
        drawn.add_column(header, justify="right" if n in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
