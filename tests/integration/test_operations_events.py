"""The logs as a person sees them: the last messages, those that come, and one with its way through the readers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from skald import NEVER, App, Service, operations
from skald.errors import ConfigurationError, StoreUnavailable
from skald.message import Record, new_id, slot_of
from skald.operations import EventView, NotFound
from skald.unit import Unit
from tests.simulation.stage import QUICK, Job, Made, Placed, caught_up, eventually, playing


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:{tmp_path / 'data'}"


class Stage:
    def __init__(self, url: str) -> None:
        self.source = Service("source", publishes=[Placed, Job])
        self.sink = Service("sink", publishes=[Made])
        self.app = App(self.source, self.sink, store=url, settings=QUICK)
        self.sink.on(Placed, retry=NEVER)(self.handle)
        self.sink.queue(Job, retry=NEVER)(self.work)

    async def handle(self, event: Placed) -> Made:
        if event.n == 13:
            raise ValueError("unlucky")
        return Made(event.key, event.n)

    async def work(self, job: Job) -> None:
        return None


async def tail(app: App, *services: str, **options: object) -> list[EventView]:
    return [event async for event in operations.tail_events(app, services, **options)]  # type: ignore[arg-type]


async def test_the_last_messages_of_all_services_come_in_order(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        for n in range(5):
            await stage.source.publish(Placed(f"k{n}", n))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
        every = await tail(stage.app)
        last = await tail(stage.app, last=3)
        ours = await tail(stage.app, "source", last=2)

    assert len(every) == 10
    assert [event.time for event in every] == sorted(event.time for event in every)
    assert last == every[-3:]
    assert [(e.service, e.position, e.type, e.key, e.payload) for e in ours] == [
        ("source", 4, "Placed", "k3", {"key": "k3", "n": 3}),
        ("source", 5, "Placed", "k4", {"key": "k4", "n": 4}),
    ]
    made = next(event for event in every if event.type == "Made")
    assert made.causation_id == next(e.id for e in every if e.type == "Placed" and e.key == made.key)


async def test_the_last_ones_of_a_kind_are_found_however_far_back_they_are(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    async with stage.app.connect("source"):
        await stage.source.publish(Placed("rare", 0), Placed("other", 1), Placed("rare", 2))
        await stage.source.publish(*(Job(f"k{n}", n) for n in range(1500)))
    found = await tail(stage.app, types=["Placed"], key="rare", last=5)
    assert [event.position for event in found] == [1, 3]
    assert [event.position for event in await tail(stage.app, key="rare", last=1)] == [3]
    assert await tail(stage.app, last=0) == []


async def test_since_a_position_a_time_or_the_start(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    async with stage.app.connect("source"):
        await stage.source.publish(*(Placed("a", n) for n in range(700)))
        moment = datetime.now(UTC)
        await stage.source.publish(Placed("b", 700), Placed("b", 701))
    assert [e.position for e in await tail(stage.app, since="start")] == list(range(1, 703))
    assert [e.position for e in await tail(stage.app, "source", since=700)] == [700, 701, 702]
    assert [e.position for e in await tail(stage.app, since=moment)] == [701, 702]


async def test_following_shows_what_comes(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 1))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
        found: list[tuple[str, int]] = []
        async with asyncio.timeout(20), aclosing(operations.tail_events(stage.app, last=1, follow=True)) as events:
            async for event in events:
                found.append((event.type, event.payload["n"]))
                if event.payload["n"] == 3 and event.type == "Made":
                    break
                if event.type == "Made":
                    await stage.source.publish(Placed("a", event.payload["n"] + 1))

    assert found == [("Made", 1), ("Placed", 2), ("Made", 2), ("Placed", 3), ("Made", 3)]


async def test_a_service_without_a_log_is_told_left_out_and_followed_once_it_has_one(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skald.operations.events.POLL", 0.05)
    stage, told = Stage(store_url), list[StoreUnavailable]()
    with pytest.raises(StoreUnavailable, match="migrate"):
        await tail(stage.app, absent=told.append)
    await stage.app.migrate(["source"])
    async with stage.app.connect("source"):
        await stage.source.publish(Placed("a", 1))
    told.clear()
    assert [event.type for event in await tail(stage.app, absent=told.append)] == ["Placed"]
    assert len(told) == 1

    events = operations.tail_events(stage.app, follow=True, absent=told.append)
    async with asyncio.timeout(60), aclosing(events):
        assert (await anext(events)).service == "source"
        await stage.app.migrate(["sink"])
        async with stage.app.connect("sink"):
            await stage.sink.publish(Made("a", 1))
            assert (await anext(events)).service == "sink"


async def test_a_body_that_is_no_json_is_shown_as_bytes(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    record = Record(0, new_id(), "source", "k", slot_of("k"), "Placed", 1, 1, "c", None, None, b"\xff{")
    async with stage.app.connect("source"):
        await stage.source.store.commit([Unit(events=(record,))])
    (event,) = await tail(stage.app, "source")
    assert event.payload == {"base64": "/3s="}


async def test_a_message_is_shown_with_what_became_of_it(store_url: str) -> None:
    stage = Stage(store_url)
    async with playing(stage.app):
        await stage.source.publish(Placed("a", 13), Placed("a", 14), Placed("b", 1))
        assert await eventually(lambda: caught_up(stage.sink, stage.source))
    async with stage.app.connect("source"):
        await stage.source.publish(Placed("b", 2))
    states = {}
    for position in (1, 2, 3, 4):
        detail = await operations.show_event(stage.app, position, ["source"])
        (reading,) = detail.readers
        states[position] = (reading.service, reading.handler, reading.state)
    assert states == {
        1: ("sink", "handle", "parked"),
        2: ("sink", "handle", "waiting"),
        3: ("sink", "handle", "handled"),
        4: ("sink", "handle", "ahead"),
    }
    by_id = await operations.show_event(stage.app, detail.event.id)
    assert by_id == detail
    assert by_id.envelope["type"] == "Placed"
    assert by_id.envelope["sequence"] == "00000000000000000004"


async def test_a_reader_that_never_ran_is_told(store_url: str) -> None:
    stage = Stage(store_url)
    await stage.app.migrate()
    async with stage.app.connect("source"):
        await stage.source.publish(Job("a", 1))
    detail = await operations.show_event(stage.app, 1, ["source"])
    assert [(r.handler, r.state) for r in detail.readers] == [("work", "not started")]


async def test_what_does_not_exist_is_told(store_url: str) -> None:
    stage = Stage(store_url)
    with pytest.raises(StoreUnavailable, match="migrate"):
        await tail(stage.app)
    await stage.app.migrate()
    for unknown in (new_id(), "nonsense"):
        with pytest.raises(NotFound, match="there is no message"):
            await operations.show_event(stage.app, unknown)
    with pytest.raises(ConfigurationError, match="which log"):
        await operations.show_event(stage.app, 1)
    async with stage.app.connect("source"), stage.source.transaction() as tx:
        await tx.execute("UPDATE skald_meta SET value = '10' WHERE key = 'floor'")
    with pytest.raises(NotFound, match="retention has deleted it"):
        await operations.show_event(stage.app, 5, ["source"])
