"""Sends the columns of a group as the driver is quickest with.

The driver encodes an array element by element (0.3–0.45 µs each, measured), which for a group of small events costs
as much as inserting them. So a column of text is joined into one text, with a control character between its values,
and cut again by the server (0.06 µs); a column of numbers is sent as the text of an array. Bytes stay an array. A
group that uses one of the control characters itself, or whose joined text is empty, is sent as plain arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skald.stores.postgres.group import ARGUMENTS, BYTES, NULLABLE, TEXTS, UUIDS

BETWEEN, NULL = "\x1f", "\x1e"
_TEXTUAL = (TEXTS, NULLABLE, UUIDS)


class _Unpackable(Exception):
    """The group's own text holds what would separate it."""


def call(packed: bool) -> str:
    """The list of arguments of the function's call, from ``$1`` on."""
    places = ["$1::uuid", "$2::bigint", "$3::text[]"]
    for number, kind in enumerate(ARGUMENTS.values(), start=4):
        type_ = "text" if kind == NULLABLE else kind
        if not packed or kind == BYTES:
            places.append(f"${number}::{type_}[]")
        elif kind in _TEXTUAL:
            places.append(f"string_to_array(${number}::text, chr(31), chr(30))::{type_}[]")
        else:
            places.append(f"${number}::text::{type_}[]")
    return ", ".join(places)


def values(arguments: Mapping[str, Sequence[Any]]) -> tuple[bool, list[Any]]:
    """The values for ``call``, and whether they are packed."""
    try:
        return True, [_packed(kind, arguments[name]) if name in arguments else None for name, kind in ARGUMENTS.items()]
    except _Unpackable:
        return False, [arguments.get(name) for name in ARGUMENTS]


def _packed(kind: str, column: Sequence[Any]) -> Any:
    if kind == BYTES:
        return column
    if kind not in _TEXTUAL:
        text = ",".join(map(str, column))
        # Only a missing number has letters.
        return f"{{{text.replace('None', 'NULL') if 'N' in text else text}}}"
    nulls = 0
    if kind == NULLABLE and None in column:
        nulls = column.count(None)
        column = [NULL if value is None else value for value in column]
    text = BETWEEN.join(column)
    if not text or text.count(BETWEEN) != len(column) - 1 or text.count(NULL) != nulls:
        raise _Unpackable
    return text
