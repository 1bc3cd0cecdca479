"""The transcoding example: thousands of chunks, some damaged, some too many; progress, cancellation, crashes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import pytest

from examples.transcoding import transcoding
from examples.transcoding.app import transcoding as service
from examples.transcoding.studio import Damaged, Studio
from examples.transcoding.transcoding import Film, Progress, film_progress, progress, render, transcode_film
from skald.errors import WorkflowFailed
from skald.testing.workflows import Lab, crash_everywhere, laboratory

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

R = TypeVar("R")

HALF = 1_300
"""Of 2,000 chunks: in the middle of the third batch."""


class WatchedStudio(Studio):
    """``damaged`` chunks cannot be read, ``flaky`` ones fail once; chunks from ``gate`` on wait until it is opened."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begun: Counter[tuple[str, int]] = Counter()
        self.finished: Counter[tuple[str, int]] = Counter()
        self.damaged: set[tuple[str, int]] = set()
        self.flaky: set[tuple[str, int]] = set()
        self.gate: int | None = None
        self.opened = asyncio.Event()

    async def transcode(self, film: str, rendition: str, chunk: int) -> str:
        place = rendition, chunk
        self.begun[place] += 1
        if place in self.damaged:
            raise Damaged(f"chunk {chunk} of {rendition}")
        if place in self.flaky and self.begun[place] == 1:
            raise ConnectionError("the machine has gone")
        if self.gate is not None and chunk >= self.gate:
            await self.opened.wait()
        piece = await super().transcode(film, rendition, chunk)
        self.finished[place] += 1
        return piece

    def lines(self, film: str, rendition: str) -> list[int]:
        """The chunks in the finished film."""
        text = (self.folder / film / rendition / "film").read_text()
        found = [line.split() for line in text.splitlines()]
        assert {tuple(words[:2]) for words in found} == {(film, rendition)}
        return [int(words[2]) for words in found]


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WatchedStudio:
    studio = WatchedStudio(tmp_path / "studio")
    monkeypatch.setattr(transcoding, "studio", studio)
    return studio


async def stopped_at_the_gate(lab: Lab, studio: WatchedStudio, finished: int) -> None:
    """What can be finished is, and stands in the journal."""
    while studio.finished.total() < finished:
        await lab.settle()
    await lab.settle()
    assert studio.finished.total() == finished


async def test_two_thousand_chunks_in_two_renditions(workflow_lab: NewLab, studio: WatchedStudio) -> None:
    began = time.perf_counter()
    film = Film("film", 2_000)
    async with workflow_lab(service) as lab:
        found = await lab.result(await transcode_film.start(film, id="film"))
        assert {name: rendition.missing for name, rendition in found.items()} == {"1080p": (), "720p": ()}
        for name in film.renditions:
            assert studio.lines("film", name) == list(range(2_000))
        assert set(studio.finished.values()) == {1}
        assert await film_progress(film) == Progress(4_000, 4_000, 0)
        [row] = await service.fetch(
            "SELECT max(entries) AS longest, count(*) AS runs FROM (SELECT count(*) AS entries FROM skald_journal"
            " GROUP BY run)"
        )
        assert row == {"longest": 502, "runs": 9}, "500 chunks, a part and the film; 4 runs each, and their parent"
    assert time.perf_counter() - began < 20


async def test_gaps_within_the_tolerance(workflow_lab: NewLab, studio: WatchedStudio) -> None:
    studio.damaged = {("1080p", n) for n in (3, 499, 500, 1_999)} | {("720p", 7)}
    studio.flaky = {("720p", n) for n in range(0, 2_000, 100)}
    film = Film("film", 2_000, tolerated=4)
    async with workflow_lab(service) as lab:
        found = await lab.result(await transcode_film.start(film, id="film"))
        assert (found["1080p"].missing, found["720p"].missing) == ((3, 499, 500, 1_999), (7,))
        for name, rendition in found.items():
            assert studio.lines("film", name) == [n for n in range(2_000) if n not in rendition.missing]
        assert await film_progress(film) == Progress(3_995, 4_000, 5)
        assert max(studio.begun[place] for place in studio.damaged) == 1, "what is damaged is not tried again"


