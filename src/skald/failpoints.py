"""Named places between two durable writes, at which a test ends the process as a crash would.

``SKALD_FAILPOINT=NAME@3`` kills it (SIGKILL) when it comes to NAME for the third time, ``trace:FILE`` writes down every
name it comes to. The variable is read once, when this module is imported; without it ``hit`` does nothing.
See ``skald.testing.failpoints``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "SKALD_FAILPOINT"


def _nothing(name: str) -> None:
    pass


def _kill(wanted: str, count: int) -> Callable[[str], None]:
    left = count

    def hit(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hit


def _trace(path: str) -> Callable[[str], None]:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def hit(name: str) -> None:
        os.write(file, f"{name}\n".encode())

    return hit


def _armed(text: str | None) -> Callable[[str], None]:
    if not text:
        return _nothing
    if text.startswith("trace:"):
        return _trace(text.removeprefix("trace:"))
    name, _, count = text.partition("@")
    return _kill(name, int(count or 1))


hit: Callable[[str], None] = _armed(os.environ.get(VARIABLE))
