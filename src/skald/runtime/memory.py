"""Names the handler that makes its process grow.

The resident memory is looked at after every stretch. Once it has grown by half of what is tolerated, it is looked at
before and after each call as well, and the growth in between is put down to that handler: exact for what a handler
does in one go, and a good suspicion for calls that overlap.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable

from skald.telemetry import MemoryGrows, emit

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mb() -> float:
    """This process's resident memory, MB of 2^20 bytes; its peak where the present figure cannot be read (macOS)."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE / (1 << 20)
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


class MemoryWatch:
    """Tells of growth by ``growth`` MB since the first stretch, and again at each doubling of that."""

    def __init__(self, service: str, growth: float, resident: Callable[[], float] = resident_mb) -> None:
        self._service, self._limit, self._resident = service, growth, resident
        self._base = -1.0
        self._grown: dict[str, float] = {}
        self.close = False
        """Whether every call is to be measured."""

    def stretch(self) -> None:
        """After a stretch."""
        now = self._resident()
        if self._base < 0:
            self._base = now
        self.close = now - self._base >= self._limit / 2
        if now - self._base >= self._limit and self._grown:
            self._limit *= 2
            handler = max(self._grown, key=self._grown.__getitem__)
            emit(MemoryGrows(self._service, round(now, 1), f"{handler} (about {self._grown[handler]:.0f} MB)"))

    def before(self) -> float:
        return self._resident()

    def after(self, handler: str, before: float) -> None:
        self._grown[handler] = self._grown.get(handler, 0.0) + self._resident() - before


def calm_collector() -> None:
    """For a process that does nothing but run services: what was imported is not looked at again, and young objects are
    collected every 20,000 and not every 700. A workflow of four steps makes some 300; a tenth of its time was this."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
