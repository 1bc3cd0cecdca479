"""Transfers: each step fails in turn, overdrafts are refused under concurrency, and many random transfers run while
their processes are killed. At every moment, and at every position of the log, no cent is lost or made."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest

from examples.bank import messages
from examples.bank import transfer as transferring
from examples.bank.accounts import NotPossible, Standing, close_account, open_account, standing
from examples.bank.app import bank
from examples.bank.books import Books, WrongBooks
from examples.bank.messages import AccountOpened, FundsDebited, TransferInitiated
from examples.bank.transfer import Refused, Transfer, transfer
from skald import App, SagaCompensated
from skald.testing.failpoints import kill_at
from skald.testing.sagas import SagaScenario, each_step
from skald.testing.workflows import Lab, crash_everywhere
from tests.simulation.conftest import store_url  # noqa: F401
from tests.simulation.pipeline import Options
from tests.simulation.stage import QUICK, eventually, playing, seed
from tests.simulation.workers import Workers, workers

pytest_plugins = ["skald.testing.plugin"]
NewLab = Callable[..., AbstractAsyncContextManager[Lab]]

T1 = Transfer("t-1", "ada", "bob", 60)
OF_T1 = ["TransferInitiated", "FundsDebited", "FundsCredited", "TransferCompleted"]


async def opened(**balances: int) -> None:
    for account, balance in balances.items():
        await open_account(bank, account, balance)


async def told(id: str) -> list[str]:
    return [record.type for record in await bank.store.log.read(0, 10_000) if record.key == id]


async def row(id: str) -> tuple[str, str | None] | None:
    rows = await bank.fetch("SELECT state, reason FROM transfers WHERE id = :id", id=id)
    return (rows[0]["state"], rows[0]["reason"]) if rows else None


async def audit() -> Standing:
    """The books balance at every position of the log, and say what the tables say."""
    books, position = Books(), 0
    while records := await bank.store.log.read(position, 1_000):
        position = records[-1].position + 1
        for record in records:
            books.add(msgspec.json.decode(record.payload or b"", type=getattr(messages, record.type)))
    now = await standing(bank)
    assert books.balances == now.balances
    assert sum(books.in_flight.values()) == now.in_flight
    assert books.paid_in == now.total
    transfers = await bank.fetch("SELECT id, state FROM transfers")
    assert books.transfers == {one["id"]: one["state"] for one in transfers}
    return now


# --- one transfer -----------------------------------------------------------------------------------------------------


ADA = SagaScenario(transfer, bank).given(partial(opened, ada=100, bob=0))
ROWS, NOTICES = "SELECT state, reason FROM transfers", "SELECT account, text FROM notices ORDER BY account"


def test_a_transfer() -> None:
    done = ADA.when(T1).play()
    done.then(
        published=[getattr(messages, name) for name in OF_T1],
        rows={
            ROWS: [("COMPLETED", None)],
            NOTICES: [("ada", "60 were transferred to bob"), ("bob", "60 came from ada")],
        },
    )
    assert done.look(audit) == Standing({"ada": 40, "bob": 60}, 0)


def test_a_failure_at_any_step_before_the_credit_gives_the_money_back() -> None:
    """What the step wrote before it failed is undone by its transaction, what others wrote by the saga."""
    events: dict[str, list[type]] = {
        "initiate": [],
        "debit": [messages.TransferInitiated, messages.TransferFailed],
        "credit": [
            messages.TransferInitiated, messages.FundsDebited, messages.DebitReversed, messages.TransferFailed,
        ],
    }  # fmt: skip
    failing = []
    for failed in each_step(ADA.when(T1), Refused("not today"), lost=True):
        failing.append(failed.failing)
        told = failed.failing != "initiate"
        failed.then(
            failed=failed.failing,
            error=Refused("not today"),
            published=events[failed.failing],
            rows={
                ROWS: [("FAILED", "not today")] if told else [],
                NOTICES: [("ada", "60 to bob were not transferred: not today")] if told else [],
            },
        )
        assert failed.look(audit) == Standing({"ada": 100, "bob": 0}, 0)
    assert failing == [*events], "what comes after the credit is tried to the end"


async def test_what_is_left_after_the_credit_is_tried_until_it_is_done(workflow_lab: NewLab) -> None:
    async with workflow_lab(bank) as lab:
        await opened(ada=100, bob=0)
        complete = transferring.complete
        lab.mock(complete, *(OSError("the disk is full") for _ in range(30)), complete.function)
        handle = await transfer.start(T1, id="t-1")
        await lab.settle()
        assert await row("t-1") == ("CREDITED", None)
        await handle.cancel("too late")
        await lab.result(handle)
        assert await audit() == Standing({"ada": 40, "bob": 60}, 0)
        assert await told("t-1") == OF_T1


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (Transfer("t-1", "ada", "bob", 0), "0 from ada to bob: more than nothing, to somebody else"),
        (Transfer("t-1", "ada", "ada", 5), "5 from ada to ada: more than nothing, to somebody else"),
        (Transfer("t-1", "ada", "bob", 101), "ada does not have 101"),
        (Transfer("t-1", "eve", "bob", 1), "eve does not have 1"),
        (Transfer("t-1", "ada", "eve", 1), "eve takes no money"),
        (Transfer("t-1", "ada", "gone", 1), "gone takes no money"),
    ],
)
def test_what_the_bank_refuses_moves_nothing(order: Transfer, reason: str) -> None:
    gone = ADA.given(partial(opened, gone=0), partial(close_account, bank, "gone"))
    refused = gone.when(order).play()
    refused.then(error=Refused(reason))
    assert refused.look(audit).balances == {"ada": 100, "bob": 0, "gone": 0}


async def test_an_account_is_not_closed_while_money_may_come_back_to_it(workflow_lab: NewLab) -> None:
    async def fails(order: Transfer) -> None:
        raise OSError("the disk is full")

    async with workflow_lab(bank) as lab:
        await opened(ada=60, bob=0)
        lab.mock(transferring.credit, fails)
        handle = await transfer.start(T1, id="t-1")
        await lab.settle()
        assert await standing(bank) == Standing({"ada": 0, "bob": 0}, 60)
        with pytest.raises(NotPossible, match="'ada' has 0 and 1 transfers in flight"):
            await close_account(bank, "ada")
        with pytest.raises(NotPossible, match="there is an account 'ada' already"):
            await open_account(bank, "ada", 5)
        with pytest.raises(SagaCompensated, match="the disk is full"):
            await lab.result(handle)
        assert await audit() == Standing({"ada": 60, "bob": 0}, 0)


@pytest.mark.parametrize("target", ["bob", "eve"], ids=["credited", "reversed"])
async def test_a_crash_at_every_commit(target: str) -> None:
    async def scenario(lab: Lab) -> tuple[Standing, list[str]]:
        if not (await standing(bank)).balances:
            await opened(ada=100, bob=0)
        handle = await transfer.start(Transfer("t-1", "ada", target, 60), id="t-1")
        try:
            await lab.result(handle)
        except SagaCompensated as failure:
            assert failure.step == "credit"  # noqa: PT017 (it may also go well)
        return await audit(), await told("t-1")

    results = await crash_everywhere(scenario, bank)
    reversed_ = ["TransferInitiated", "FundsDebited", "DebitReversed", "TransferFailed"]
    expected = ((40, 60), OF_T1) if target == "bob" else ((100, 0), reversed_)
    assert len(results) > 15
    for found, events in results:
        assert (found, events) == (Standing({"ada": expected[0][0], "bob": expected[0][1]}, 0), expected[1])


def test_the_books_find_what_cannot_be() -> None:
    books = Books()
    books.add(AccountOpened("ada", 50))
    books.add(TransferInitiated("t-1", "ada", "bob", 60))
    with pytest.raises(WrongBooks, match="ada is at -10"):
        books.add(FundsDebited("t-1", "ada", 60))
    with pytest.raises(WrongBooks, match="of one that is DEBITED"):
        books.add(FundsDebited("t-1", "ada", 60))


# --- many at once, on both stores -------------------------------------------------------------------------------------


async def test_an_overdraft_is_refused_under_concurrency(store_url: str) -> None:  # noqa: F811
    async with playing(App(bank, store=store_url, settings=QUICK)):
        await opened(ada=100, bob=0, eve=0)
        orders = [Transfer(f"t-{n}", "ada", "bob" if n % 2 else "eve", 30) for n in range(20)]
        results = await asyncio.gather(*(transfer.run(one, id=one.id) for one in orders), return_exceptions=True)
        refused = [one for one in results if one is not None]
        assert all(isinstance(one, SagaCompensated) and one.step == "debit" for one in refused)
        assert len(refused) == 17
        assert (await audit()).balances["ada"] == 10


PLACES = {
    "workflows.claimed": 3, "commit.before": 30, "commit.after": 30, "step.before": 30, "step.after": 30,
    "step.committing": 30, "step.committed": 30,
}  # fmt: skip
"""At which a process dies, when it comes there for a time between the first and this one."""
NAMES = [f"a-{n}" for n in range(8)]
LEFT = "SELECT id, state, owner, wake_at, deaths, outcome FROM skald_workflows WHERE ended_at IS NULL LIMIT 10"


class Storm:
    """Random transfers, some of which cannot end well, on two processes that are killed again and again."""

    def __init__(self, url: str, transfers: int, kills: int) -> None:
        self._chance, self._kills, self.died = random.Random(seed()), kills, 0
        self.app = App(bank, store=url)
        self.orders = [self._order(f"t-{n}") for n in range(transfers)]

    def _order(self, id: str) -> Transfer:
        chance = self._chance
        source, target = chance.choice(NAMES), chance.choice([*NAMES, "nobody"])
        return Transfer(id, source, target, chance.randint(0, 400))

    def _armed(self) -> dict[str, str]:
        if self.died >= self._kills:
            return {}
        place, most = self._chance.choice(list(PLACES.items()))
        return dict(kill_at(place, self._chance.randint(1, most)))

    async def rage(self, crew: Workers) -> None:
        async with self.app.connect():
            await opened(**{name: self._chance.randint(0, 5_000) for name in NAMES})
            total = (await standing(bank)).total
            for _ in range(2):
                crew.start("bank", environment=self._armed())
            left = iter(self.orders)
            customers = asyncio.gather(*(customer(left) for _ in range(25)))

            async def is_over() -> bool:
                self.died += crew.restart_the_dead(self._armed())
                now = await standing(bank)
                assert now.total == total, now
                return customers.done()

            try:
                await eventually(is_over)
            except AssertionError as error:
                raise AssertionError(f"{error}\nleft are {await bank.fetch(LEFT)}") from None
            await customers
            found = await audit()
            assert (found.total, found.in_flight) == (total, 0)
            await self._check_ends()

    async def _check_ends(self) -> None:
        ends = {row["id"]: row["state"] for row in await bank.fetch("SELECT id, state FROM transfers")}
        states = {row["saga_id"]: row["status"] for row in await bank.fetch("SELECT saga_id, status FROM saga_state")}
        told = Counter(row["transfer"] for row in await bank.fetch("SELECT transfer FROM notices"))
        for one in self.orders:
            well = ends.get(one.id) == "COMPLETED"
            assert states[one.id] == ("COMPLETED" if well else "COMPENSATED")
            assert ends.get(one.id) in (("COMPLETED", "FAILED") if _makes_sense(one) else (None,))
            assert not (well and one.target == "nobody")
            assert told[one.id] == (2 if well else 1 if one.id in ends else 0)
        print(f"{self.died} have died; {dict(Counter(ends.values()))}")
        assert self.died >= self._kills // 2


async def customer(orders: Iterator[Transfer]) -> None:
    """Asks for the next one when the last one is settled, one way or the other."""
    for one in orders:
        with suppress(SagaCompensated):
            await transfer.run(one, id=one.id)


def _makes_sense(order: Transfer) -> bool:
    return order.amount > 0 and order.source != order.target


@pytest.mark.parametrize(
    ("transfers", "kills"),
    [
        (150, 6),
        pytest.param(1_500, 60, marks=pytest.mark.sweep),
        pytest.param(10_000, 200, marks=pytest.mark.full),
    ],
)
async def test_money_is_neither_lost_nor_made_while_processes_are_killed(
    store_url: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transfers: int,
    kills: int,
) -> None:
    monkeypatch.setattr("tests.simulation.stage.PATIENCE", 60.0 + 4.0 * kills)
    storm = Storm(store_url, transfers, kills)
    await storm.app.migrate()
    with workers(tmp_path, store_url, Options(), "examples.bank.app:app") as crew:
        await storm.rage(crew)
