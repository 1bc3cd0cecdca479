"""How messages are declared, and what stands in their envelopes: ids, slots, traces, CloudEvents attributes."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass
from uuid import RFC_4122, UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skald.message import (
    SLOTS,
    Command,
    Envelope,
    Event,
    MessageType,
    Notification,
    Record,
    child_traceparent,
    command,
    event,
    message_type,
    new_id,
    notification,
    slot_of,
)


class Placed(Event, key="order_id"):
    order_id: str
    total: int = 0


class Paid(Placed, name="order.paid", version=2):
    by: str = ""


class Rekeyed(Placed, key="by"):
    by: str = ""


class Changed(Notification, key="id"):
    id: str


class Ship(Command):
    order_id: str


@event(key="id")
@dataclass(frozen=True)
class Stored:
    id: str


@command(key="id", name="move", version=3)
class Move(pydantic.BaseModel):
    id: str


@notification()
class Emptied(pydantic.BaseModel):
    pass


@notification()
@dataclass
class Cleared:
    pass


# --- declarations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name", "version", "key", "kind"),
    [
        (Placed, "Placed", 1, "order_id", "event"),
        (Paid, "order.paid", 2, "order_id", "event"),
        (Rekeyed, "Rekeyed", 1, "by", "event"),
        (Changed, "Changed", 1, "id", "notification"),
        (Ship, "Ship", 1, None, "command"),
        (Stored, "Stored", 1, "id", "event"),
        (Move, "move", 3, "id", "command"),
        (Emptied, "Emptied", 1, None, "notification"),
        (Cleared, "Cleared", 1, None, "notification"),
    ],
)
def test_a_class_says_what_its_messages_are(cls: type, name: str, version: int, key: str | None, kind: str) -> None:
    assert message_type(cls) == MessageType(cls, name, version, key, kind)  # type: ignore[arg-type]


def test_a_subclass_inherits_the_key_but_neither_name_nor_version() -> None:
    class Refunded(Paid):
        pass

    assert message_type(Refunded) == MessageType(Refunded, "Refunded", 1, "order_id", "event")

    @event()
    @dataclass(frozen=True)
    class StoredTwice(Stored):
        again: str = ""

    assert message_type(StoredTwice).key == "id"


def test_messages_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Placed("1").total = 2


def test_options_of_msgspec_still_work() -> None:
    class Renamed(Event, key="order_id", rename="camel", kw_only=True):
        order_id: str

    assert msgspec.json.encode(Renamed(order_id="1")) == b'{"orderId":"1"}'
    assert message_type(Renamed).key == "order_id"


def test_a_key_that_is_no_field_is_refused_with_the_fields_there_are() -> None:
    with pytest.raises(TypeError, match=r"Wrong: key='order' is not one of its fields \(order_id, total\)"):

        class Wrong(Event, key="order"):
            order_id: str
            total: int

    @dataclass
    class AlsoWrong:
        id: str

    with pytest.raises(TypeError, match=r"AlsoWrong: key='ID' is not one of its fields \(id\)"):
        event(key="ID")(AlsoWrong)
    with pytest.raises(TypeError, match="not one of its fields"):
        event(key="model_fields")(Move)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_start_at_one(version: int) -> None:
    with pytest.raises(TypeError, match=f"version={version} must be at least 1"):

        class Wrong(Event, version=version):
            id: str


class Undecorated(Stored):
    """A subclass of a declared class, which does not declare itself."""


@pytest.mark.parametrize("cls", [Event, Notification, Command, int, Undecorated, msgspec.Struct])
def test_what_is_not_declared_is_told_how(cls: type) -> None:
    with pytest.raises(TypeError, match=f"{cls.__name__} is not a message: subclass Event"):
        message_type(cls)


def test_only_dataclasses_and_models_are_decorated() -> None:
    with pytest.raises(TypeError, match="int is neither a dataclass nor a pydantic model"):
        event()(int)


# --- ids --------------------------------------------------------------------------------------------------------------

UUID7 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def test_ids_are_uuids_of_version_7_and_carry_the_time() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    for id in ids:
        assert UUID7.fullmatch(id)
        assert (UUID(id).version, UUID(id).variant) == (7, RFC_4122)
        # A clock that other tests turned back lets the ids run ahead of it, by at most what was drawn meanwhile.
        assert before <= UUID(id).int >> 80 <= after + 10


def test_ids_ascend_in_every_thread_and_are_never_drawn_twice() -> None:
    drawn: list[list[str]] = [[] for _ in range(8)]

    def draw(into: list[str]) -> None:
        into.extend(new_id() for _ in range(5000))

    threads = [threading.Thread(target=draw, args=(ids,)) for ids in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(ids == sorted(ids) for ids in drawn)
    assert len({id for ids in drawn for id in ids}) == 8 * 5000


@pytest.mark.parametrize("step", [0, -1, -3_600_000], ids=["stands still", "a millisecond back", "an hour back"])
def test_ids_ascend_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    clock = time.time_ns()
    last = new_id()

    def now() -> int:
        nonlocal clock
        clock += step * 1_000_000
        return clock

    monkeypatch.setattr(time, "time_ns", now)
    for _ in range(5000):  # more than the counter holds in one millisecond
        last, before = new_id(), last
        assert last > before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_draws_ids_of_its_own_even_while_another_thread_draws() -> None:
    new_id()
    reader, writer = os.pipe()
    with new_id._lock:  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            os.write(writer, "".join(new_id() for _ in range(50)).encode())
            os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 36 * 50).decode()
    os.close(reader)
    os.close(writer)
    random_parts = {theirs[at + 19 : at + 36] for at in range(0, 36 * 50, 36)}
    assert len(random_parts) == 50
    assert random_parts.isdisjoint(new_id()[19:] for _ in range(300))


# --- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        ("", 0xE3),
        ("abc", 0xBA),
        ("order-1", 0x0B),
        ("Bestellung-ä", 0x23),
        ("0190b6e7-0000-7000-8000-000000000000", 0xA1),
    ],
)
def test_the_slot_of_a_key_never_changes(key: str, slot: int) -> None:
    """Stored records carry it: with another function, one key's messages would be handled side by side."""
    assert slot_of(key) == slot


