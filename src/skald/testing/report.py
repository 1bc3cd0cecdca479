"""What was expected beside what came, as a diff that people can read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any


class Report:
    """Gathers what differs. ``about`` names the scenario."""

    def __init__(self, about: str) -> None:
        self._about = about
        self._found: list[str] = []

    def compare(self, what: str, expected: Sequence[Any], came: Sequence[Any]) -> None:
        """In order. A class stands for anything of it, a set for its members in any order."""
        if not _fit(expected, came):
            wanted, found = _lines(expected, came), [_shown(one) for one in came]
            self._found += [f"{what}:", *(f"  {line.rstrip()}" for line in difflib.ndiff(wanted, found)), ""]

    def compare_all(self, what: str, expected: Mapping[str, Any], came: Mapping[str, Any]) -> None:
        """By name, and no others than these."""
        names = sorted({*expected, *came})
        if any(name not in expected or name not in came or expected[name] != came[name] for name in names):
            wanted, found = ([f"{name}: {one[name]!r}" for name in names if name in one] for one in (expected, came))
            self._found += [f"{what}:", *(f"  {line.rstrip()}" for line in difflib.ndiff(wanted, found)), ""]

    def raise_if_any(self, told: Iterable[str], cause: BaseException | None) -> None:
        """``told`` is what has happened; ``cause`` an error that nobody expected."""
        __tracebackhide__ = True
        if self._found:
            text = [f"{self._about} came to something else", "", "(- what was expected, + what came)", *self._found]
            raise AssertionError("\n".join([*text, "what happened:", *told])) from cause


def fits(expected: Any, came: Any) -> bool:
    """Whether something is what was expected: the same, one of a class, or an error of the same type and text."""
    if isinstance(expected, type):
        return isinstance(came, expected)
    if isinstance(expected, BaseException):
        return type(came) is type(expected) and str(came) == str(expected)
    return bool(expected == came)


def _fit(expected: Sequence[Any], came: Sequence[Any]) -> bool:
    left = list(came)
    for one in expected:
        if left and fits(one, left[0]):  # also where it is a set itself
            del left[0]
        elif isinstance(one, AbstractSet) and _pair(list(one), left[: len(one)]):
            del left[: len(one)]
        else:
            return False
    return not left


def _pair(expected: list[Any], came: list[Any]) -> bool:
    """Whether each fits one of its own; a class, or one with ``ANY`` in it, may have to make way for another one."""
    taken: dict[int, Any] = {}

    def place(one: Any, tried: set[int]) -> bool:
        for number, each in enumerate(came):
            if number not in tried and fits(one, each):
                tried.add(number)
                if number not in taken or place(taken[number], tried):
                    taken[number] = one
                    return True
        return False

    return len(expected) == len(came) and all(place(one, set()) for one in expected)


def _lines(expected: Sequence[Any], came: Sequence[Any]) -> list[str]:
    """What was expected: as it came, where it did."""
    shown = []
    for number, one in enumerate(expected):
        same = number < len(came) and not isinstance(one, AbstractSet) and fits(one, came[number])
        shown.append(_shown(came[number] if same else one))
    return shown


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"{value.__name__}(…)"
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, AbstractSet):
        return f"in any order: {', '.join(sorted(map(_shown, value)))}"
    return repr(value)
