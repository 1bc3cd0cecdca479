"""What one unit holds: a record is as its workflow was when it was made, however long its unit stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context

import pytest

from skald import workflow
from skald.clock import SystemClock
from skald.unit import AddressKind, Committed, EntryKind, JournalEntry, Letter, LetterKind, Reply, Unit
from skald.workflows.client import outside
from skald.workflows.instance import Instance
from skald.workflows.recorder import Recorder

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"


@workflow
async def waits() -> None:
    await asyncio.Event().wait()


class Closing:
    """A committer that puts its group together when it is told to."""

    def __init__(self) -> None:
        self.open: list[tuple[Callable[[], Unit], Callable[[Committed | BaseException], None]]] = []

    def submit(self, unit: Unit) -> asyncio.Future[Committed]:
        raise NotImplementedError

    def submit_open(
        self, close: Callable[[], Unit], then: Callable[[Committed | BaseException], None], context: Context
    ) -> None:
        self.open.append((close, then))


def entry(position: int) -> JournalEntry:
    return JournalEntry(RUN, position, EntryKind.SIGNAL, "ready", b"", 0, 0, b"1")


async def test_what_comes_after_a_record_is_in_none_of_its_units() -> None:
    committer, told = Closing(), list[str]()
    recorder = Recorder(
        "shop", committer=committer, clock=SystemClock(), owner="us", context=copy_context(),
        committed=lambda record: told.append(record.instance.run), failed=lambda _, error: pytest.fail(str(error)),
    )  # fmt: skip
    instance = Instance(waits, "w", RUN, b"{}", 0, first=True)
    marked: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def turns() -> tuple[Unit, Unit]:
        instance.machine.begin()
        instance.pending.append(entry(1))
        recorder.record(instance)
        # A letter is told, and what it leads to is journalled in the next unit: in this one it must not be taken.
        instance.pending.append(entry(2))
        instance.taken.append("letter")
        instance.letters.append(Letter("other", LetterKind.CANCEL, AddressKind.ID, "child", "", b"", 0))
        instance.replies.append(Reply("update", b""))
        instance.marked.append(marked)
        [(close, then)] = committer.open
        first = close()
        then(Committed(()))
        assert not marked.done(), "its beginning is not durable yet"
        recorder.record(instance)
        _, (close, then) = committer.open
        second = close()
        then(Committed(()))
        return first, second

    first, second = await outside(turns)
    assert first.workflows is not None
    assert second.workflows is not None
    assert [one.position for one in first.workflows.journal] == [1]
    assert (first.workflows.taken, first.workflows.letters, first.workflows.replies) == ((), (), ())
    assert [one.position for one in second.workflows.journal] == [2]
    assert second.workflows.taken == ("letter",)
    assert [letter.id for letter in second.workflows.letters] == ["other"]
    assert [reply.letter for reply in second.workflows.replies] == ["update"]
    assert marked.done()
    assert told == [RUN, RUN]
    instance.machine.leave()
