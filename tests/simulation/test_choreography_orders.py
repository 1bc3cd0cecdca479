"""Any order of charge and refund, with duplicates, failures, parking, redrive: done and undone once, or never done."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from skald import App, Attempt, Done, Event, Retry, Service, Transaction, Unknown
from skald.errors import StoreUnavailable
from tests.simulation.flaky import FlakyApp
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    caught_up,
    deliveries,
    effect,
    effects,
    eventually,
    playing,
    redrive,
)


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
    of: str


class Script:
    """What happens to one order: its messages in order, and how often each handler fails before it does not."""

    def __init__(self, messages: list[str], charge_fails: int, refund_fails: int, slow: bool) -> None:
        self.messages, self.slow = messages, slow
        self.left = {"charge": charge_fails, "refund": refund_fails}

    def __repr__(self) -> str:
        return f"Script({self.messages}, {self.left}, slow={self.slow})"


scripts = st.builds(
    Script,
    messages=st.lists(st.sampled_from(["place", "place", "cancel", "reject"]), min_size=1, max_size=5),
    charge_fails=st.sampled_from([0, 0, 1, 2, 4]),
    refund_fails=st.sampled_from([0, 0, 1, 3]),
    slow=st.sampled_from([False, False, False, True]),
)
histories = st.lists(scripts, min_size=5, max_size=25)
RETRY = Retry(immediate=1, delays=(0.01,))
"""Parked after two attempts."""


class World:
    """The services, and what the gateway outside has been asked, by idempotency key."""

    def __init__(self, url: str, history: list[Script], tx: bool, trouble: Random | None = None) -> None:
        self.history = {f"o{n}": script for n, script in enumerate(history)}
        self.asked: dict[str, Counter[str]] = {"charge": Counter(), "refund": Counter()}
        self.tx = tx
        self.orders = Service("orders", publishes=[Placed, Cancelled])
        self.stock = Service("stock", publishes=[Rejected])
        self.payments = Service("payments", migrations=MIGRATIONS)
        services = (self.orders, self.stock, self.payments)
        self.app = App(*services, store=url, settings=QUICK)
        self.trouble = trouble is not None
        if trouble is not None:
            self.app = FlakyApp(*services, store=url, settings=QUICK, chance=trouble, flaky=["payments"])
        if tx:

            @self.payments.on(Placed, retry=RETRY)
            async def charge(event: Placed, tx: Transaction) -> Charged:
                await effect(tx, "charge", str(uuid4()), event.order, 0)
                return await self.charge(event.order, "")

            @self.payments.on(Rejected, Cancelled, compensates=charge, retry=RETRY)
            async def refund(event: Rejected | Cancelled, tx: Transaction, done: Done[Charged]) -> Refunded:
                await effect(tx, "refund", str(uuid4()), event.order, 0)
                return await self.refund(event.order, "", done)
        elif self.trouble:

            @self.payments.on(Placed, retry=RETRY, name="charge")
            async def known_charge(event: Placed, attempt: Attempt) -> Charged:
                return await self.charge(event.order, attempt.key)

            @self.payments.on(Rejected, Cancelled, compensates=known_charge, retry=RETRY, name="refund")
            async def looking_up(
                event: Rejected | Cancelled, done: Done[Charged] | Unknown, attempt: Attempt
            ) -> Refunded | None:
                if done.attempt not in self.asked["charge"]:
                    assert isinstance(done, Unknown)
                    return None
                return await self.refund(event.order, attempt.key, done)
        else:

            @self.payments.on(Placed, retry=RETRY, name="charge")
            async def plain_charge(event: Placed, attempt: Attempt) -> Charged:
                return await self.charge(event.order, attempt.key)

            @self.payments.on(Rejected, Cancelled, compensates=plain_charge, retry=RETRY, name="refund")
            async def plain_refund(event: Rejected | Cancelled, done: Done[Charged], attempt: Attempt) -> Refunded:
                return await self.refund(event.order, attempt.key, done)

    async def charge(self, order: str, key: str) -> Charged:
        if self.history[order].slow and not self.tx:
            await asyncio.sleep(0.12)  # sleep: a slow handler
        self.fail("charge", order)
        self.asked["charge"][key] += 1
        return Charged(order)

    async def refund(self, order: str, key: str, done: Done[Charged] | Unknown) -> Refunded:
        self.fail("refund", order)
        self.asked["refund"][key] += 1
        if isinstance(done, Unknown):
            return Refunded(order, "")
        assert done.message == Charged(order)
        return Refunded(order, done.id)

    def fail(self, handler: str, order: str) -> None:
        left = self.history[order].left
        if left[handler]:
            left[handler] -= 1
            raise ValueError(f"{handler} fails")

    async def play(self) -> None:
        async with playing(self.app):
            if isinstance(self.app, FlakyApp):
                self.app.fail(0.1)
            for turn in range(max(len(script.messages) for script in self.history.values())):
                now = [(key, s.messages[turn]) for key, s in self.history.items() if turn < len(s.messages)]
                kinds = {"place": Placed, "cancel": Cancelled}
                await asyncio.gather(
                    self.orders.publish(*(kinds[what](key) for key, what in now if what in kinds)),
                    self.stock.publish(*(Rejected(key) for key, what in now if what == "reject")),
                )
            if isinstance(self.app, FlakyApp):
                await eventually(self.has_failed)
                self.app.fail(0)
            for origin in (self.orders, self.stock):
                await eventually(lambda origin=origin: caught_up(self.payments, origin))
            await eventually(self.nothing_left)
            await self.check()

    async def nothing_left(self) -> bool:
        rows = await deliveries(self.payments)
        if any(row["state"] == "parked" for row in rows):
            await redrive(self.payments)
        assert not rows, f"left are {rows}"
        return True

    async def has_failed(self) -> bool:
        assert isinstance(self.app, FlakyApp)
        try:
            settled = all([await caught_up(self.payments, origin) for origin in (self.orders, self.stock)])
            return self.app.failures > 10 or (settled and not await deliveries(self.payments))
        except StoreUnavailable:
            return False

    async def check(self) -> None:
        log = await self.payments.store.log.read(0, 10_000)
        published = Counter((record.type, record.key) for record in log)
        first = {(record.type, record.key): record.position for record in reversed(log)}
        rows = await self.payments.fetch("SELECT key, state FROM skald_marks WHERE kind = 'effect'")
        states = {row["key"]: row["state"] for row in rows}
        written = {
            handler: Counter(row["key"] for row in await effects(self.payments, handler))
            for handler in ("charge", "refund")
        }
        for key, script in self.history.items():
            what = f"{key}: {script}, {states.get(key)}"
            placed, undone = "place" in script.messages, {"cancel", "reject"} & {*script.messages}
            charged, refunded = published["Charged", key], published["Refunded", key]
            assert charged <= 1, what
            if self.trouble and not self.tx:
                outside = [f"payments:{handler}:{key}" in self.asked[handler] for handler in ("charge", "refund")]
                assert refunded == outside[1] == (outside[0] and bool(undone)), what
                assert charged or undone or not placed, what
                continue
            assert refunded == (charged if undone else 0), what
            if placed and not undone:
                assert charged == 1, what
            if refunded:
                assert first["Charged", key] < first["Refunded", key], what
            if self.tx:
                assert (written["charge"][key], written["refund"][key]) == (charged, refunded), what
            assert states.get(key) == _state(placed, bool(undone), charged), what
        for handler, times in self.asked.items() if not (self.tx or self.trouble) else ():
            assert set(times) == {f"payments:{handler}:{k}" for k in self.history if published[EVENTS[handler], k]}


EVENTS = {"charge": "Charged", "refund": "Refunded"}


def _state(placed: bool, undone: bool, charged: int) -> str | None:
    if charged:
        return "undone" if undone else "done"
    return "cancelled" if undone else None


def quickly(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],
    )


def on_sqlite(folder: pytest.TempPathFactory, history: list[Script], tx: bool, trouble: Random | None = None) -> None:
    asyncio.run(World(f"sqlite:{folder.mktemp('orders')}", history, tx, trouble).play())


def on_postgres(server: str, history: list[Script], tx: bool, trouble: Random | None = None) -> None:
    name = f"skald_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            asyncio.run(World(urlsplit(server)._replace(path=f"/{name}").geturl(), history, tx, trouble).play())
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@quickly(12)
@given(history=histories, tx=st.booleans())
def test_on_sqlite(tmp_path_factory: pytest.TempPathFactory, history: list[Script], tx: bool) -> None:
    on_sqlite(tmp_path_factory, history, tx)


@quickly(5)
@given(history=histories, tx=st.booleans())
def test_on_postgres(postgres_server: str, history: list[Script], tx: bool) -> None:
    on_postgres(postgres_server, history, tx)


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skald.messaging.consumer.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("skald.messaging.deliverer.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("skald.messaging.redelivery.PAUSE", 50_000)


randoms = st.randoms(use_true_random=False)


@pytest.mark.usefixtures("_short_pauses")
@quickly(5)
@given(history=histories, tx=st.booleans(), chance=randoms)
def test_with_a_database_that_fails_on_sqlite(
    tmp_path_factory: pytest.TempPathFactory, history: list[Script], tx: bool, chance: Random
) -> None:
    on_sqlite(tmp_path_factory, history, tx, Random(chance.random()))


@pytest.mark.usefixtures("_short_pauses")
@quickly(3)
@given(history=histories, tx=st.booleans(), chance=randoms)
def test_with_a_database_that_fails_on_postgres(
    postgres_server: str, history: list[Script], tx: bool, chance: Random
) -> None:
    on_postgres(postgres_server, history, tx, Random(chance.random()))


@pytest.mark.sweep
@quickly(150)
@given(history=histories, tx=st.booleans())
def test_many_on_sqlite(tmp_path_factory: pytest.TempPathFactory, history: list[Script], tx: bool) -> None:
    on_sqlite(tmp_path_factory, history, tx)


@pytest.mark.sweep
@quickly(30)
@given(history=histories, tx=st.booleans())
def test_many_on_postgres(postgres_server: str, history: list[Script], tx: bool) -> None:
    on_postgres(postgres_server, history, tx)


@pytest.mark.sweep
@pytest.mark.usefixtures("_short_pauses")
@quickly(40)
@given(history=histories, tx=st.booleans(), chance=randoms)
def test_many_with_a_database_that_fails_on_sqlite(
    tmp_path_factory: pytest.TempPathFactory, history: list[Script], tx: bool, chance: Random
) -> None:
    on_sqlite(tmp_path_factory, history, tx, Random(chance.random()))


@pytest.mark.sweep
@pytest.mark.usefixtures("_short_pauses")
@quickly(20)
@given(history=histories, tx=st.booleans(), chance=randoms)
def test_many_with_a_database_that_fails_on_postgres(
    postgres_server: str, history: list[Script], tx: bool, chance: Random
) -> None:
    on_postgres(postgres_server, history, tx, Random(chance.random()))
