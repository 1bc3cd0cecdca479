"""What comes between the decision on a message and its commit: each of these moments, made to happen."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from skald import NEVER, App, Attempt, Done, Event, Process, Retry, RuntimeSettings, Service, Transaction, Unknown
from skald.errors import Busy, StoreUnavailable
from skald.message import slot_of
from skald.messaging.batch import Stretch
from skald.messaging.doubts import Ran
from skald.messaging.keeping import Keeper
from skald.messaging.marks import Marks
from skald.messaging.outcome import Taken
from skald.messaging.undoing import Undoing
from tests.simulation.stage import MIGRATIONS, QUICK, caught_up, cursors, deliveries, eventually, happens, playing


class Placed(Event, key="order"):
    order: str


class Cancelled(Event, key="order"):
    order: str


class Rejected(Event, key="order"):
    order: str


class Charged(Event, key="order"):
    order: str


class Refunded(Event, key="order"):
    order: str


PATIENT = replace(QUICK, consumer=replace(QUICK.consumer, patience=60.0))
"""However busy the machine is, a handler is waited for."""


class World:
    """A charge that goes on until it may end, and its refund."""

    def __init__(
        self,
        url: str,
        settings: RuntimeSettings = QUICK,
        *,
        looks_up: bool = False,
        once: bool = False,
        retry: Retry | None = None,
        fails: bool = False,
        tx: bool = False,
    ) -> None:
        self.orders = Service("orders", publishes=[Placed, Cancelled], lanes=1)
        self.stock = Service("stock", publishes=[Rejected], lanes=1)
        self.payments = Service("payments", migrations=MIGRATIONS, lanes=1)
        self.app = App(self.orders, self.stock, self.payments, store=url, settings=settings)
        self.may_end, self.charges = asyncio.Event(), Counter[str]()
        self.has_begun = asyncio.Event()

        async def act(event: Placed, attempt: Attempt) -> Charged:
            self.charges[attempt.key] += 1
            self.has_begun.set()
            await self.may_end.wait()
            if fails:
                raise TimeoutError("the reply is lost")
            return Charged(event.order)

        if tx:

            @self.payments.on(Placed, retry=retry)
            async def charge(event: Placed, attempt: Attempt, tx: Transaction) -> Charged:
                return await act(event, attempt)
        else:
            charge = self.payments.on(Placed, retry=retry, name="charge")(act)

        if looks_up:

            @self.payments.on(Rejected, Cancelled, compensates=charge)
            async def refund_if_charged(event: Rejected | Cancelled, done: Done[Charged] | Unknown) -> Refunded | None:
                return Refunded(event.order) if done.attempt in self.charges else None
        else:

            @self.payments.on(Rejected, Cancelled, compensates=charge, once_by="order" if once else None)
            async def refund(event: Rejected | Cancelled, done: Done[Charged]) -> Refunded:
                return Refunded(event.order)

    async def state(self) -> str | None:
        rows = await self.payments.fetch("SELECT state FROM skald_marks WHERE kind = 'effect'")
        return str(rows[0]["state"]) if rows else None

    async def is_done(self) -> bool:
        return await self.state() == "done"

    async def is_cancelled(self) -> bool:
        return await self.state() == "cancelled"

    async def is_undone(self) -> bool:
        return await self.state() == "undone"

    async def is_quiet(self) -> bool:
        origins = (self.orders, self.stock)
        return not await deliveries(self.payments) and all([await caught_up(self.payments, one) for one in origins])

    async def ends(self) -> None:
        """Charged once, and refunded once."""
        await eventually(self.is_quiet)
        log = await self.payments.store.log.read(0, 100)
        assert [record.type for record in log] == ["Charged", "Refunded"]
        assert await self.state() == "undone"
        assert self.charges == {"payments:charge:o": 1}

    async def ends_with_a_refund(self) -> None:
        """The order is cancelled, if it is not yet, and the charge, whose reply was lost, is looked up."""
        if await self.state() is None:
            await self.stock.publish(Rejected("o"))
        await eventually(self.is_undone)
        await eventually(self.is_quiet)
        log = await self.payments.store.log.read(0, 100)
        assert [record.type for record in log] == ["Refunded"]
        assert self.charges == {"payments:charge:o": 1}


async def test_what_was_decided_behind_something_that_was_not_written_is_decided_again(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The charge ends after three cancels were decided on, and before they are written. With the first one written as a
    refund, the version of the effect is the one that the third has seen in the tombstone of the second."""
    it, commit = World(store_url), Stretch._commit

    async def after_the_charge(self: Stretch, lanes: Any, items: Any, last: Any) -> None:
        if len(items) == 3:
            it.may_end.set()
            await eventually(it.is_done)
        await commit(self, lanes, items, last)

    monkeypatch.setattr(Stretch, "_commit", after_the_charge)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await it.has_begun.wait()
        await eventually(lambda: deliveries(it.payments))  # it goes on alone
        await it.orders.publish(*(Cancelled("o") for _ in range(3)))
        await it.ends()


