"""SQL in files: named blocks, ``-- name: verb`` on a line of its own, up to the next one."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_HEAD = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)


@cache
def blocks(package: str, name: str) -> dict[str, str]:
    """The blocks of ``sql/NAME.sql`` in a package, by their names."""
    text = resources.files(package).joinpath("sql", f"{name}.sql").read_text("utf-8")
    parts = _HEAD.split(text)
    return {parts[i]: parts[i + 1].strip() for i in range(1, len(parts), 2)}
