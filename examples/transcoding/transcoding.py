"""Two workflows: a film has one child per rendition, and a rendition goes through the chunks, so many at once.

No history grows with the film: a rendition does ``batch`` chunks, joins them into a part, and continues as new with the
parts so far. So a replay after a crash reads at most one batch, and what a run carries along is one name per batch.

A chunk that is damaged leaves a gap, up to so many gaps per rendition. One more, and the rendition fails, with it the
film, and with the film its other renditions. Each rendition clears up behind itself, because it knows when its own
steps have stopped.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from examples.transcoding.studio import Damaged, Studio
from skald import NEVER, Retry, step, workflow, workflows
from skald.errors import MapFailed, StepFailed
from skald.workflows import Query

studio = Studio(Path(os.environ.get("TRANSCODING_STUDIO", ".skald/studio")))


class Film(msgspec.Struct, frozen=True):
    id: str
    chunks: int
    renditions: tuple[str, ...] = ("1080p", "720p")
    tolerated: int = 0
    """Chunks that may fail, per rendition."""
    batch: int = 500
    at_once: int = 50


class Progress(msgspec.Struct, frozen=True):
    done: int
    total: int
    failed: int = 0


class Work(msgspec.Struct, frozen=True):
    """How far a rendition is, from one run to the next."""

    film: Film
    rendition: str
    first: int = 0
    """The chunk to go on with."""
    failed: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()


class Rendition(msgspec.Struct, frozen=True):
    file: str
    missing: tuple[int, ...]


progress = Query("progress", Progress)


# --- steps ------------------------------------------------------------------------------------------------------------


@step(retry={Damaged: NEVER, "*": Retry(immediate=2, delays=(5, 30, 120))}, timeout=600)
async def transcode(film: str, rendition: str, chunk: int) -> str:
    return await studio.transcode(film, rendition, chunk)


@step
async def join(name: str, pieces: list[str]) -> str:
    return await studio.join(name, pieces)


@step
async def discard(film: str, rendition: str) -> None:
    await studio.discard(film, rendition)


# --- workflows --------------------------------------------------------------------------------------------------------


@workflow
async def transcode_film(film: Film) -> dict[str, Rendition]:
    """``MapFailed`` names the rendition that failed and its reason; the others are cancelled then."""
    mapped = await workflows.map(
        film.renditions, lambda name: render.run(Work(film, name), id=rendition_id(film.id, name))
    )
    return {film.renditions[place]: rendition for place, rendition in mapped.results.items()}


@workflow
async def render(work: Work) -> Rendition:
    try:
        work = await batch_done(work)
        if work.first < work.film.chunks:
            workflows.continue_as_new(work)
        file = await join(f"{work.film.id}/{work.rendition}/film", list(work.parts))
    except (MapFailed, asyncio.CancelledError):
        await discard(work.film.id, work.rendition)
        raise
    return Rendition(file, work.failed)


async def batch_done(work: Work) -> Work:
    """The next batch of chunks, joined into a part."""
    film, chunks = work.film, range(work.first, min(work.first + work.film.batch, work.film.chunks))
    done, failed = work.first - len(work.failed), len(work.failed)
    progress.answered_by(lambda: Progress(done, film.chunks, failed))

    async def one(chunk: int) -> str:
        nonlocal done, failed
        try:
            piece = await transcode(film.id, work.rendition, chunk)
        except StepFailed:
            failed += 1
            raise
        done += 1
        return piece

    mapped = await workflows.map(
        chunks, one, max_concurrency=film.at_once, tolerated_failures=film.tolerated - len(work.failed)
    )
    pieces = [mapped.results[place] for place in sorted(mapped.results)]
    part = await join(f"{film.id}/{work.rendition}/part-{work.first:06}", pieces)
    missing = tuple(chunks[place] for place in sorted(mapped.failures))
    return Work(film, work.rendition, chunks.stop, (*work.failed, *missing), (*work.parts, part))


# --- asking -----------------------------------------------------------------------------------------------------------


def rendition_id(film: str, rendition: str) -> str:
    return f"{film}/{rendition}"


async def film_progress(film: Film) -> Progress:
    """Of all renditions together; each of them is asked, so that none has to report."""
    asked = [render.handle(rendition_id(film.id, name)).query(progress) for name in film.renditions]
    found = await asyncio.gather(*asked)
    return Progress(*(sum(getattr(one, name) for one in found) for name in ("done", "total", "failed")))
