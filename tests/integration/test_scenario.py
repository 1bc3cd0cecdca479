"""Given, when, then for one service: what it tells of handlers, compensations, queues and processes."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from skald import (
    NEVER,
    App,
    Attempt,
    BlockingTransaction,
    Command,
    CompensationFailed,
    Done,
    Event,
    Process,
    Retry,
    Service,
    Transaction,
    Unknown,
    workflow,
)
from skald.errors import ConfigurationError
from skald.testing.scenario import Scenario
from skald.workflows import Signal

THIS = Path(__file__).name


class OrderPlaced(Event, key="order"):
    order: str
    amount: int = 1


class OrderCancelled(Event, key="order"):
    order: str


class Charged(Event, key="order"):
    order: str
    amount: int


class Declined(Event, key="order"):
    order: str


class Refunded(Event, key="order"):
    order: str
    of: str


class PrintReceipt(Command, key="order"):
    order: str


class SendParcel(Command, key="order"):
    order: str


class Stranger(Event):
    text: str


class Gateway:
    def __init__(self, fails: int = 0, funds: int = 100) -> None:
        self.fails, self.funds = fails, funds
        self.keys: list[str] = []

    async def charge(self, key: str, amount: int) -> bool:
        self.keys.append(key)
        if self.fails:
            self.fails -= 1
            raise OSError("the gateway is away")
        return amount <= self.funds


payments = Service("payments", publishes=[PrintReceipt, SendParcel])


@payments.provide
def gateway() -> Gateway:
    raise AssertionError("the real one")


@payments.on(OrderPlaced, retry=Retry(immediate=2, delays=(1, 5)))
async def charge(event: OrderPlaced, gateway: Gateway, attempt: Attempt) -> Charged | Declined:
    if await gateway.charge(attempt.key, event.amount):
        return Charged(event.order, event.amount)
    return Declined(event.order)


@payments.on(OrderCancelled, compensates=charge, retry=NEVER)
async def refund(event: OrderCancelled, done: Done[Charged] | Unknown) -> Refunded:
    if isinstance(done, Unknown):
        raise LookupError(done.attempt)
    return Refunded(event.order, done.id)


@payments.queue(PrintReceipt)
async def print_receipt(command: PrintReceipt, gateway: Gateway) -> SendParcel:
    gateway.keys.append(f"printed {command.order}")
    return SendParcel(command.order)


def shop(gateway: Gateway | None = None) -> Scenario:
    return Scenario(payments, provide={Gateway: gateway or Gateway()})


# --- handlers ---------------------------------------------------------------------------------------------------------


def test_what_a_handler_publishes_with_what_is_provided_for_it() -> None:
    gateway = Gateway(funds=5)
    shop(gateway).when(OrderPlaced("o", 7)).then(Declined("o"))
    assert gateway.keys == ["payments:charge:o"]


def test_what_is_published_is_compared_as_it_is_by_its_class_or_with_anything_in_a_field() -> None:
    placed = shop().when(OrderPlaced("o", 7))
    placed.then(Charged("o", 7))
    placed.then(Charged)
    placed.then(Charged("o", ANY))


@pytest.mark.parametrize("order", [1, -1])
def test_members_of_a_set_make_way_for_each_other(order: int) -> None:
    """The first event fits both, and the second one only one of them."""

    def of(*members: Any) -> Any:  # a set with an order
        return dict.fromkeys(members[::order]).keys()

    placed = shop(Gateway(funds=7)).when(OrderPlaced("o", 7), OrderPlaced("p", 8))
    placed.then(of(Charged, Event))
    placed.then(of(Declined("p"), Charged))
    for other in (of(Charged, Event, Declined), of(Charged, Refunded), of(Declined, Declined("p")), of(Charged)):
        with pytest.raises(AssertionError, match="published"):
            placed.then(other)


def test_attempts_at_once_and_later_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    shop(Gateway(fails=1)).when(OrderPlaced("o", 7)).then(Charged("o", 7), raised=OSError)
    away = OSError("the gateway is away")
    shop(Gateway(fails=3)).when(OrderPlaced("o", 7)).then(raised=away)
    shop(Gateway(fails=3)).when(OrderPlaced("o", 7)).after(6).then(Charged("o", 7), raised=away)


def test_attempts_that_are_over_leave_the_message_parked() -> None:
    shop(Gateway(fails=9)).when(OrderPlaced("o")).after(timedelta(minutes=1)).then(raised=OSError, parked="charge")


def test_a_queue_and_a_command_to_a_service_that_is_not_there() -> None:
    gateway = Gateway()
    shop(gateway).when(PrintReceipt("o")).then(SendParcel("o"))
    assert gateway.keys == ["printed o"]


class Reminded(Event, key="order"):
    order: str


reminders = Service("reminders", publishes=[PrintReceipt, Charged])


@reminders.on(OrderPlaced, once_by="order")
def remember(event: OrderPlaced, tx: BlockingTransaction) -> Declined:
    tx.publish(PrintReceipt(event.order), delay=60)
    tx.publish(Charged(event.order, event.amount))
    return Declined(event.order)


@reminders.on(Charged)
async def listen_to_oneself(event: Charged) -> None: ...


@reminders.queue(PrintReceipt)
async def remind(command: PrintReceipt) -> Reminded:
    return Reminded(command.order)


def test_a_sync_handler_a_delayed_command_and_a_fact_that_comes_twice() -> None:
    placed = Scenario(reminders).when(OrderPlaced("o"), OrderPlaced("o"))
    first = [Charged("o", 1), Declined("o"), PrintReceipt("o")]
    placed.then(*first)
    placed.then({Declined("o"), Charged("o", 1)}, PrintReceipt)
    placed.after(59).then(*first)
    placed.after(60).then(*first, Reminded("o"))
    Scenario(reminders).when(Charged("o", 1)).then()


# --- compensations ----------------------------------------------------------------------------------------------------


def test_what_was_done_is_undone_once() -> None:
    charged = shop().given(OrderPlaced("o", 7))
    charged.when(OrderCancelled("o")).then(Refunded("o", ANY), effects={"charge": "undone"})
    charged.when(OrderCancelled("o"), OrderCancelled("o")).then(Refunded)


def test_what_was_not_done_is_not_undone() -> None:
    declined = shop(Gateway(funds=5)).given(OrderPlaced("o", 7))
    declined.when(OrderCancelled("o")).then(effects={"charge": "done"})


def test_who_comes_behind_the_tombstone_is_refused() -> None:
    shop().when(OrderCancelled("o")).then(effects={"charge": "cancelled"})
    late = shop().given(OrderCancelled("o")).when(OrderPlaced("o"))
    late.then(effects={"charge": "cancelled"}, refused="charge")


def test_what_nobody_knows_and_a_compensation_that_fails() -> None:
    tried = shop(Gateway(fails=2)).given(OrderPlaced("o"))
    told = CompensationFailed("payments", "refund", "charge", "o", "LookupError", ANY)
    tried.when(OrderCancelled("o")).then(
        told,
        raised=[OSError, LookupError("payments:charge:o")],
        parked="refund",
        effects={"charge": "unknown"},
        refused="charge",
    )


def test_effects_of_several_keys_are_told_apart() -> None:
    two = shop().given(OrderPlaced("a"), OrderPlaced("b"))
    two.when(OrderCancelled("a")).then(Refunded, effects={"charge a": "undone", "charge b": "done"})


# --- processes and rows -----------------------------------------------------------------------------------------------


class Paid(Event, key="payment"):
    payment: str
    order: str


class Confirmed(Event, key="order"):
    order: str


class Expired(Event, key="order"):
    order: str


class Checkout(Process):
    order: str
    paid: bool = False
    step: str = "waiting"


def sales(tmp_path: Path, not_found: Any = "ignore") -> Service:
    (tmp_path / "0001_sales.sql").write_text("CREATE TABLE sales (id TEXT PRIMARY KEY, state TEXT NOT NULL);")
    found = Service("sales", migrations=tmp_path, publishes=[OrderPlaced])
    checkout = found.process(Checkout, by="order", not_found=not_found)

    @checkout.starts(OrderPlaced)
    async def placed(state: Checkout, event: OrderPlaced, tx: Transaction) -> None:
        await tx.execute("INSERT INTO sales (id, state) VALUES (:id, 'open')", id=event.order)
        state.timeout(1800, "patience")

    @checkout.on(Paid, retry=NEVER)
    def paid(state: Checkout, event: Paid) -> None:
        state.paid, state.step = True, "paid"
        state.cancel("patience")
        state.timeout(60, "confirm")

    @checkout.on_timeout("confirm")
    async def confirm(state: Checkout, tx: Transaction) -> Confirmed:
        await tx.execute("UPDATE sales SET state = 'sold' WHERE id = :id", id=state.order)
        state.end()
        return Confirmed(state.order)

    @checkout.on_timeout("patience")
    def too_late(state: Checkout) -> Expired:
        state.end()
        return Expired(state.order)

    return found


ROWS = "SELECT id, state FROM sales"


def test_a_process_its_state_its_rows_and_its_timeouts(tmp_path: Path) -> None:
    started = Scenario(sales(tmp_path)).given(OrderPlaced("o"))
    started.after(0).then(state=Checkout("o"), timeouts={"patience": 1800}, rows={ROWS: [("o", "open")]})
    started.after(timedelta(hours=1)).then(Expired("o"), state=Checkout("o"), ended=True, timeouts={})
    paid = started.when(Paid("p", "o"))
    paid.then(state=Checkout("o", True, "paid"), timeouts={"confirm": 60})
    paid.after(60).then(
        Confirmed("o"), state=Checkout("o", True, "paid"), ended=True, rows={"SELECT state FROM sales": ["sold"]}
    )


def test_a_process_whose_state_is_given(tmp_path: Path) -> None:
    waiting = Scenario(sales(tmp_path)).given("INSERT INTO sales (id, state) VALUES ('o', 'open')", Checkout("o"))
    waiting.when(Paid("p", "o")).after(60).then(Confirmed("o"), rows={ROWS: [("o", "sold")]})
    with pytest.raises(
        ConfigurationError, match=rf"{THIS}:\d+: Checkout\(.*\) cannot be given: what came before it has"
    ):
        waiting.given(Checkout("o")).after(60).then()


def test_a_process_that_is_not_found(tmp_path: Path) -> None:
    Scenario(sales(tmp_path)).when(Paid("p", "o")).then()
    Scenario(sales(tmp_path, "park")).when(Paid("p", "o")).then(raised=Exception, parked="Checkout.paid")


def test_functions_are_called_while_the_service_is_connected(tmp_path: Path) -> None:
    service = sales(tmp_path)

    async def order() -> None:
        await service.publish(OrderPlaced("o"))

    Scenario(service).when(order).then(OrderPlaced("o"), state=Checkout("o"))


def test_the_service_is_as_it_was_afterwards() -> None:
    providers, routes = payments.providers, payments.calls.routes
    shop().when(OrderPlaced("o")).then(Charged)
    assert payments.providers is providers
    assert payments.calls.routes is routes
    with pytest.raises(ConfigurationError, match="SendParcel is handled by no service"):
        _ = App(payments).topology


# --- workflows --------------------------------------------------------------------------------------------------------

paid_for = Signal("paid for", Charged)


@workflow
async def deliver(order: str, amount: int) -> None:
    raise AssertionError("it is not run")


deliveries = Service("deliveries", workflows=[deliver])


@deliveries.on(OrderPlaced)
async def begin(event: OrderPlaced, tx: Transaction) -> None:
    await tx.start(deliver, event.order, event.amount, id=f"of {event.order}")


@deliveries.on(OrderCancelled)
async def begin_at_once(event: OrderCancelled) -> None:
    await deliver.start(event.order, 0, id=f"of {event.order}")


@deliveries.on(Charged)
async def tell(event: Charged, tx: Transaction) -> None:
    await tx.signal(paid_for, event, id=f"of {event.order}")


def test_workflows_are_started_and_signalled_and_not_run() -> None:
    placed = Scenario(deliveries).given(OrderPlaced("old")).when(OrderPlaced("o", 7))
    placed.then(started=[(deliver, "of o", "o", 7)])
    placed.when(Charged("o", 7), OrderCancelled("x")).after(60).then(
        started=[(deliver, "of o", "o", 7), (deliver, "of x", "x", 0)],
        signalled=[(paid_for, "of o", Charged("o", 7))],
    )
    assert "started:\n  + ('deliver', 'of o', 'o', 7)\n" in told(placed.then)
    wrong = told(lambda: placed.then(started=[(deliver, ANY, "o", 7)], signalled=[(paid_for, "of o", ANY)]))
    assert "signalled:\n  - ('paid for', 'of o', <ANY>)\n" in wrong


# --- what it says when something else comes ---------------------------------------------------------------------------


def told(then: Callable[[], None]) -> str:
    with pytest.raises(AssertionError) as failure:
        then()
    return str(failure.value)


def test_a_difference_is_told_as_a_diff_with_the_line_and_what_has_happened() -> None:
    text = told(lambda: shop(Gateway(funds=5)).given(OrderPlaced("x")).when(OrderPlaced("o", 7)).then(Charged("o", 7)))
    assert re.match(rf".*{THIS}:\d+: the scenario of payments came to something else\n", text)
    assert "published:\n  - Charged(order='o', amount=7)\n  + Declined(order='o')\n" in text
    assert "after 0 s  given OrderPlaced(order='x', amount=1)\n" in text
    assert text.endswith("after 0 s  when OrderPlaced(order='o', amount=7)")


def test_an_error_in_what_is_given_is_told_too() -> None:
    text = told(lambda: shop(Gateway(fails=9)).given(OrderPlaced("o")).when(OrderCancelled("x")).then())
    assert "raised:\n  + OSError: the gateway is away\n" in text


def test_an_error_that_nobody_expected_is_the_cause() -> None:
    with pytest.raises(AssertionError, match=r"raised:\n  \+ OSError: the gateway is away\n") as failure:
        shop(Gateway(fails=1)).when(OrderPlaced("o")).then(Charged)
    assert isinstance(failure.value.__cause__, OSError)
    assert "charge raised OSError: the gateway is away (attempt 1)" in str(failure.value)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({"raised": OSError}, "raised:\n  - OSError(…)\n"),
        ({"parked": "charge"}, "parked:\n  - 'charge'\n"),
        ({"refused": "charge"}, "refused:\n  - 'charge'\n"),
        ({"effects": {"charge": "undone"}}, "effects:\n  - charge: 'undone'\n"),
        ({"rows": {"SELECT 1 AS one": [2]}}, "rows of SELECT 1 AS one:\n  - 2\n  + 1\n"),
    ],
    ids=["raised", "parked", "refused", "effects", "rows"],
)
def test_each_expectation_can_fail(expected: dict[str, Any], text: str) -> None:
    assert text in told(lambda: shop().when(OrderPlaced("o", 7)).then(Charged, **expected))


def test_the_expectations_of_a_process_can_fail(tmp_path: Path) -> None:
    placed = Scenario(sales(tmp_path)).when(OrderPlaced("o"))
    assert "-  Checkout(order='o', paid=True".replace("-  ", "- ") in told(
        lambda: placed.then(state=Checkout("o", True))
    )
    assert "- 'has ended'\n  + 'runs'" in told(lambda: placed.then(state=Checkout("o"), ended=True))
    wrong = told(lambda: placed.then(state=Checkout("o"), timeouts={"patience": 5}))
    assert "- patience: 5\n  + patience: 1800.0" in wrong
    assert "- Checkout(order='x'" in told(lambda: placed.then(state=Checkout("x")))


# --- what cannot be meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (lambda: shop().when(Stranger("?")), "payments does not handle Stranger; it handles: OrderCancelled, "),
        (lambda: shop().when(OrderPlaced), "cannot happen to payments: use a message, SQL, or a function"),
        (lambda: shop().when(OrderPlaced("o")).given(OrderPlaced("o")), r"move it before when\(\)"),
        (lambda: shop().given(Checkout("o")), "payments has no process whose state is Checkout"),
        (lambda: shop().given(OrderPlaced("o")).then(), r"nothing happens: say when\(…\) or after\(…\)"),
        (lambda: shop().after(-1), "the clock only goes forward"),
        (lambda: shop().after(1).then(effects={"refund": "done"}), "no handler of this name is compensated"),
        (lambda: shop().after(1).then(timeouts={}), "timeouts= are those of a process: say its state=, too"),
        (lambda: shop().after(1).then(ended=True), "ended= and timeouts= are those of a process: say its state=, too"),
        (lambda: Scenario(payments, provide={str: ""}), "no handler of payments asks for that; they ask for Gateway"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_line_and_what_to_do(misuse: Callable[[], Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf".*{THIS}:\d+: .*{text}"):
        misuse()


async def test_a_test_with_a_loop_is_told_to_have_none() -> None:
    with pytest.raises(ConfigurationError, match=rf"{THIS}:\d+: .*make this test a plain 'def', and no 'async def'"):
        shop().when(OrderPlaced("o")).then()
