"""Histories that earlier versions have written replay on this one. A change that breaks them breaks users' workflows:
it needs a new kind of entry, or a version in the format, and never another file here."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from skald.errors import Diverged
from skald.testing.workflows import replay_saved
from skald.unit import EntryKind
from skald.workflows import saved
from tests.golden.workflows import FOLDER, PLAYS, SERVICES, play

FILES = sorted(FOLDER.glob("*.json"))


def test_there_are_histories_of_every_kind_of_entry() -> None:
    assert {file.stem for file in FILES} >= PLAYS.keys()
    kinds = {entry.kind for file in FILES for entry in saved.read(file).entries}
    assert kinds == {kind.name.lower() for kind in EntryKind}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_golden_history_is_replayed(file: Path) -> None:
    await replay_saved(file, *SERVICES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_history_that_was_changed_is_refused(file: Path, tmp_path: Path) -> None:
    """So that the test above can fail: the first result is that of another step."""
    history = msgspec.json.decode(file.read_bytes())
    result = next(entry for entry in history["entries"] if entry["kind"] in ("step_done", "child_done"))
    result["name"] = "other"
    (tmp_path / file.name).write_bytes(msgspec.json.encode(history))
    with pytest.raises(Diverged, match=f"at position {result['position']} .* the end of other#"):
        await replay_saved(tmp_path / file.name, *SERVICES)


@pytest.mark.parametrize("name", PLAYS)
async def test_what_is_written_today_is_what_was_written_then(name: str) -> None:
    """The same kinds of entries in the same order, by the same identities."""
    today, then = await play(name), saved.read(FOLDER / f"{name}.json")
    told = [[(e.kind, e.name, e.occurrence) for e in history.entries] for history in (today, then)]
    assert told[0] == told[1]
