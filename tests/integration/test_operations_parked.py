"""Parked messages: found by what is known of them, tried again in order, by a canary first, or given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skald import NEVER, App, Service, operations
from skald.operations import OperationRefused, Selection, UnknownName
from tests.simulation.stage import (
    QUICK,
    Job,
    Placed,
    Seen,
    caught_up,
    deliveries,
    eventually,
    no_deliveries,
    playing,
)


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


class Stage:
    """A handler that refuses what is in ``broken``, and remembers what it has done."""

    def __init__(self, url: str) -> None:
        self.source = Service("source", publishes=[Placed, Job])
        self.sink = Service("sink")
        self.app = App(self.source, self.sink, store=url, settings=QUICK)
        self.broken: set[int] = set()
        self.done: Seen[tuple[str, int]] = Seen()
        self.tried: Seen[int] = Seen()
        self.sink.on(Placed, retry=NEVER)(self.handle)
        self.sink.queue(Job, retry=NEVER)(self.work)

    async def handle(self, event: Placed) -> None:
        self.tried.note(event.n)
        if event.n in self.broken:
            raise ValueError(f"no {event.n}, says postgresql://me:secret@db/x")
        self.done.note((event.key, event.n))

    async def work(self, job: Job) -> None:
        self.tried.note(job.n)
        if job.n in self.broken:
            raise RuntimeError(f"no {job.n}")
        self.done.note((job.key, job.n))

    async def parked(self, count: int) -> list[dict[str, Any]]:
        async def check() -> list[dict[str, Any]]:
            assert await caught_up(self.sink, self.source)
            rows = [row for row in await deliveries(self.sink) if row["state"] == "parked"]
            assert len(rows) == count
            return rows

        return list(await eventually(check))


async def test_parked_messages_are_listed_with_whom_they_hold_up(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {0, 10}
    async with playing(stage.app):
        await stage.source.publish(*(Placed("a", n) for n in range(3)), *(Placed("b", n) for n in range(10, 12)))
        await stage.parked(2)
        found = await operations.list_parked(stage.app)
        (detail,) = await operations.show_parked(stage.app, Selection(ids=(found.parked[0].id,)))

    assert found.total == 2
    first, second = found.parked
    assert (first.service, first.handler, first.origin) == ("sink", "handle", "source")
    assert (first.key, first.type, first.attempts, first.waiting) == ("a", "Placed", 1, 2)
    assert (second.key, second.waiting) == ("b", 1)
    assert first.error == "ValueError: no 0, says postgresql://me:***@db/x"
    assert detail.payload == {"key": "a", "n": 0}
    assert detail.envelope["partitionkey"] == "a"


@pytest.mark.parametrize(
    ("selection", "keys"),
    [
        (Selection(handler="work"), ["j"]),
        (Selection(type="Placed"), ["a", "b"]),
        (Selection(key="b"), ["b"]),
        (Selection(error="NO 1,"), ["a"]),
        (Selection(error="100%"), []),
        (Selection(services=("source",)), []),
        (Selection(origin="source", type="Job"), ["j"]),
    ],
)
async def test_a_selection_finds_what_fits(store_url: str, selection: Selection, keys: list[str]) -> None:
    stage = Stage(store_url)
    stage.broken = {1, 2, 3}
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 1), Placed("b", 2), Job("j", 3))
        await stage.parked(3)
        found = await operations.list_parked(stage.app, selection)

    assert [message.key for message in found.parked] == keys
    assert found.total == len(keys)


async def test_a_limit_is_for_all_services_together_and_the_total_counts_on(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = set(range(5))
    async with playing(stage.app):
        await stage.source.publish(*(Placed(f"k{n}", n) for n in range(5)))
        await stage.parked(5)
        found = await operations.list_parked(stage.app, limit=2)

    assert ([message.key for message in found.parked], found.total) == (["k0", "k1"], 5)


async def test_a_redrive_keeps_the_order_of_each_key_in_a_running_service(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {0, 100}
    async with playing(stage.app):
        await stage.source.publish(*(Placed("a", n) for n in range(5)), *(Placed("b", n) for n in range(100, 105)))
        await stage.parked(2)
        stage.broken.clear()
        (redriven,) = await operations.redrive(stage.app, Selection(handler="handle"))
        await stage.source.publish(Placed("a", 5))
        await stage.done.count(11)
        assert await eventually(lambda: no_deliveries(stage.sink))

    assert (redriven.redriven, redriven.left, redriven.stopped, redriven.running) == (2, 0, None, True)
    assert [n for key, n in stage.done.items if key == "a"] == [0, 1, 2, 3, 4, 5]
    assert [n for key, n in stage.done.items if key == "b"] == [100, 101, 102, 103, 104]


async def test_what_stands_behind_another_parked_message_of_its_key_waits_for_it(store_url: str) -> None:
    """Only the later one is redriven: it must not overtake the earlier one, and goes on with it."""
    stage = Stage(store_url)
    stage.broken = {0}
    async with playing(stage.app):
        await stage.source.publish(*(Placed("a", n) for n in range(3)))
        await stage.parked(1)
    async with stage.app.connect("sink"):
        # As if an earlier version had left two parked messages in one key.
        async with stage.sink.transaction() as tx:
            await tx.execute("UPDATE skald_deliveries SET state = 'parked' WHERE position = 3")
        later = (await operations.list_parked(stage.app)).parked[1]
        await operations.redrive(stage.app, Selection(ids=(later.id,)))
        states = {row["position"]: row["state"] for row in await deliveries(stage.sink)}
    assert states == {1: "parked", 2: "waiting", 3: "waiting"}
    stage.broken.clear()
    async with playing(stage.app):
        await operations.redrive(stage.app, Selection(key="a"))
        await stage.done.count(3)

    assert stage.done.items == [("a", 0), ("a", 1), ("a", 2)]


async def test_a_redrive_without_a_process_is_taken_up_by_the_next_one(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {0}
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 0), Placed("a", 1))
        await stage.parked(1)
    stage.broken.clear()
    (redriven,) = await operations.redrive(stage.app, Selection(key="a"))
    assert not redriven.running
    async with playing(stage.app):
        await stage.done.count(2)

    assert stage.done.items == [("a", 0), ("a", 1)]


async def test_a_canary_that_fails_leaves_the_rest_parked(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = set(range(5))
    async with playing(stage.app):
        await stage.source.publish(*(Placed(f"k{n}", n) for n in range(5)))
        await stage.parked(5)
        stage.tried.items.clear()
        (redriven,) = await operations.redrive(stage.app, Selection(handler="handle"), canary=2)
        await stage.parked(5)

    assert (redriven.redriven, redriven.left) == (1, 4)
    assert redriven.stopped is not None
    assert "message 1 of source at handle, failed again: ValueError: no 0" in redriven.stopped
    assert "secret" not in redriven.stopped
    assert stage.tried.items == [0]


async def test_a_canary_that_succeeds_is_followed_by_the_rest(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = set(range(5))
    async with playing(stage.app):
        await stage.source.publish(*(Placed(f"k{n}", n) for n in range(5)))
        await stage.parked(5)
        stage.broken.clear()
        (redriven,) = await operations.redrive(stage.app, Selection(handler="handle"), canary=2)
        await stage.done.count(5)

    assert (redriven.redriven, redriven.left, redriven.stopped) == (5, 0, None)
    assert stage.done.items[:2] == [("k0", 0), ("k1", 1)]


async def test_a_canary_that_nobody_takes_up_is_told(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {0, 1}
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 0), Placed("b", 1))
        await stage.parked(2)
    (redriven,) = await operations.redrive(stage.app, Selection(handler="handle"), canary=1, timeout=0.3)

    assert redriven.left == 1
    assert redriven.stopped is not None
    assert "is sink running?" in redriven.stopped


async def test_work_of_a_queue_goes_back_into_its_queue(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {1, 2}
    async with playing(stage.app):
        await stage.source.publish(Job("a", 1), Job("b", 2))
        await stage.parked(2)
        stage.broken.clear()
        (redriven,) = await operations.redrive(stage.app, Selection(type="Job"), canary=1)
        await stage.done.count(2)
        assert await eventually(lambda: no_deliveries(stage.sink))

    assert redriven.redriven == 2


async def test_a_redrive_for_a_handler_that_is_gone_changes_nothing(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {0}
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 0))
        await stage.parked(1)
    del stage.sink.handlers[:]
    app = App(stage.source, Service("sink"), store=store_url, settings=QUICK)

    with pytest.raises(OperationRefused, match="no handler 'handle' any more"):
        await operations.redrive(app, Selection(key="a"))
    assert (await operations.list_parked(app, Selection(handler="handle"))).total == 1
    (discarded,) = await operations.discard(app, Selection(handler="handle"))
    assert discarded.discarded == 1


async def test_what_waits_behind_a_discarded_message_goes_on(store_url: str) -> None:
    stage = Stage(store_url)
    stage.broken = {0}
    async with playing(stage.app):
        await stage.source.publish(*(Placed("a", n) for n in range(4)))
        await stage.parked(1)
        (discarded,) = await operations.discard(stage.app, Selection(key="a"))
        await stage.done.count(3)
        assert await eventually(lambda: no_deliveries(stage.sink))

    assert (discarded.service, discarded.discarded) == ("sink", 1)
    assert [n for _, n in stage.done.items] == [1, 2, 3]


async def test_more_than_one_batch_comes_back_whole(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.operations.parked.BATCH", 3)
    stage = Stage(store_url)
    stage.broken = set(range(40))
    async with playing(stage.app):
        await stage.source.publish(*(Placed(f"k{n}", n) for n in range(40)))
        await stage.parked(40)
        stage.broken.clear()
        (redriven,) = await operations.redrive(stage.app, Selection(handler="handle"))
        await stage.done.count(40)

    assert redriven.redriven == 40
    assert sorted(n for _, n in stage.done.items) == list(range(40))


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(services=("snik",)), "sink"),
        (Selection(handler="handel"), "handle"),
        (Selection(type="Plcaed"), "Placed"),
        (Selection(origin="suorce"), "source"),
    ],
)
async def test_a_mistyped_name_is_told_with_the_one_that_was_meant(
    store_url: str, selection: Selection, meant: str
) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    for ask in (operations.list_parked, operations.redrive, operations.discard):
        with pytest.raises(UnknownName, match=f"did you mean '{meant}'"):
            await ask(stage.app, selection)
