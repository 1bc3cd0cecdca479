"""Handlers with a transaction: their rows, their messages and the cursor commit together; sync ones in threads."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from skald import NEVER, App, BlockingTransaction, Envelope, Retry, RuntimeSettings, Service, Transaction
from tests.simulation.stage import (
    MIGRATIONS,
    QUICK,
    Failed,
    Made,
    Placed,
    Seen,
    caught_up,
    check_effects,
    deliveries,
    effect,
    effects,
    eventually,
    no_deliveries,
    playing,
)


def two_services() -> tuple[Service, Service]:
    return Service("source", publishes=[Placed]), Service("sink", migrations=MIGRATIONS)


async def test_what_a_failed_attempt_wrote_and_published_is_undone(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[Made] = Seen()
    tries = 0

    @sink.on(Placed, retry=Retry(immediate=3, delays=()))
    async def handle(event: Placed, tx: Transaction) -> Made:
        nonlocal tries
        tries += 1
        await effect(tx, "tx", str(tries), event.key, event.n)
        tx.publish(Made(event.key, 100 + tries))
        if tries < 3:
            raise ValueError("undo")
        return Made(event.key, event.n)

    @source.on(Made)
    async def made(event: Made) -> None:
        seen.note(event)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Placed("a", 0))
        await seen.count(2)
        await eventually(lambda: caught_up(source, sink))
        rows = await effects(sink, "tx")
    assert [row["id"] for row in rows] == [str(tries)]
    assert [event.n for event in seen.items] == [100 + tries, 0]


async def test_one_bad_message_of_a_batch_is_found_and_the_others_commit(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[int] = Seen()

    @sink.on(Placed, retry=NEVER)
    async def handle(event: Placed, tx: Transaction) -> Made:
        await effect(tx, "tx", f"{event.key}{event.n}", event.key, event.n)
        if event.key == "bad":
            raise ValueError("bad")
        return Made(event.key, event.n)

    @source.on(Made)
    async def made(event: Made) -> None:
        seen.note(event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Placed("bad" if n == 30 else f"k{n % 5}", n // 5) for n in range(70)))
        await seen.count(69)
        await eventually(lambda: caught_up(source, sink))
        (row,) = await deliveries(sink)
        assert (row["state"], row["attempts"]) == ("parked", 1)
        assert len(await effects(sink, "tx")) == 69
        await source.publish(Placed("k0", 14))
        await seen.count(70)
    assert len(seen.items) == 70


async def test_a_transaction_handler_behind_a_delayed_one_of_its_key_waits(store_url: str) -> None:
    source, sink = two_services()
    tries = 0

    @sink.on(Placed, retry=Retry(immediate=1, delays=(0.02,) * 5))
    async def handle(event: Placed, tx: Transaction) -> None:
        nonlocal tries
        await effect(tx, "tx", str(event.n), event.key, event.n)
        tries += event.n == 0
        if event.n == 0 and tries < 4:
            raise ValueError("not yet")

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Placed("a", n) for n in range(10)))
        await eventually(lambda: caught_up(sink, source))
        await eventually(lambda: no_deliveries(sink))
        check_effects(await effects(sink, "tx"), {"a": 10})


async def test_a_handler_that_fails_with_its_transaction_is_blamed_alone(store_url: str) -> None:
    """It breaks a rule of the database; its neighbour at the same message has done nothing wrong."""
    source, sink = two_services()

    @sink.on(Placed, retry=NEVER)
    async def breaks(event: Placed, tx: Transaction) -> None:
        await tx.execute("INSERT INTO no_such_table (id) VALUES (1)")

    @sink.on(Placed, retry=NEVER)
    async def fine(event: Placed, tx: Transaction) -> None:
        await effect(tx, "fine", str(event.n), event.key, event.n)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Placed("a", n) for n in range(3)))
        await eventually(lambda: caught_up(sink, source))
        rows = await deliveries(sink)
        check_effects(await effects(sink, "fine"), {"a": 3})
    assert [(row["handler"], row["state"]) for row in rows] == [
        ("breaks", "parked"),
        ("breaks", "waiting"),
        ("breaks", "waiting"),
    ]


@pytest.mark.parametrize("lease", [1.0, 5.0])
async def test_a_transaction_that_is_open_too_long_is_its_handlers_failure(store_url: str, lease: float) -> None:
    """SQLite bounds it at a second, to keep other writers waiting no longer; PostgreSQL ends one that idles a lease."""
    source, sink = two_services()
    too_long = store_url.startswith("sqlite") or lease == 1.0
    gate = threading.Event()

    @sink.on(Placed, retry=NEVER)
    def slow(event: Placed, tx: BlockingTransaction) -> None:
        tx.fetch("SELECT 1 AS one")
        if event.key == "slow":
            gate.wait(1.4)
        tx.fetch("SELECT 1 AS one")

    @sink.on(Placed, retry=NEVER)
    async def fine(event: Placed, tx: Transaction) -> None:
        await effect(tx, "fine", str(event.n), event.key, event.n)

    async with playing(App(source, sink, store=store_url, settings=RuntimeSettings(lease=lease))):
        await source.publish(Placed("slow", 0), Placed("quick", 0))
        await eventually(lambda: caught_up(sink, source))
        rows = await deliveries(sink)
        check_effects(await effects(sink, "fine"), {"slow": 1, "quick": 1})
    assert [(row["handler"], row["state"], row["attempts"]) for row in rows] == [("slow", "parked", 1)] * too_long


async def test_sync_handlers_run_in_threads_with_a_blocking_transaction(store_url: str) -> None:
    source, sink = two_services()
    seen: Seen[Made] = Seen()
    threads: set[int] = set()

    @sink.on(Placed)
    def plain(event: Placed) -> None:
        threads.add(threading.get_ident())

    @sink.on(Placed)
    def handle(event: Placed, tx: BlockingTransaction, envelope: Envelope) -> list[Made]:
        threads.add(threading.get_ident())
        before = tx.fetch_one("SELECT count(*) AS n FROM effects")
        assert before is not None
        sql = "INSERT INTO effects (id, handler, key, n, seq) VALUES (:id, 'sync', :key, :n, :n)"
        assert tx.execute(sql, id=envelope.id, key=event.key, n=event.n) == 1
        try:
            with tx.savepoint():
                tx.execute(sql, id="undone", key=event.key, n=event.n)
                raise LookupError
        except LookupError:
            pass
        assert tx.now() > 0
        tx.publish(Made(event.key, event.n))
        return [Made(event.key, 100 + before["n"])]

    @source.on(Made)
    async def made(event: Made) -> None:
        seen.note(event)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(*(Placed("a", n) for n in range(3)))
        await seen.count(6)
        check_effects(await effects(sink, "sync"), {"a": 3})
    assert threading.get_ident() not in threads
    assert [event.n for event in seen.items] == [0, 100, 1, 101, 2, 102]


class Gateway:
    def __init__(self, name: str) -> None:
        self.name = name


class Ledger:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway


async def test_dependencies_are_made_once_and_cleaned_up_in_reverse(store_url: str) -> None:
    source, sink = two_services()
    log: list[str] = []
    seen: Seen[str] = Seen()

    @sink.provide
    async def gateway() -> AsyncIterator[Gateway]:
        log.append("gateway up")
        yield Gateway("bank")
        log.append("gateway down")

    @sink.provide
    def ledger(gateway: Gateway) -> Iterator[Ledger]:
        log.append("ledger up")
        yield Ledger(gateway)
        log.append("ledger down")

    @sink.on(Placed)
    async def handle(event: Placed, ledger: Ledger, gateway: Gateway) -> None:
        assert ledger.gateway is gateway
        seen.note(gateway.name)

    @sink.on(Placed)
    def handle_sync(event: Placed, gateway: Gateway) -> None:
        seen.note(gateway.name)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Placed("a", 0), Placed("b", 0))
        await seen.count(4)
        assert log == ["gateway up", "ledger up"]
    assert log == ["gateway up", "ledger up", "ledger down", "gateway down"]


async def test_everything_published_carries_its_cause(store_url: str) -> None:
    """By return, through the transaction, and by ordinary code called from a handler, sync or async."""
    source, sink = two_services()
    first, caused = Seen[Envelope](), Seen[Envelope]()

    @sink.on(Placed)
    async def plain(event: Placed, envelope: Envelope) -> Made:
        first.note(envelope)
        await sink.publish(Failed(event.key, 1, "by ordinary code"))
        return Made(event.key, 2)

    @sink.on(Placed)
    async def with_transaction(event: Placed, tx: Transaction) -> Made:
        tx.publish(Failed(event.key, 3, "by tx"))
        return Made(event.key, 4)

    @sink.on(Placed)
    def in_thread(event: Placed, tx: BlockingTransaction) -> Failed:
        tx.publish(Failed(event.key, 5, "by tx in a thread"))
        return Failed(event.key, 6, "by return from a thread")

    @source.on(Made, Failed)
    async def on_caused(event: Made | Failed, envelope: Envelope) -> None:
        caused.note(envelope)

    async with playing(App(source, sink, store=store_url, settings=QUICK)):
        await source.publish(Placed("a", 0))
        await caused.count(6)
    (cause,) = first.items
    assert cause.correlation_id == cause.id
    for envelope in caused.items:
        assert (envelope.correlation_id, envelope.causation_id) == (cause.id, cause.id)
        parent = cause.record.traceparent
        assert parent is not None
        assert envelope.record.traceparent is not None
        assert envelope.record.traceparent[:36] == parent[:36]
        assert envelope.record.traceparent != parent
