"""A workflow that ends its process is found out among those that were in work beside it, and paused."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from skald.workflows import journal
from skald.workflows.suspects import MOST_DEATHS
from tests.simulation.poison import OPEN, application, innocent, poisonous
from tests.simulation.workers import ROOT

INNOCENT = 150


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


async def test_it_is_paused_and_the_others_are_done(url: str) -> None:
    app = application(url)
    await app.migrate()
    [service] = app.services.values()
    async with app.connect():
        for number in range(INNOCENT):
            await innocent.start(number, id=f"i-{number}")
            if number == INNOCENT // 2:
                await poisonous.start(0, id="poison")
        ended = 0
        while await service.fetch(OPEN):
            command = [sys.executable, "-m", "tests.simulation.poison", url]
            process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
            code = await asyncio.wait_for(process.wait(), 60)
            if code:
                assert code == -signal.SIGKILL
                ended += 1
                assert ended <= MOST_DEATHS
        assert ended == MOST_DEATHS
        for number in range(INNOCENT):
            assert await innocent.handle(f"i-{number}").result() == 4 * number + 6
        known = await journal.by_id(service.store, "poison")
        assert known is not None
        assert known.state == "paused"
        assert msgspec.json.decode(known.outcome or b"")["type"] == "ProcessEnded"
        assert await service.fetch("SELECT id FROM skald_workflows WHERE deaths <> 0 AND ended_at IS NULL") == []
