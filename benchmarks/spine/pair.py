"""The pairs of processes, a producer and a consumer: the bare one, the library's, and the outbox by hand."""

from __future__ import annotations

import importlib

import msgspec

from benchmarks.harness.child import Child, Children
from benchmarks.harness.places import Place
from benchmarks.spine.services import migrate


class Pair(msgspec.Struct, frozen=True):
    """``module`` has ``produce`` and a consumer, and ``prepare`` unless it is the library's."""

    module: str
    consumer: str = "consume"
    options: dict[str, bool] = {}

    def prepared(self, place: Place) -> str:
        """The URL of an empty store with the tables of this pair."""
        url = place.fresh()
        if self.module == _LIBRARY:
            migrate(url)
        else:
            importlib.import_module(self._module(place)).prepare(url)
        return url

    def consuming(self, start: Children, place: Place, url: str, count: int) -> Child:
        """A consumer that is ready."""
        child = start(f"{self._module(place)}:{self.consumer}", url=url, count=count, **self.options)
        child.hear()
        return child

    def producing(self, start: Children, place: Place, url: str, count: int, **options: float) -> Child:
        """A producer that is ready, and waits to be told to begin."""
        child = start(f"{self._module(place)}:produce", url=url, count=count, **options)
        child.hear()
        return child

    def _module(self, place: Place) -> str:
        return self.module.replace("STORE", place.name)


_LIBRARY = "benchmarks.spine.children"
LIMIT = Pair("benchmarks.spine.limits.STORE")
SKALD = Pair(_LIBRARY)
SKALD_TX = Pair(_LIBRARY, options={"with_tx": True})
OBSERVED = Pair(_LIBRARY, consumer="consume_observed")
OUTBOX = Pair("benchmarks.spine.outbox.STORE")
