"""The blocks of ``sql/*.sql`` for one schema: ``{schema}`` becomes its quoted name."""

from __future__ import annotations

from functools import cache

from skald.sql import blocks


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@cache
def statements(file: str, schema: str) -> dict[str, str]:
    """The statements of one file by their names."""
    return {name: body.replace("{schema}", quoted(schema)) for name, body in blocks(__package__, file).items()}
