"""The state of a process outside of a database: what starts it, its timeouts, and what its functions may look like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skald import App, Event, Process, Service
from skald.errors import ConfigurationError, UnreadableMessage
from skald.messaging.processes import Definition, Kept, Opened, TimeoutDue, reopened, started


class Placed(Event, key="order"):
    order: str
    total: int = 0


class Paid(Event, key="payment"):
    payment: str


class Checkout(Process):
    order: str
    total: int
    paid: bool = False
    step: str = "waiting"


class Other(Process):
    order: int


class Wrong(Process):
    end: str = ""  # type: ignore[assignment]


def definition() -> Definition:
    return Definition("Checkout", Checkout, {"patience": "Checkout.too_late", "reminder": "Checkout.remind"})


def again(opened: Opened) -> Opened:
    return reopened(definition(), opened.kept())


def test_it_starts_with_the_fields_of_the_message() -> None:
    opened = started(definition(), Placed("o", 7))
    state = opened.state
    assert isinstance(state, Checkout)
    assert (state.order, state.total, state.paid, opened.step) == ("o", 7, False, "waiting")
    assert again(opened).state == state


def test_the_state_is_stored_with_the_numbers_of_its_timeouts() -> None:
    opened = started(definition(), Placed("o"))
    opened.state.timeout(60, "patience")
    opened.state.timeout(30, "reminder")
    assert opened.take_timeouts(None) == ([], [("patience", 1, 60), ("reminder", 2, 30)])
    opened = again(opened)
    opened.state.cancel("reminder")
    opened.state.timeout(10, "patience")
    assert opened.take_timeouts(None) == ([("patience", 1), ("reminder", 2)], [("patience", 3, 10)])
    opened = again(opened)
    opened.state.timeout(5, "patience")
    assert opened.take_timeouts("patience") == ([], [("patience", 4, 5)])
    opened = again(opened)
    opened.state.timeout(5, "reminder")
    opened.state.end()
    assert opened.take_timeouts(None) == ([("patience", 4)], [])


@given(
    st.lists(st.tuples(st.sampled_from(["set", "cancel", "fire", "end"]), st.sampled_from(["patience", "reminder"])))
)
def test_deliveries_are_always_those_that_the_state_names(steps: list[tuple[str, str]]) -> None:
    opened, stored = started(definition(), Placed("o")), set[tuple[str, int]]()
    for what, name in steps:
        fired = None
        if what == "set":
            opened.state.timeout(1, name)
        elif what == "cancel":
            opened.state.cancel(name)
        elif what == "end":
            opened.state.end()
        elif name in opened.timeouts:
            fired = name
            stored.remove((name, opened.timeouts[name]))
        gone, made = opened.take_timeouts(fired)
        assert set(gone) <= stored
        stored -= set(gone)
        assert not stored & {(name, number) for name, number, _ in made}
        stored |= {(name, number) for name, number, _ in made}
        assert stored == set(opened.timeouts.items())
        assert not (what == "end" and stored)
        opened = again(opened)


def test_a_timeout_needs_a_function_and_a_time() -> None:
    state = started(definition(), Placed("o")).state
    with pytest.raises(ValueError, match=r"Checkout has no timeout 'later' \(it has: patience, reminder\)"):
        state.timeout(1, "later")
    with pytest.raises(ValueError, match="has no timeout 'later'"):
        state.cancel("later")
    with pytest.raises(ValueError, match="must not be negative"):
        state.timeout(-1, "patience")
    with pytest.raises(RuntimeError, match="a matter of its own functions"):
        Checkout("o", 1).end()


def test_a_state_that_could_not_be_read_again_is_not_stored() -> None:
    opened = started(definition(), Placed("o", 7))
    assert isinstance(opened.state, Checkout)
    opened.state.total = 7.5  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"Checkout: its state does not fit the class: .*`int`.*\$\.total"):
        opened.kept()
    opened.state.total = 8
    assert again(opened).state == opened.state


def test_a_state_that_does_not_fit_any_more_is_unreadable() -> None:
    kept = started(definition(), Placed("o")).kept()
    with pytest.raises(UnreadableMessage, match="Checkout cannot be read: its stored state does not fit the class"):
        reopened(Definition("Checkout", Other), kept)
    assert Kept.__struct_fields__ == ("state", "timeouts", "number")


# --- what its functions may look like ---------------------------------------------------------------------------------


def placed(state: Checkout, event: Placed) -> None: ...
def paid(state: Checkout, event: Paid) -> None: ...
def no_state(event: Placed) -> None: ...
def late(state: Checkout) -> None: ...
def late_too(state: Checkout) -> None: ...


def test_its_functions_are_handlers_and_its_timeouts_come_through_no_log() -> None:
    shop, orders = Service("shop", publishes=[Placed, Paid]), Service("orders")
    checkout = orders.process(Checkout, by="order", remember=5)
    checkout.starts()(placed)
    checkout.on(Paid, by="payment")(paid)
    checkout.on_timeout("patience")(late)
    assert [handler.name for handler in orders.handlers] == ["Checkout.placed", "Checkout.paid", "Checkout.late"]
    assert [handler.queue is not None for handler in orders.handlers] == [False, False, True]
    topology = App(shop, orders).topology
    assert TimeoutDue not in topology.topics
    assert set(topology.subscriptions["orders"][0].handlers) == {"Placed", "Paid"}


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda checkout: checkout.on()(paid), r"paid: Paid has no field 'order' \(payment\): name the one .* by="),
        (
            lambda checkout: checkout.starts(by="payment")(paid),
            "paid: Checkout needs order, total, which Paid does not",
        ),
        (lambda checkout: checkout.on()(no_state), "no_state: takes the state first, annotated with Checkout"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(act: Any, says: str) -> None:
    checkout = Service("orders").process(Checkout, by="order")
    with pytest.raises(ConfigurationError, match=rf"test_processes_state.py:\d+: {says}"):
        act(checkout)


def test_states_and_names_are_checked() -> None:
    orders = Service("orders")
    with pytest.raises(ConfigurationError, match=r"a process is a subclass of skald\.Process"):
        orders.process(Process, by="order")
    with pytest.raises(ConfigurationError, match=r"Wrong\.end is what a process does, and cannot be a field"):
        orders.process(Wrong, by="order")
    checkout = orders.process(Checkout, by="order")
    checkout.starts()(placed)
    with pytest.raises(ConfigurationError, match="already has a process of this name, give it name="):
        orders.process(Checkout, by="order")
    checkout.on_timeout("patience")(late)
    with pytest.raises(ConfigurationError, match="'patience' has a function"):
        checkout.on_timeout("patience")(late_too)