async def test_one_gap_too_many_fails_the_film_with_the_reason(workflow_lab: NewLab, studio: WatchedStudio) -> None:
    """The gaps add up over the batches: the third one is in the second batch."""
    studio.damaged = {("1080p", n) for n in (3, 60, 120)}
    film = Film("film", 2_000, tolerated=2, batch=100, at_once=10)
    async with workflow_lab(service) as lab:
        handle = await transcode_film.start(film, id="film")
        with pytest.raises(WorkflowFailed, match=r"film/1080p: MapFailed: .*Damaged: chunk 120 of 1080p"):
            await lab.result(handle)
        await lab.settle()
        with pytest.raises(WorkflowFailed, match="Cancelled"):
            await render.handle("film/720p").result()
        assert studio.begun.total() < 1_000, "the rest was not begun"
        left = [path for path in studio.folder.rglob("*") if path.is_file()]
        assert left == [], "both renditions have cleared up"


async def test_progress_in_the_middle(workflow_lab: NewLab, studio: WatchedStudio) -> None:
    studio.gate, studio.damaged = HALF, {("1080p", 10), ("1080p", 600)}
    film = Film("film", 2_000, tolerated=2)
    async with workflow_lab(service) as lab:
        handle = await transcode_film.start(film, id="film")
        await stopped_at_the_gate(lab, studio, 2 * HALF - 2)
        assert await render.handle("film/1080p").query(progress) == Progress(HALF - 2, 2_000, 2)
        assert await film_progress(film) == Progress(2 * HALF - 2, 4_000, 2)
        studio.opened.set()
        await lab.result(handle)
        assert await film_progress(film) == Progress(3_998, 4_000, 2)


async def test_cancelling_stops_the_rest(workflow_lab: NewLab, studio: WatchedStudio) -> None:
    studio.gate = HALF
    film = Film("film", 2_000)
    async with workflow_lab(service) as lab:
        handle = await transcode_film.start(film, id="film")
        await stopped_at_the_gate(lab, studio, 2 * HALF)
        begun = studio.begun.total()
        await handle.cancel("withdrawn")
        await lab.settle()
        for one in (handle, render.handle("film/1080p"), render.handle("film/720p")):
            with pytest.raises(WorkflowFailed, match="Cancelled"):
                await lab.result(one)
        studio.opened.set()
        await lab.settle()
        assert (studio.begun.total(), studio.finished.total()) == (begun, 2 * HALF)
        assert [path for path in studio.folder.rglob("*") if path.is_file()] == []


async def test_a_process_that_stops_in_the_middle_repeats_no_finished_chunk(
    studio: WatchedStudio, tmp_path: Path
) -> None:
    studio.gate = HALF
    film = Film("film", 2_000)
    async with laboratory(service, folder=tmp_path / "data") as lab:
        await transcode_film.start(film, id="film")
        await stopped_at_the_gate(lab, studio, 2 * HALF)
    before = dict(studio.finished)
    studio.opened.set()
    async with laboratory(service, folder=tmp_path / "data") as lab:
        found = await lab.result(transcode_film.handle("film"))
        assert list(found) == ["1080p", "720p"]
    assert len(before) == 2 * HALF
    assert {place for place in before if studio.begun[place] > 1} == set()
    assert set(studio.finished.values()) == {1}
    assert studio.lines("film", "720p") == list(range(2_000))


async def test_crashes_at_every_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small film: only what was in the commit that failed, or on its way, is done again."""
    studios: dict[Lab, WatchedStudio] = {}
    film = Film("film", 12, batch=5, at_once=2, tolerated=1)

    async def scenario(lab: Lab) -> tuple[list[int], tuple[int, ...], list[int]]:
        studio = studios.setdefault(lab, WatchedStudio(tmp_path / f"{len(studios)}"))
        studio.damaged = {("1080p", 6)}
        monkeypatch.setattr(transcoding, "studio", studio)
        handle = await transcode_film.start(film, id="film")
        found = await lab.result(handle)
        assert studio.finished.total() <= 23 + 2 * film.at_once, "one commit may hold something of both"
        return studio.lines("film", "1080p"), found["1080p"].missing, studio.lines("film", "720p")

    results = await crash_everywhere(scenario, service)
    assert len(results) > 30
    expected = [n for n in range(12) if n != 6], (6,), list(range(12))
    assert [result for result in results if result != expected] == []
