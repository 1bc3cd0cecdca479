"""Processes looked after from outside: listed among sagas, and shown with their state, timeouts and effects."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from skald import App, Event, Process, Service, Transaction, saga
from skald.cli import main
from skald.errors import ConfigurationError
from skald.operations import NotFound
from skald.operations import sagas as operations
from skald.operations.processes import ProcessView
from skald.sagas.machine import Status
from skald.sagas.question import Choice
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import QUICK, eventually


class Placed(Event, key="order"):
    order: str


class Charged(Event, key="order"):
    order: str


class Refused(Event, key="order"):
    order: str


class Checkout(Process):
    order: str
    step: str = "placed"


class Watch(Process):
    order: str


@saga
async def fulfil(order: str) -> str:
    return order


def program(url: str | None = None) -> App:
    orders = Service("orders", publishes=[Placed, Refused], workflows=[fulfil])

    @orders.on(Placed)
    async def charge(event: Placed, tx: Transaction) -> Charged:
        return Charged(event.order)

    @orders.on(Refused, compensates=charge)
    async def refund(event: Refused, tx: Transaction) -> None: ...

    checkout = orders.process(Checkout, by="order")

    @checkout.starts(Placed)
    def placed(state: Checkout, event: Placed) -> None:
        state.timeout(3_600, "patience")

    @checkout.on(Charged)
    def charged(state: Checkout, event: Charged) -> None:
        state.step = "charged"

    @checkout.on(Refused)
    def refused(state: Checkout, event: Refused) -> None:
        state.end()

    @checkout.on_timeout("patience")
    def too_late(state: Checkout) -> None:
        state.end()

    watch = orders.process(Watch, by="order")

    @watch.starts(Refused)
    def seen(state: Watch, event: Refused) -> None: ...

    return App(orders, store=url, settings=QUICK)


app = program()


@asynccontextmanager
async def playing(url: str) -> AsyncIterator[tuple[App, Service]]:
    """An operator beside the running service."""
    app = program(url)
    await app.migrate()
    async with app.run():
        yield program(url), app.service("orders")


async def reaches(app: App, id: str, name: str, status: Status, step: str | None) -> ProcessView:
    async def check() -> ProcessView:
        found = await operations.show_saga(app, id, name=name)
        assert (found.saga.style, found.saga.status, found.saga.current_step) == ("process", status, step)
        assert found.process is not None
        return found.process

    async def known() -> Any:
        try:
            return await check()
        except NotFound:
            return False

    view = await eventually(known)
    assert isinstance(view, ProcessView)
    return view


async def test_a_process_from_its_start_to_its_end(store_url: str) -> None:  # noqa: F811
    async with playing(store_url) as (app, orders):
        await orders.publish(Placed("o-1"))
        view = await reaches(app, "o-1", "Checkout", Status.IN_PROGRESS, "charged")
        assert view.state == {"order": "o-1", "step": "charged"}
        assert [(one.name, one.state) for one in view.timeouts] == [("patience", "queued")]
        assert [(one.handler, one.state, one.refused) for one in view.effects] == [("charge", "done", [])]
        await orders.publish(Refused("o-1"))
        view = await reaches(app, "o-1", "Checkout", Status.COMPLETED, "charged")
        assert view.timeouts == []

        async def undone() -> bool:
            found = (await operations.show_saga(app, "o-1", name="Checkout")).process
            return found is not None and [one.state for one in found.effects] == ["undone"]

        await eventually(undone)
        with pytest.raises(
            ConfigurationError, match="several with the id 'o-1', give one with --name: Checkout, Watch"
        ):
            await operations.show_saga(app, "o-1")


async def test_what_came_too_late_is_shown(store_url: str) -> None:  # noqa: F811
    async with playing(store_url) as (app, orders):
        await orders.publish(Refused("o-2"))
        await reaches(app, "o-2", "Watch", Status.IN_PROGRESS, None)
        await orders.publish(Placed("o-2"))

        async def refused() -> bool:
            found = (await operations.show_saga(app, "o-2", name="Checkout")).process
            return found is not None and [(one.handler, len(one.refused)) for one in found.effects] == [("charge", 1)]

        await reaches(app, "o-2", "Checkout", Status.IN_PROGRESS, "placed")
        await eventually(refused)


def test_one_is_shown_at_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:{tmp_path / 'data'}"

    async def play() -> None:
        async with playing(url) as (app, orders):
            await orders.publish(Placed("o-1"))
            await reaches(app, "o-1", "Checkout", Status.IN_PROGRESS, "charged")

    asyncio.run(play())
    monkeypatch.setattr(sys.modules[__name__], "app", program(url))
    with pytest.raises(SystemExit) as ended:
        main(("sagas", "show", f"{__name__}:app", "o-1", "--name", "Checkout"))
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    for text in ("style        process", '"step": "charged"', "timeout patience: due ", " charge: done"):
        assert text in out


async def test_processes_are_listed_among_sagas(store_url: str) -> None:  # noqa: F811
    async with playing(store_url) as (app, orders):
        await fulfil.run("x", id="o-1")
        await orders.publish(Placed("o-1"))
        await reaches(app, "o-1", "Checkout", Status.IN_PROGRESS, "charged")
        found = (await operations.list_sagas(app)).sagas
        assert [(one.id, one.saga, one.style, one.run is None) for one in found] == [
            ("o-1", "Checkout", "process", True), ("o-1", "fulfil", "orchestration", False),
        ]  # fmt: skip
        assert (await operations.list_sagas(app, limit=1)).more
        assert [one.saga for one in (await operations.list_sagas(app, statuses=[Status.COMPLETED])).sagas] == ["fulfil"]
        assert (await operations.show_saga(app, "o-1", name="fulfil")).process is None
        with pytest.raises(NotFound, match="no saga of Other with the id 'o-1'"):
            await operations.show_saga(app, "o-1", name="Other")
        with pytest.raises(NotFound, match="no saga with the id 'o-9'"):
            await operations.resolve_saga(app, "o-9", Choice.SKIP, "x", by="ann", reason="x")
        await orders.publish(Refused("o-3"))
        await reaches(app, "o-3", "Watch", Status.IN_PROGRESS, None)
        with pytest.raises(NotFound, match="no saga with the id 'o-3'"):
            await operations.resolve_saga(app, "o-3", Choice.SKIP, "x", by="ann", reason="x")
