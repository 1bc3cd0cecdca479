"""A handler that leaks is named, and one that does not is not."""

from __future__ import annotations

import asyncio

from skald import App, Event, RuntimeSettings, Service
from skald.telemetry import MemoryGrows, Occurrence, listen


class Uploaded(Event, key="name"):
    name: str


class Viewed(Event, key="name"):
    name: str


async def test_the_leaking_handler_is_named() -> None:
    source, sink = Service("source", publishes=[Uploaded, Viewed]), Service("sink")
    kept: list[bytearray] = []
    found: asyncio.Queue[MemoryGrows] = asyncio.Queue()

    @sink.on(Uploaded)
    async def index(event: Uploaded) -> None:
        kept.append(bytearray(b"x" * (2 << 20)))

    @sink.on(Viewed)
    async def count(event: Viewed) -> None:
        return None

    def heard(occurrence: Occurrence) -> None:
        if isinstance(occurrence, MemoryGrows):
            found.put_nowait(occurrence)

    app = App(source, sink, store="sqlite::memory:", settings=RuntimeSettings(memory_growth=40))
    await app.migrate()
    unlisten = listen(heard)
    try:
        async with app.run():
            async with asyncio.timeout(60):
                while found.empty():
                    await source.publish(*(Viewed(f"v{n}") for n in range(20)), Uploaded(f"u{len(kept)}"))
    finally:
        unlisten()
        app.discard_memory()
    told = found.get_nowait()
    assert told.service == "sink"
    assert told.largest.startswith("index ")