@given(st.text())
def test_every_key_has_a_slot(key: str) -> None:
    assert 0 <= slot_of(key) < SLOTS == 256


def test_keys_spread_over_all_slots() -> None:
    assert len({slot_of(f"order-{n}") for n in range(5000)}) == SLOTS


# --- traces -----------------------------------------------------------------------------------------------------------

TRACEPARENT = re.compile("00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-0[01]")
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


def test_a_child_keeps_the_trace_and_the_flags_of_its_cause() -> None:
    id = new_id()
    assert child_traceparent(PARENT, "c", id) == f"{PARENT[:36]}{id.replace('-', '')[16:]}-00"


def test_a_trace_starts_with_the_correlation_id() -> None:
    id = new_id()
    trace, span = id.replace("-", ""), id.replace("-", "")[16:]
    assert child_traceparent(None, id, id) == f"00-{trace}-{span}-01"


NO_PARENTS = [
    "",
    "garbage",
    PARENT[:-1],
    PARENT + "0",
    PARENT.upper(),
    PARENT.replace("-", "_"),
    PARENT[:-1] + "\n",
    "ff" + PARENT[2:],
    f"00-{'0' * 32}-00f067aa0ba902b7-01",
    f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    "x" * 55,
]


@pytest.mark.parametrize("parent", NO_PARENTS)
def test_a_parent_that_is_none_starts_a_new_trace(parent: str) -> None:
    id = new_id()
    assert child_traceparent(parent, id, id) == child_traceparent(None, id, id)


@given(st.none() | st.text() | st.just(PARENT), st.text() | st.uuids().map(str) | st.sampled_from(["g" * 32, "0" * 32]))
def test_a_traceparent_always_has_the_format_of_w3c(parent: str | None, correlation_id: str) -> None:
    assert TRACEPARENT.fullmatch(child_traceparent(parent, correlation_id, new_id()))


# --- CloudEvents ------------------------------------------------------------------------------------------------------


def record(**changes: object) -> Record:
    first = Record(
        position=7,
        id="0190b6e7-0000-7000-8000-000000000000",
        topic="orders",
        key="order-1",
        slot=1,
        type="order.paid",
        version=2,
        time=1_700_000_000_000_001,
        correlation_id="c",
        causation_id=None,
        traceparent=None,
        payload=b"{}",
    )
    return msgspec.structs.replace(first, **changes)


def test_an_envelope_has_the_attributes_of_cloudevents() -> None:
    assert Envelope(record(), "/orders").attributes() == {
        "specversion": "1.0",
        "id": "0190b6e7-0000-7000-8000-000000000000",
        "source": "/orders",
        "type": "order.paid",
        "subject": "order-1",
        "time": "2023-11-14T22:13:20.000001Z",
        "datacontenttype": "application/json",
        "dataschema": "order.paid/2",
        "correlationid": "c",
        "partitionkey": "order-1",
        "sequence": "00000000000000000007",
    }


def test_the_optional_attributes_are_there_when_there_is_something_to_say() -> None:
    attributes = Envelope(record(causation_id="b", traceparent=PARENT, stream="order-9"), "/orders").attributes()
    assert (attributes["causationid"], attributes["traceparent"]) == ("b", PARENT)
    assert (attributes["subject"], attributes["partitionkey"]) == ("order-9", "order-1")


def test_the_names_of_the_attributes_are_those_that_every_transport_takes() -> None:
    attributes = Envelope(record(causation_id="b", traceparent=PARENT), "/orders").attributes()
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) and value for name, value in attributes.items())


@pytest.mark.parametrize("name", ["id", "position", "correlation_id", "causation_id"])
def test_an_envelope_answers_for_its_record(name: str) -> None:
    assert getattr(Envelope(record(), "/orders"), name) == getattr(record(), name)


def test_sequences_sort_as_positions_do() -> None:
    positions = [9, 10, 2**63 - 1]
    sequences = [Envelope(record(position=position), "/orders").attributes()["sequence"] for position in positions]
    assert sequences == sorted(sequences)
