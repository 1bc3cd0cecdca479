"""Sagas over several services: what was called is undone by commands that are called as well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from skald import (
    NEVER,
    App,
    CallRejected,
    Command,
    Done,
    Event,
    FailedExecution,
    SagaCompensated,
    Service,
    Transaction,
    call,
    compensation,
    saga,
    step,
    workflows,
)
from skald.operations.sagas import resolve_saga, show_saga
from skald.sagas.question import Choice
from skald.workflows import Signal
from tests.integration.test_calls import SETTINGS
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.stage import MIGRATIONS, deliveries, effect, effects, eventually, redrive


class Reserved(Event, key="order"):
    order: str


class SoldOut(Event, key="order"):
    order: str


class Released(Event, key="order"):
    order: str


class Paid(Event, key="order"):
    order: str


class Declined(Event, key="order"):
    order: str
    reason: str


class Refunded(Event, key="order"):
    order: str


class NotRefunded(Event, key="order"):
    order: str


class Reserve(Command[Reserved], key="order"):
    order: str


class Release(Command[Released], key="order"):
    order: str
    because: str = ""


class Pay(Command[Paid], key="order"):
    order: str


class Refund(Command[Refunded], key="order"):
    order: str


go = Signal("go", str)


@compensation
async def erase(order: str) -> None:
    done.append(f"erase {order}")


@step(compensate=erase)
async def note(order: str) -> None: ...


@step(pivot=True)
async def ship(order: str) -> None: ...


done: list[str] = []


@saga
async def fulfil(order: str, timeout: float | None = None) -> str:
    await call(Reserve(order), timeout=timeout, compensate=Release(order))
    await note(order)
    await call(Pay(order), compensate=Refund(order))
    if order.startswith("last"):
        raise ValueError("at last")
    return "fulfilled"


@saga
async def waiting(order: str) -> None:
    await call(Reserve(order), compensate=Release(order))
    await go.receive()


@saga
async def past_pivot(order: str) -> str:
    await ship(order)
    return (await call(Pay(order))).order


@saga
async def explaining(order: str) -> None:
    workflows.stage("STOCK_PENDING")
    await call(Reserve(order), compensate=release_of)
    workflows.stage("PAYMENT_PENDING")
    await call(Pay(order))


def release_of(failed: FailedExecution) -> Release:
    if failed.id.startswith("poor and mistaken"):
        raise RuntimeError("no word for it")
    return Release(failed.id, f"{failed.type} in {failed.step}")


class Shop:
    def __init__(self, url: str) -> None:
        done.clear()
        sagas = [fulfil, waiting, past_pivot, explaining]
        self.orders = Service("orders", workflows=sagas, calls=[Reserve, Release, Pay, Refund])
        self.stock = Service("stock", migrations=MIGRATIONS)
        self.bank = Service("bank", migrations=MIGRATIONS)
        self.app = App(self.orders, self.stock, self.bank, store=url, settings=SETTINGS)
        self.refunds = self.sells = self.releases = True

        @self.stock.on(Reserve, retry=NEVER)
        async def reserve(command: Reserve, tx: Transaction) -> Reserved | SoldOut:
            if not self.sells:
                raise RuntimeError("the stock is closed")
            if command.order.startswith("none"):
                return SoldOut(command.order)
            await effect(tx, "reserve", command.order, command.order, 0)
            return Reserved(command.order)

        @self.stock.on(Release, compensates=reserve, retry=NEVER)
        async def release(command: Release, tx: Transaction, done: Done[Reserved]) -> Released:
            if not self.releases:
                raise RuntimeError("the stock is closed")
            await effect(tx, "release", f"release {command.order} {command.because}", command.order, 0)
            return Released(command.order)

        @self.bank.on(Pay)
        async def pay(command: Pay, tx: Transaction) -> Paid | Declined:
            if command.order.startswith(("poor", "late")):
                return Declined(command.order, "no funds")
            await effect(tx, "pay", command.order, command.order, 0)
            return Paid(command.order)

        @self.bank.on(Refund)
        async def refund(command: Refund, tx: Transaction) -> Refunded | NotRefunded:
            if not self.refunds:
                return NotRefunded(command.order)
            await effect(tx, "refund", f"refund {command.order}", command.order, 0)
            return Refunded(command.order)

    async def status(self, id: str) -> str:
        return str((await self.state(id))["status"])

    async def state(self, id: str) -> dict[str, Any]:
        [row] = await self.orders.fetch("SELECT status, current_step FROM saga_state WHERE saga_id = :id", id=id)
        return row

    async def until(self, id: str, status: str) -> None:
        async def check() -> bool:
            return await self.status(id) == status

        await eventually(check)

    async def undone(self, service: Service, handler: str) -> list[str]:
        return [row["key"] for row in await effects(service, handler)]


@asynccontextmanager
async def shop(url: str) -> AsyncIterator[Shop]:
    found = Shop(url)
    await found.app.migrate()
    async with found.app.run():
        yield found


async def test_a_saga_that_goes_well_undoes_nothing(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        assert await fulfil.run("o1", id="o1") == "fulfilled"
        assert await it.state("o1") == {"status": "COMPLETED", "current_step": "Pay"}
        assert await it.undone(it.stock, "release") == []


async def test_a_rejection_is_not_undone_and_what_was_done_before_is(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        with pytest.raises(SagaCompensated, match="Pay has failed: Declined") as failed:
            await fulfil.run("poor", id="poor")
        assert (failed.value.step, failed.value.type) == ("Pay", "Declined")
        assert done == ["erase poor"]
        assert await it.undone(it.stock, "release") == ["poor"]
        assert await it.undone(it.bank, "refund") == []
        assert await it.status("poor") == "COMPENSATED"
        with pytest.raises(SagaCompensated, match="SoldOut"):
            await fulfil.run("none", id="none")
        assert await it.undone(it.stock, "release") == ["poor"]


async def test_compensations_are_called_last_first(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        with pytest.raises(SagaCompensated, match="at last"):
            await fulfil.run("last", id="last")
        shown = await show_saga(it.app, "last", "orders")
        called = [entry.name for entry in shown.journal if entry.kind in ("call_done", "step_done")]
        assert called == ["Reserve", "note", "Pay", "Refund", "erase", "Release"]
        assert await it.undone(it.stock, "release") == await it.undone(it.bank, "refund") == ["last"]


async def test_a_cancel_undoes_what_was_called(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        handle = await waiting.start("o1", id="o1")

        async def reserved() -> bool:
            return await it.undone(it.stock, "reserve") == ["o1"]

        await eventually(reserved)
        await handle.cancel()
        await it.until("o1", "CANCELLED")
        assert await it.undone(it.stock, "release") == ["o1"]


async def test_a_compensation_that_overtakes_what_it_undoes(store_url: str) -> None:  # noqa: F811
    """The command is parked at the participant, nobody answers in time, and its compensation is quicker."""
    async with shop(store_url) as it:
        it.sells = False
        with pytest.raises(SagaCompensated, match="no answer within"):
            await fulfil.run("o1", 0.3, id="o1")
        it.sells = True
        parked = {row["state"] for row in await deliveries(it.stock)}
        if parked:  # otherwise its compensation has discarded it
            await redrive(it.stock)

        async def over() -> bool:
            return not await deliveries(it.stock)

        await eventually(over)
        assert await it.status("o1") == "COMPENSATED"
        assert await it.undone(it.stock, "reserve") == await it.undone(it.stock, "release") == []
        answers = [record.type for record in await it.stock.store.log.read(0, 100)]
        assert set(answers) == {"skald.Handled"}


async def test_a_compensation_that_is_rejected_waits_for_a_person(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        it.refunds = False
        handles = [await fulfil.start(f"last{n}", id=f"last{n}") for n in range(3)]
        for n in range(3):
            await it.until(f"last{n}", "COMPENSATION_FAILED")
        shown = await show_saga(it.app, "last0", "orders")
        [question] = shown.questions
        assert (question.step, question.compensation) == ("Pay", "Refund")
        assert question.arguments == {"order": "last0"}
        assert question.result == {"order": "last0"}
        assert question.failure.startswith("NotRefunded")
        assert await it.state("last0") == {"status": "COMPENSATION_FAILED", "current_step": "Pay"}
        assert await it.undone(it.stock, "release") == []
        it.refunds = True
        for n, choice in enumerate((Choice.RETRY, Choice.DONE, Choice.SKIP)):
            await resolve_saga(it.app, f"last{n}", choice, "Pay", by="ann", reason="it is a test")
        for handle in handles:
            with pytest.raises(SagaCompensated):
                await handle.result()
        assert await it.undone(it.bank, "refund") == ["last0"]
        assert await it.undone(it.stock, "release") == ["last0", "last1", "last2"]


async def test_a_compensation_that_parks_at_the_participant_waits_for_a_person(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        it.releases = False
        handle = await fulfil.start("poor", id="poor")
        await it.until("poor", "COMPENSATION_FAILED")
        [question] = (await show_saga(it.app, "poor", "orders")).questions
        assert (question.step, question.compensation) == ("Reserve", "Release")
        assert question.failure.startswith("CompensationFailed")
        it.releases = True
        await redrive(it.stock)

        async def released() -> bool:
            return await it.undone(it.stock, "release") == ["poor"]

        await eventually(released)
        await resolve_saga(it.app, "poor", Choice.DONE, "Reserve", by="ann", reason="it was redriven")
        with pytest.raises(SagaCompensated, match="Declined"):
            await handle.result()


async def test_a_compensation_is_made_of_what_has_failed(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        with pytest.raises(SagaCompensated, match="Declined"):
            await explaining.run("poor", id="poor")
        assert [row["id"] for row in await effects(it.stock, "release")] == ["release poor Declined in Pay"]


async def test_a_compensation_that_cannot_be_made_waits_for_a_person(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        id = "poor and mistaken"
        handle = await explaining.start(id, id=id)
        await it.until(id, "COMPENSATION_FAILED")
        [question] = (await show_saga(it.app, id, "orders")).questions
        assert (question.step, question.compensation) == ("Reserve", "release_of")
        assert question.failure == "RuntimeError: no word for it"
        await resolve_saga(it.app, id, Choice.DONE, "Reserve", by="ann", reason="by hand")
        with pytest.raises(SagaCompensated, match="Declined"):
            await handle.result()


async def test_a_saga_says_where_it_stands(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        await explaining.run("o1", id="o1")
        shown = await show_saga(it.app, "o1", "orders")
        assert [(entry.kind, entry.name) for entry in shown.journal] == [
            ("stage", "STOCK_PENDING"), ("call_done", "Reserve"), ("stage", "PAYMENT_PENDING"), ("call_done", "Pay"),
        ]  # fmt: skip
        it.sells = False
        handle = await explaining.start("o2", id="o2")
        assert await it.state("o2") == {"status": "IN_PROGRESS", "current_step": "STOCK_PENDING"}
        await handle.terminate()


async def test_a_rejection_behind_the_pivot_waits_for_a_person(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        handle = await past_pivot.start("poor", id="poor")
        await it.until("poor", "NEEDS_ATTENTION")
        await resolve_saga(it.app, "poor", Choice.DONE, "Pay", by="ann", reason="in cash", result="[]")

        async def asked_again() -> bool:
            [question] = (await show_saga(it.app, "poor", "orders")).questions
            return question.number == 2

        await eventually(asked_again)
        paid = '{"order": "by hand"}'
        await resolve_saga(it.app, "poor", Choice.DONE, "Pay", by="ann", reason="in cash", result=paid)
        assert await handle.result() == "by hand"


class Stored(Event, key="order"):
    order: str
    text: str


class Store(Command[Stored], key="order"):
    order: str
    text: str


class Remove(Command[None], key="order"):
    order: str
    text: str


@saga
async def storing(order: str, size: int) -> None:
    text = "x" * size
    stored = await call(Store(order, text), compensate=Remove(order, text))
    raise ValueError(f"{len(stored.text)} at last")


async def test_what_may_be_longer_is_read_by_everybody(store_url: str) -> None:  # noqa: F811
    """``max_body`` counts for the command, its handler, its answer, and what is undone."""
    orders, stock = Service("orders", workflows=[storing], calls=[Store, Remove]), Service("stock")
    undone: list[int] = []

    @stock.on(Store, retry=NEVER)
    async def keep(command: Store) -> Stored:
        return Stored(command.order, command.text)

    @stock.on(Remove, compensates=keep, retry=NEVER)
    async def remove(command: Remove, done: Done[Stored]) -> None:
        undone.append(len(done.message.text))

    app = App(orders, stock, store=store_url, settings=msgspec.structs.replace(SETTINGS, max_body=2 << 20))
    await app.migrate()
    async with app.run(), asyncio.timeout(20):
        with pytest.raises(SagaCompensated, match=f"{3 << 19} at last"):
            await storing.run("o1", 3 << 19, id="s1")
    assert undone == [3 << 19]


async def test_many_sagas_at_once(store_url: str) -> None:  # noqa: F811
    async with shop(store_url) as it:
        orders = [f"{kind}{n}" for n in range(10) for kind in ("fine", "poor", "none", "last")]
        results = await asyncio.gather(*(fulfil.run(order, id=order) for order in orders), return_exceptions=True)
        for order, result in zip(orders, results, strict=True):
            assert (result == "fulfilled") is order.startswith("fine")
        for handler, service, kinds in (
            ("reserve", it.stock, ("fine", "poor", "last")),
            ("release", it.stock, ("poor", "last")),
            ("pay", it.bank, ("fine", "last")),
            ("refund", it.bank, ("last",)),
        ):
            wanted = sorted(order for order in orders if order.startswith(kinds))
            assert sorted(await it.undone(service, handler)) == wanted
        assert await it.orders.fetch("SELECT id FROM skald_letters") == []


def test_a_rejection_says_what_was_answered() -> None:
    rejected = CallRejected("Pay", "Declined", '{"reason":"no funds"}', Declined("o1", "no funds"))
    assert str(rejected) == 'Pay: Declined: {"reason":"no funds"}'
    assert rejected.reply.reason == "no funds"