@pytest.mark.parametrize("is_written", [False, True], ids=["the mark is busy", "the reply is lost"])
async def test_a_charge_that_has_ended_behind_its_cancel_is_refunded_once(
    store_url: str, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """Also where that is not written at once, or is and nobody knows."""
    it, ask_again, failed = World(store_url), Undoing._ask_again, list[str]()

    async def fails_first(self: Undoing, item: Any, *given: Any) -> None:
        if not failed:
            failed.append(item.handler.name)
            if not is_written:
                raise Busy("mark:effect:charge:o")
            await ask_again(self, item, *given)
            await eventually(it.is_undone)
            raise StoreUnavailable("the reply is lost")
        await ask_again(self, item, *given)

    monkeypatch.setattr(Undoing, "_ask_again", fails_first)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await it.has_begun.wait()
        await eventually(lambda: deliveries(it.payments))
        await it.stock.publish(Rejected("o"))
        await eventually(it.is_cancelled)
        it.may_end.set()
        await it.ends()
        assert failed == ["charge"]


async def test_a_charge_is_refunded_whose_stretch_was_dropped_while_it_was_cancelled(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, commit, dropped = World(store_url, PATIENT), Stretch._commit, list[str]()
    it.may_end.set()

    async def drop(self: Stretch, lanes: Any, items: Any, last: Any) -> None:
        if items[0].handler.name == "charge" and not dropped:
            dropped.append("charge")
            await it.stock.publish(Rejected("o"))
            await eventually(it.is_cancelled)
            async with it.payments.transaction() as tx:  # as an operator's command does
                await tx.execute("UPDATE skald_cursors SET version = version + 1 WHERE origin = 'orders'")
        await commit(self, lanes, items, last)

    monkeypatch.setattr(Stretch, "_commit", drop)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await it.ends()
        assert dropped


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
async def test_a_charge_whose_commit_has_an_unknown_outcome_is_told_of_and_refunded_once(
    store_url: str, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """It is read again after its order was cancelled."""
    it, commit, lost = World(store_url, PATIENT), Stretch._commit, asyncio.Event()
    it.may_end.set()

    async def lose(self: Stretch, lanes: Any, items: Any, last: Any) -> None:
        if items[0].handler.name != "charge" or lost.is_set():
            await commit(self, lanes, items, last)
            return
        position = {number: lane.position for number, lane in lanes.items()}
        if written:
            await commit(self, lanes, items, last)
        await it.stock.publish(Rejected("o"))
        await eventually(it.is_undone if written else it.is_cancelled)
        for number, lane in lanes.items():
            lane.position = position[number]
        lost.set()
        raise StoreUnavailable("the reply is lost")

    monkeypatch.setattr(Stretch, "_commit", lose)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await happens(lost)
        await it.ends()


@pytest.mark.parametrize("another", [False, True], ids=["its own tombstone", "the tombstone is another's"])
async def test_what_comes_behind_its_cancel_and_may_have_been_begun_is_looked_up_and_not_made(
    store_url: str, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    """A cancel and two orders of one key are read again together, none of them written. In the end the tombstone may be
    another's, so that what the cancel is about to write has the version which an order would write."""
    it, runs = World(store_url, PATIENT, looks_up=True), list[str]()
    run, commit = Stretch.run, Stretch._commit
    it.may_end.set()

    async def not_at_first(self: Stretch, lanes: Any, items: Any, last: Any) -> bool:
        if self._origin == "orders":
            assert len(items) == 3
            runs.append("run")
            if len(runs) == 1:
                raise StoreUnavailable("from now on nobody knows what was begun")
        return await run(self, lanes, items, last)

    async def nor_then(self: Stretch, lanes: Any, items: Any, last: Any) -> None:
        if self._origin == "orders" and len(runs) == 2 and another:
            await it.stock.publish(Rejected("o"))
            await eventually(it.is_cancelled)
            raise StoreUnavailable("not written")
        await commit(self, lanes, items, last)

    monkeypatch.setattr(Stretch, "run", not_at_first)
    monkeypatch.setattr(Stretch, "_commit", nor_then)
    async with playing(it.app):
        await it.orders.publish(Cancelled("o"), Placed("o"), Placed("o"))
        await eventually(it.is_undone)
        await eventually(it.is_quiet)
        assert await it.payments.store.log.read(0, 100) == []
    assert len(runs) == 2 + another
    assert it.charges == {}


async def test_a_compensation_that_is_once_by_something_is_asked_again_by_what_comes_behind_it(store_url: str) -> None:
    it = World(store_url, once=True)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await it.has_begun.wait()
        await eventually(lambda: deliveries(it.payments))  # it goes on alone
        await it.stock.publish(Rejected("o"))
        await eventually(it.is_cancelled)
        it.may_end.set()
        await eventually(it.is_undone)
        await it.stock.publish(Rejected("o"))  # the same fact once more
        await it.ends()


@pytest.mark.parametrize("retry", [Retry(), NEVER], ids=["tried at once again", "never tried again"])
@pytest.mark.parametrize("settings", [QUICK, PATIENT], ids=["alone", "in its stretch"])
async def test_what_an_attempt_that_failed_may_have_done_is_looked_up(
    store_url: str, retry: Retry, settings: RuntimeSettings
) -> None:
    """It has charged, the reply is lost, and the order is cancelled before the attempt ends."""
    it = World(store_url, settings, looks_up=True, retry=retry, fails=True)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await it.has_begun.wait()
        if settings is QUICK:
            await eventually(lambda: deliveries(it.payments))
        await it.stock.publish(Rejected("o"))
        await eventually(it.is_cancelled)
        it.may_end.set()
        await eventually(it.is_undone)
        await eventually(it.is_quiet)
        log = await it.payments.store.log.read(0, 100)
    assert [record.type for record in log] == ["Refunded"]
    assert set(it.charges) == {"payments:charge:o"}


async def test_a_charge_is_refunded_that_had_gone_on_alone_when_its_stretch_was_dropped(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, commit, dropped = World(store_url), Stretch._commit, asyncio.Event()

    async def drop(self: Stretch, lanes: Any, items: Any, last: Any) -> None:
        if items[0].handler.name == "charge" and not dropped.is_set():
            assert isinstance(items[0].outcome, Taken)
            it.may_end.set()
            await it.stock.publish(Rejected("o"))
            await eventually(it.is_cancelled)
            dropped.set()
            raise StoreUnavailable("not written")
        await commit(self, lanes, items, last)

    monkeypatch.setattr(Stretch, "_commit", drop)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await happens(dropped)
        await it.ends()


WAYS = ["in its stretch", "alone", "delayed, in a transaction"]


def parking(url: str, way: str, looks_up: bool) -> World:
    """A charge that fails and is parked, by each of those who park."""
    delayed, settings = way.startswith("delayed"), QUICK if way == "alone" else PATIENT
    retry = Retry(immediate=1, delays=(0.01,)) if delayed else NEVER
    return World(url, settings, looks_up=looks_up, retry=retry, fails=True, tx=delayed)


async def ends_without_what_was_parked(it: World, looks_up: bool) -> None:
    """Looked up and refunded, or taken for not done: nobody has to redrive it."""

    async def is_refused() -> bool:
        rows = await it.payments.fetch("SELECT refused FROM skald_effects")
        return any(row["refused"] is not None for row in rows)

    await eventually(it.is_undone if looks_up else is_refused)
    await eventually(it.is_quiet)
    log = await it.payments.store.log.read(0, 100)
    assert [record.type for record in log] == (["Refunded"] if looks_up else [])
    assert await it.state() == ("undone" if looks_up else "cancelled")


@pytest.mark.parametrize("looks_up", [True, False], ids=["looked up", "not done"])
@pytest.mark.parametrize("way", WAYS)
async def test_one_that_is_cancelled_before_its_parking_is_written_is_not_parked(
    store_url: str, monkeypatch: pytest.MonkeyPatch, way: str, looks_up: bool
) -> None:
    it, parks, decided = parking(store_url, way, looks_up), Keeper.parks, list[str]()

    async def then_is_cancelled(self: Keeper, item: Any, *given: Any, **named: Any) -> Any:
        found = await parks(self, item, *given, **named)
        if not decided:
            decided.append(found.state)
            await it.stock.publish(Rejected("o"))
            await eventually(it.is_cancelled)
        return found

    monkeypatch.setattr(Keeper, "parks", then_is_cancelled)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await it.has_begun.wait()
        if way == "alone":
            await eventually(lambda: deliveries(it.payments))
        it.may_end.set()
        await eventually(it.state)
        await ends_without_what_was_parked(it, looks_up)
        assert decided == ["parked"]


@pytest.mark.parametrize("looks_up", [True, False], ids=["looked up", "not done"])
@pytest.mark.parametrize("way", WAYS)
async def test_one_that_is_parked_before_its_tombstone_is_written_is_discarded(
    store_url: str, monkeypatch: pytest.MonkeyPatch, way: str, looks_up: bool
) -> None:
    it, look, looked = parking(store_url, way, looks_up), Undoing._has_unfinished, list[bool]()

    async def is_parked() -> bool:
        return [row["state"] for row in await deliveries(it.payments)] == ["parked"]

    async def then_is_parked(self: Undoing, *given: Any) -> bool:
        found = await look(self, *given)
        if not looked:
            looked.append(found)
            it.may_end.set()
            await eventually(is_parked)
        return found

    monkeypatch.setattr(Undoing, "_has_unfinished", then_is_parked)
    async with playing(it.app):
        await it.orders.publish(Placed("o"))
        await it.has_begun.wait()
        if way == "alone":
            await eventually(lambda: deliveries(it.payments))
        await it.stock.publish(Rejected("o"))
        await eventually(it.state)
        await ends_without_what_was_parked(it, looks_up)
        assert looked == [False]


@pytest.mark.parametrize("way", ["the process stops", "the lane is given up"])
async def test_what_was_begun_is_known_to_the_next_owner(
    store_url: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A charge that could not be written is read again by somebody else, after its order was cancelled."""
    it, run, commit = World(store_url, PATIENT, looks_up=True), Stretch.run, Stretch._commit
    dropped, goes_on = asyncio.Event(), asyncio.Event()
    it.may_end.set()

    async def not_yet(self: Stretch, lanes: Any, items: Any, last: Any) -> bool:
        if self._origin == "orders" and dropped.is_set():
            if not goes_on.is_set():
                raise StoreUnavailable("still away")
            await eventually(it.is_cancelled)
        return await run(self, lanes, items, last)

    async def drop(self: Stretch, lanes: Any, items: Any, last: Any) -> None:
        if self._origin == "orders" and not dropped.is_set():
            dropped.set()
            raise StoreUnavailable("not written")
        await commit(self, lanes, items, last)

    monkeypatch.setattr(Stretch, "run", not_yet)
    monkeypatch.setattr(Stretch, "_commit", drop)
    async with playing(it.app) as running:
        await it.orders.publish(Placed("o"))
        await happens(dropped)
        if way == "the lane is given up":
            [consumer] = [one for service in running for one in service.consumers if one.origin == "orders"]
            await consumer.release(0)
            consumer._stretch._ran = Ran()  # it comes back, as to another process
            goes_on.set()
            await it.ends_with_a_refund()
    goes_on.set()
    async with playing(it.app):
        await it.ends_with_a_refund()


async def test_who_hands_over_tells_of_lanes_alone_of_which_something_may_have_been_begun(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two lanes that are read together one has messages, and they are handled at the second reading."""
    orders, payments = Service("orders", publishes=[Placed]), Service("payments", migrations=MIGRATIONS, lanes=2)
    run, stretches, wanted = Stretch.run, list[int](), asyncio.Event()

    @payments.on(Placed)
    async def charge(event: Placed) -> Charged:
        return Charged(event.order)

    async def not_at_first(self: Stretch, lanes: Any, items: Any, last: Any) -> bool:
        stretches.append(len(items))
        if not wanted.is_set():
            raise StoreUnavailable("not begun")
        return await run(self, lanes, items, last)

    async def suspected() -> list[int]:
        async with app.connect("payments"):
            return [row["lane"] for row in await cursors(payments) if row["takeovers"]]

    monkeypatch.setattr(Stretch, "run", not_at_first)
    app = App(orders, payments, store=store_url, settings=PATIENT)
    async with playing(app) as running:
        [consumer] = [one for service in running for one in service.consumers if one.origin == "orders"]
        await orders.publish(Placed("o"), Placed("o"))
        await eventually(lambda: _is(len(stretches) > 1))
        assert consumer.begun() == [("orders", 0)]
    assert await suspected() == [0]
    async with playing(app) as running:
        [consumer] = [one for service in running for one in service.consumers if one.origin == "orders"]
        wanted.set()
        await eventually(lambda: caught_up(payments, orders))
        # What the one before may have begun was read with the first message, or not at all.
        assert consumer.begun() == [("orders", 0)]
        await orders.publish(*(Placed(other) for other in others(PATIENT.consumer.run)))
        await eventually(lambda: caught_up(payments, orders))
        assert consumer.begun() == []
    assert await suspected() == []


def others(count: int) -> list[str]:
    """Keys of the other lane of two than that of ``o``."""
    keys = (f"k{n}" for n in range(10 * count))
    return [key for key in keys if (slot_of(key) < 128) != (slot_of("o") < 128)][:count]


async def _is(fact: bool) -> bool:
    return fact


class Failed(Event, key="order"):
    order: str
    why: str


@pytest.mark.parametrize("how", ["in its stretch", "alone", "delayed", "in a transaction", "delayed, in a transaction"])
async def test_what_exhausted_decides_is_not_lost_where_nobody_can_say_what_is_remembered(
    store_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The database is away for a moment when the last attempt has failed."""
    orders = Service("orders", publishes=[Placed, Cancelled], lanes=1)
    payments = Service("payments", migrations=MIGRATIONS, lanes=1)
    find, failed, away = Marks.find, asyncio.Event(), asyncio.Event()
    retry = Retry(immediate=1, delays=(0.01,)) if "delayed" in how else NEVER

    async def act() -> None:
        if how == "alone":
            await eventually(lambda: deliveries(payments))
        failed.set()
        raise TimeoutError("no answer")

    def failure(event: Placed, error: Exception) -> Failed:
        return Failed(event.order, type(error).__name__)

    if "transaction" in how:

        @payments.on(Placed, retry=retry, exhausted=failure)
        async def charge(event: Placed, tx: Transaction) -> Charged:
            await act()
            return Charged(event.order)
    else:

        @payments.on(Placed, retry=retry, exhausted=failure)
        async def charge(event: Placed) -> Charged:
            await act()
            return Charged(event.order)

    @payments.on(Cancelled, compensates=charge)
    async def refund(event: Cancelled, done: Done[Charged]) -> Refunded:
        return Refunded(event.order)

    async def away_once(self: Marks, item: Any, place: Any, transaction: Any) -> Any:
        if failed.is_set() and item.rescued and not away.is_set():
            away.set()
            raise StoreUnavailable("away")
        return await find(self, item, place, transaction)

    monkeypatch.setattr(Marks, "find", away_once)
    settings = QUICK if how == "alone" else PATIENT
    async with playing(App(orders, payments, store=store_url, settings=settings)):
        await orders.publish(Placed("o"))
        await happens(away)

        async def is_quiet() -> bool:
            return await caught_up(payments, orders) and not await deliveries(payments)

        await eventually(is_quiet)
        log = await payments.store.log.read(0, 100)
    assert [record.type for record in log] == ["Failed"]


class Opened(Event, key="account"):
    account: str


class Paid(Event, key="payment"):
    payment: str
    account: str
    amount: int


class Granted(Event, key="account"):
    account: str


class Account(Process):
    account: str
    total: int = 0


async def test_a_process_moves_on_from_what_is_written_also_where_its_messages_come_in_two_lanes(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two messages of an account are decided on together, in the units of two lanes. Before they are written another
    origin's message comes first, so that the account has the version which the second one expects."""
    here, there = Service("here", publishes=[Opened, Paid]), Service("there", publishes=[Granted])
    accounts, commit = Service("accounts", migrations=MIGRATIONS, lanes=2), Stretch._commit
    account = accounts.process(Account, by="account")

    @account.starts(Opened)
    async def opened(state: Account, event: Opened) -> None:
        state.total += 1

    @account.starts(Paid)
    async def paid(state: Account, event: Paid) -> None:
        state.total += event.amount

    @account.starts(Granted)
    async def granted(state: Account, event: Granted) -> None:
        state.total += 100

    other = next(f"p{n}" for n in range(100) if (slot_of(f"p{n}") < 128) != (slot_of("a") < 128))
    overtaken: list[int] = []

    async def overtake(self: Stretch, lanes: Any, items: Any, last: Any) -> None:
        if len(items) == 2 and not overtaken:
            overtaken.append(len({item.lane for item in items}))
            await there.publish(Granted("a"))
            await eventually(lambda: accounts.fetch("SELECT 1 AS one FROM skald_marks WHERE kind = 'process'"))
        await commit(self, lanes, items, last)

    monkeypatch.setattr(Stretch, "_commit", overtake)
    async with playing(App(here, there, accounts, store=store_url, settings=QUICK)):
        await here.publish(Opened("a"), Paid(other, "a", 10))
        await eventually(lambda: caught_up(accounts, here))
        [row] = await accounts.fetch("SELECT payload FROM skald_marks WHERE kind = 'process'")
        assert b'"total":111' in bytes(row["payload"]), bytes(row["payload"])
    assert overtaken == [2]
