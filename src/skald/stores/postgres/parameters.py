"""Rewrites ``:name`` parameters to ``$1, $2 …`` outside of strings, names, comments, casts and dollar quotes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from skald.errors import StoreError

_PLAIN = r"(?:[^*/]|\*(?!/)|/(?!\*))"
# Comments nest; deeper than three nobody has seen.
_COMMENT = rf"/\*{_PLAIN}*\*/"
for _ in range(2):
    _COMMENT = rf"/\*(?:{_PLAIN}|{_COMMENT})*\*/"

_TOKEN = re.compile(
    rf"""
      (?<!\w)[eE]'(?:[^'\\]|\\.|'')*'          # E'…' with backslashes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | --[^\n]*
    | {_COMMENT}
    | (?<!\w)\$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | ::
    | :(?P<name>[^\W\d]\w*)
    """,
    re.VERBOSE | re.DOTALL,
)


_JSON = (dict, list)


@lru_cache(maxsize=2_000)
def positional(sql: str) -> tuple[str, tuple[str, ...]]:
    """The statement with numbered parameters, and the name of each number."""
    names: dict[str, int] = {}

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None:
            return found[0]
        return f"${names.setdefault(name, len(names) + 1)}"

    return _TOKEN.sub(replace, sql), tuple(names)


@lru_cache(maxsize=2_000)
def renamed(sql: str) -> str:
    """The statement with the parameters of psycopg, ``%(name)s``; a literal percent sign is doubled."""
    parts: list[str] = []
    end = 0
    for found in _TOKEN.finditer(sql):
        parts.append(sql[end : found.start()].replace("%", "%%"))
        name = found["name"]
        parts.append(found[0].replace("%", "%%") if name is None else f"%({name})s")
        end = found.end()
    return "".join([*parts, sql[end:].replace("%", "%%")])


def bound(sql: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Statement and arguments for the driver; dict and list become JSON text."""
    text, names = positional(sql)
    try:
        arguments = [values[name] for name in names]
    except KeyError as error:
        raise StoreError(f"the statement names :{error.args[0]}, but no such value was given") from error
    if len(values) > len(names):
        unused = ", ".join(sorted(set(values) - set(names)))
        raise StoreError(f"the statement does not name these values: {unused}")
    return text, [json.dumps(v) if isinstance(v, _JSON) else v for v in arguments]
