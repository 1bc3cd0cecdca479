"""Figures: what was measured, beside its limit; as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """``ratio`` is value / limit. ``bar`` is what the ratio has to reach, or for the figures where less is better
    (latency, memory, statements) what it has to stay at or below; ``None`` for a figure that has no bar."""

    name: str
    value: float | None
    unit: str
    limit: float | None = None
    ratio: float | None = None
    bar: float | None = None
    ok: bool = True


def at_least(name: str, pair: tuple[float, float], unit: str, bar: float | None) -> Figure:
    """``pair`` is the value and its limit."""
    value, limit = pair
    ratio = value / limit
    return Figure(name, _short(value), unit, _short(limit), _short(ratio), bar, bar is None or ratio >= bar)


def at_most(name: str, pair: tuple[float, float], unit: str, bar: float | None) -> Figure:
    value, limit = pair
    ratio = value / limit
    return Figure(name, _short(value), unit, _short(limit), _short(ratio), bar, bar is None or ratio <= bar)


def plain(name: str, value: float, unit: str) -> Figure:
    return Figure(name, _short(value), unit)


def failed(name: str) -> Figure:
    """Stands for what could not be measured."""
    return Figure(name, None, "", ok=False)


def as_json(figures: Sequence[Figure]) -> str:
    return msgspec.json.format(msgspec.json.encode(list(figures)), indent=2).decode()


def as_table(figures: Sequence[Figure]) -> str:
    rows = [("", "value", "limit", "unit", "ratio", "bar", "")]
    rows += [
        (f.name, _text(f.value), _text(f.limit), f.unit, _text(f.ratio), _text(f.bar), "" if f.ok else "MISSED")
        for f in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    texts = zip(row, widths, (str.ljust, str.rjust, str.rjust, str.ljust, str.rjust, str.rjust, str.ljust), strict=True)
    return "  ".join(justify(text, width) for text, width, justify in texts).rstrip()


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:g}"


def _short(value: float) -> float:
    """Four digits that mean something."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else float(round(value))
