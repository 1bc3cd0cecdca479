"""What is sent is read back equal, or refused at the sender by name; and no bytes whatever break the reader."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, Literal
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skald.codec import Codec, codec_for
from skald.errors import ConfigurationError, InvalidMessage, MessageTooLarge, UnreadableMessage
from skald.message import Event, event

MAX = 2**63 - 1


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


class Level(IntEnum):
    LOW = 1


class Tone(StrEnum):
    CALM = "calm"


class Item(msgspec.Struct, frozen=True):
    sku: str
    quantity: int = 1
    weight: float | None = None


class Placed(Event, key="order_id", name="order.placed"):
    order_id: str
    total: int = 0
    paid: bool = False
    items: tuple[Item, ...] = ()


class Kinds(Event):
    at: datetime | None = None
    day: date = date(2024, 2, 29)
    hour: time = time(1, 2, 3)
    took: timedelta = timedelta(0)
    price: Decimal = Decimal(0)
    id: UUID = UUID(int=0)
    size: Size = Size.SMALL
    level: Level = Level.LOW
    mode: Literal["a", "b"] | None = None
    pair: tuple[str, int] = ("", 0)
    tags: frozenset[str] = frozenset()
    marks: set[int] = set()  # noqa: RUF012 (msgspec copies it)
    raw: bytes = b""
    prices: dict[str, float] = {}  # noqa: RUF012 (msgspec copies it)
    counts: dict[int, Decimal] = {}  # noqa: RUF012 (msgspec copies it)
    either: int | str | list[float] = 0
    times: list[datetime] = []  # noqa: RUF012 (msgspec copies it)
    anything: Any = None
    optional: int | msgspec.UnsetType = msgspec.UNSET


class ById(Event):
    id: str
    weight: float | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.id == self.id


class ByIdentity(Event, eq=False):
    id: str
    weight: float | None = None


@event()
@dataclass
class Partly:
    id: str
    weight: float | None = field(default=None, compare=False)


class Outer(Event):
    inner: ById


class Embedding(Event):
    body: msgspec.Raw


class Tree(Event):
    name: str = ""
    children: tuple[Tree, ...] = ()


@event(key="id")
@dataclass
class Paid:
    id: str
    amount: Decimal = Decimal(0)
    notes: list[str] = field(default_factory=list)


class Address(pydantic.BaseModel):
    city: str = ""
    lat: float | None = None


@event()
class Moved(pydantic.BaseModel):
    id: str = ""
    to: list[Address] = []
    at: datetime | None = None
    count: int = pydantic.Field(default=0, alias="theCount")
    anything: Any = None


class Mixed(Event):
    address: Address
    paid: Paid | None = None


ints = st.integers(-(2**63), MAX)
floats = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)
json_values = st.recursive(
    st.none() | st.booleans() | ints | floats | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
items = st.builds(Item, st.text(), ints, st.none() | floats)
valid_kinds = st.builds(
    Kinds,
    at=st.none() | moments,
    day=st.dates(),
    hour=st.times(),
    took=st.timedeltas(),
    price=decimals,
    id=st.uuids(),
    size=st.sampled_from(Size),
    level=st.sampled_from(Level),
    mode=st.sampled_from(["a", "b", None]),
    pair=st.tuples(st.text(), ints),
    tags=st.frozensets(st.text()),
    marks=st.sets(ints),
    raw=st.binary(),
    prices=st.dictionaries(st.text(), floats),
    counts=st.dictionaries(ints, decimals),
    either=ints | st.text() | st.lists(floats),
    times=st.lists(moments, max_size=3),
    anything=json_values,
    optional=ints | st.just(msgspec.UNSET),
)
addresses = st.builds(Address, city=st.text(), lat=st.none() | floats)
paid = st.builds(Paid, st.text(), decimals, st.lists(st.text()))
valid = st.one_of(
    st.builds(Placed, st.text(), ints, st.booleans(), st.lists(items, max_size=3).map(tuple)),
    valid_kinds,
    st.recursive(
        st.builds(Tree, st.text()),
        lambda inner: st.builds(Tree, st.text(), st.lists(inner, max_size=3).map(tuple)),
    ),
    paid,
    st.builds(Moved, id=st.text(), to=st.lists(addresses), at=st.none() | moments, theCount=ints, anything=json_values),
    st.builds(Mixed, addresses, st.none() | paid),
)


def encode(message: Any) -> bytes:
    return codec_for(type(message)).encode(message)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


# --- what is valid ----------------------------------------------------------------------------------------------------


@given(valid)
def test_what_is_sent_is_read_back_equal(message: Any) -> None:
    body = encode(message)
    assert codec_for(type(message)).decode(body) == message


def test_a_list_stands_for_a_tuple_and_an_int_for_a_float() -> None:
    sent = Placed("1", items=[Item("a", weight=3)])  # type: ignore[arg-type]
    assert codec_for(Placed).decode(encode(sent)).items == (Item("a", weight=3.0),)
    assert codec_for(Kinds).decode(encode(Kinds(anything=(1, (2,))))).anything == [1, [2]]


def test_an_enum_of_ints_or_text_stands_for_its_value() -> None:
    assert encode(Placed(Tone.CALM, Level.LOW)) == encode(Placed("calm", 1))


def test_sets_are_written_in_one_order_in_every_process() -> None:
    tags = frozenset(["event", "driven", "services", "need", "a", "stable", "order"])
    assert msgspec.json.decode(encode(Kinds(tags=tags)))["tags"] == sorted(tags)


def test_a_set_of_what_cannot_be_sorted_is_still_written() -> None:
    class Set(Event):
        items: frozenset[Item]

    sent = Set(frozenset([Item("a"), Item("b")]))
    assert codec_for(Set).decode(encode(sent)) == sent


def test_unknown_fields_are_ignored_whatever_they_hold() -> None:
    body = b'{"new":' + b"[" * 100 + b"]" * 100 + b',"n":1e999,"b":' + b"9" * 5000 + b',"order_id":"1"}'
    assert codec_for(Placed).decode(body) == Placed("1")


def test_of_duplicate_keys_the_last_one_wins() -> None:
    assert codec_for(Placed).decode(b'{"order_id":"1","order_id":"2"}') == Placed("2")


def test_the_bounds_themselves_are_valid() -> None:
    for message in (Placed("1", MAX), Placed("1", -MAX - 1), Kinds(anything=[MAX]), Kinds(anything=nested(63))):
        assert codec_for(type(message)).decode(encode(message)) == message
    assert encode(Kinds(anything=nested(63), pair=["", MAX]))  # type: ignore[arg-type]
    assert encode(Moved(anything=nested(63)))
    body = encode(Placed("1" * 100))
    assert codec_for(Placed, len(body)).encode(Placed("1" * 100)) == body
    assert codec_for(Placed, len(body)).decode(body) == Placed("1" * 100)


def test_brackets_in_text_and_side_by_side_are_no_depth() -> None:
    values: list[Any] = ["[" * 100, '\\"[{' * 100, "[" * 99 + "]" * 99, [[]] * 99, {'"' + "{" * 100: [{}, {}]}]
    for value in values:
        assert codec_for(Kinds).decode(encode(Kinds(anything=value))).anything == value


# --- what is refused at the sender ------------------------------------------------------------------------------------

NAIVE = datetime(2024, 1, 1)
LONE = "\ud800"
NO_NUMBER = "not numbers in JSON"
BITS = "does not fit into 64 bits"
UNICODE = "lone surrogate"
ZONE = "needs a zone"
DEEP = "nested deeper than 64"
BACK = "would be read back as"

REFUSED: list[tuple[Any, str, str]] = [
    # wrong types
    (Placed("1", "2"), "total", "Expected `int`, got `str`"),  # type: ignore[arg-type]
    (Placed("1", 2.0), "total", "Expected `int`, got `float`"),  # type: ignore[arg-type]
    (Placed("1", True), "total", "Expected `int`, got `bool`"),
    (Placed("1", paid=1), "paid", "Expected `bool`, got `int`"),  # type: ignore[arg-type]
    (Placed(None), "order_id", "Expected `str`, got `null`"),  # type: ignore[arg-type]
    (Placed(UUID(int=1)), "order_id", BACK),  # type: ignore[arg-type]
    (Placed(b"1"), "order_id", BACK),  # type: ignore[arg-type]
    (Placed("1", items=(Item("a"), Item("b", "3"))), "items[1].quantity", "Expected"),  # type: ignore[arg-type]
    (Placed("1", items=({"sku": "a"},)), "items[0]", BACK),  # type: ignore[arg-type]
    (Placed("1", items={Item("a")}), "items", BACK),  # type: ignore[arg-type]
    (Placed("1", object()), "total", "object cannot be written"),  # type: ignore[arg-type]
    (Kinds(price=1.5), "price", BACK),  # type: ignore[arg-type]
    (Kinds(at="2024-01-01T00:00:00Z"), "at", BACK),  # type: ignore[arg-type]
    (Kinds(size="s"), "size", BACK),  # type: ignore[arg-type]
    (Kinds(mode="c"), "mode", "Invalid enum value"),  # type: ignore[arg-type]
    (Kinds(prices={"eur": 2**53 + 1}), "prices['eur']", BACK),
    (Paid(1), "id", "Expected `str`, got `int`"),  # type: ignore[arg-type]
    (Moved.model_construct(to=[Address.model_construct(city=3)]), "to[0].city", "valid string"),
    (Moved.model_construct(to=[Address.model_construct(city=UUID(int=1))]), "to[0].city", BACK),
    (Mixed(Address.model_construct(city=3)), "address.city", "valid string"),
    # missing fields
    (Placed(msgspec.UNSET), "order_id", "is missing"),  # type: ignore[arg-type]
    (Paid.__new__(Paid), "id", "is missing"),
    (Moved.model_construct(to=[Address.model_construct(_fields_set=set())]).model_copy(update={"id": None}), "id", ""),
    # what would come back as something else
    (Kinds(anything=datetime(2024, 1, 1, tzinfo=UTC)), "anything", BACK),
    (Kinds(anything={"a": {1: 2}}), "anything['a'][1]", "not be read back as a key"),
    (Kinds(anything={(1, 2): 3}), "anything[tuple]", "cannot be written"),
    (Kinds(anything={True: 3}), "anything[bool]", "cannot be written"),
    (Kinds(anything=[{1}]), "anything[0]", BACK),
    (Kinds(anything=[Item("a")]), "anything[0]", BACK),
    (Kinds(at=datetime(1900, 1, 1, tzinfo=timezone(timedelta(seconds=1172)))), "at", BACK),
    # numbers that are none
    (Placed("1", items=(Item("a", weight=math.nan),)), "items[0].weight", NO_NUMBER),
    (Kinds(prices={"eur": math.inf}), "prices['eur']", NO_NUMBER),
    (Kinds(anything=[-math.inf]), "anything[0]", NO_NUMBER),
    (Kinds(price=Decimal("NaN")), "price", NO_NUMBER),
    (Kinds(price=Decimal("sNaN")), "price", NO_NUMBER),
    (Kinds(counts={3: Decimal("-Infinity")}), "counts[3]", NO_NUMBER),
    (Paid("1", Decimal("Infinity")), "amount", NO_NUMBER),
    (Moved(to=[Address(lat=math.nan)]), "to[0].lat", NO_NUMBER),
    (Mixed(Address(lat=math.inf)), "address.lat", NO_NUMBER),
    # integers that others cannot read
    (Placed("1", MAX + 1), "total", BITS),
    (Placed("1", -MAX - 2), "total", BITS),
    (Placed("1", 10**100_000), "total", BITS),
    (Kinds(anything={"a": [2**64]}), "anything['a'][0]", BITS),
    (Kinds(counts={2**70: Decimal(1)}), "counts[int]", BITS),
    (Kinds(either=2**63), "either", BITS),
    (Moved(theCount=2**63), "count", BITS),
    (Embedding(msgspec.Raw(b'{"a":[18446744073709551616]}')), "body['a'][0]", BITS),
    (Embedding(msgspec.Raw(b"[" * 64 + b"]" * 64)), "body" + "[0]" * 63, DEEP),
    (Embedding(msgspec.Raw(b"[NaN]")), "$", "malformed"),
    # text that is none
    (Placed(LONE), "order_id", UNICODE),
    (Kinds(anything={LONE: 1}), "anything['\\ud800']", UNICODE),
    (Paid("1", notes=["", LONE]), "notes[1]", UNICODE),
    (Moved.model_construct(id=LONE), "id", UNICODE),
    # times without a zone
    (Kinds(at=NAIVE), "at", ZONE),
    (Kinds(times=[datetime(2024, 1, 1, tzinfo=UTC), NAIVE]), "times[1]", ZONE),
    (Moved(at=NAIVE), "at", ZONE),
    # nesting
    (Kinds(anything=nested(64)), "anything" + "[0]" * 63, DEEP),
    (Kinds(anything=nested(100_000)), "anything" + "[0]" * 63, DEEP),
    (Kinds(anything=cycle()), "anything" + "[0]" * 63, DEEP),
    (Moved(anything=nested(64)), "anything" + "[0]" * 63, DEEP),
]


@pytest.mark.parametrize(("message", "at", "reason"), REFUSED, ids=[f"{at[:30]}-{why[:20]}" for _, at, why in REFUSED])
def test_it_is_refused_by_the_name_of_its_field(message: Any, at: str, reason: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        encode(message)
    assert refused.value.field == at
    assert reason in refused.value.reason
    assert refused.value.type == ("order.placed" if isinstance(message, Placed) else type(message).__name__)


def test_a_recursive_message_is_refused_beyond_64_levels() -> None:
    tree = Tree()
    for _ in range(32):  # each level is an object in an array
        tree = Tree(children=(tree,))
    with pytest.raises(InvalidMessage, match=DEEP) as refused:
        encode(tree)
    assert refused.value.field == "children[0]" + ".children[0]" * 31
    assert encode(tree.children[0])


def test_a_body_over_the_limit_is_refused_with_its_size() -> None:
    with pytest.raises(MessageTooLarge) as refused:
        encode(Placed("x" * 2**20))
    assert refused.value.size > refused.value.limit == 2**20
    assert str(refused.value).endswith("send a reference, or raise max_body")


def test_a_value_over_the_limit_is_refused_without_advice_on_messages() -> None:
    with pytest.raises(MessageTooLarge, match=r"send a reference$"):
        Codec(str, name="the result of fetch").encode("x" * 2**20)


def test_another_class_is_refused_even_one_that_adds_fields() -> None:
    class Express(Placed):
        by: str = ""

    for message in (Express("1"), Kinds(), 5, None, {"order_id": "1"}, object()):
        with pytest.raises(InvalidMessage):
            codec_for(Placed).encode(message)


def test_a_class_that_compares_only_some_fields_is_still_checked() -> None:
    for cls in (ById, Partly, ByIdentity):
        with pytest.raises(InvalidMessage, match="weight"):
            encode(cls("1", math.nan))
        assert codec_for(cls).decode(encode(cls("1", 2.5))).weight == 2.5
    with pytest.raises(InvalidMessage, match=r"inner\.weight"):
        encode(Outer(ById("1", math.nan)))


def field_names(cls: Any) -> list[str]:
    fields = getattr(cls, "model_fields", None) or getattr(cls, "__dataclass_fields__", None) or cls.__struct_fields__
    return list(fields)


CLASSES = [Placed, Kinds, Tree, Paid, Moved, Mixed]


def test_errors_of_the_message_itself_are_cut_short_and_made_valid_text() -> None:
    class Failing(Event):
        id: str

        def __eq__(self, other: object) -> bool:
            raise LookupError(LONE * 10_000)

    with pytest.raises(InvalidMessage) as refused:
        encode(Failing("1"))
    assert isinstance(refused.value.__cause__, LookupError)
    assert str(refused.value).encode().startswith(b"Failing: $: \\ud800")
    assert len(refused.value.reason) == 500


class Hostile:
    """Every question that one may ask of it fails."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(LONE * 1000)

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = object.__hash__
    __len__ = __iter__ = __str__ = __repr__ = __eq__  # type: ignore[assignment]


hostile = st.one_of(
    json_values,
    st.floats(),
    st.integers(),
    st.text(st.characters()),
    st.decimals(),
    st.datetimes(),
    st.binary(),
    st.complex_numbers(),
    st.sets(st.integers()),
    st.dictionaries(st.integers() | st.booleans() | st.floats() | st.none() | st.tuples(ints), st.floats()),
    st.builds(nested, st.sampled_from([1, 63, 64, 5000])),
    st.builds(cycle),
    st.sampled_from([object(), object, len, msgspec.UNSET, Size.LARGE, Level.LOW, 10**5000, Paid("1"), Address()]),
    st.builds(Hostile),
    st.builds(lambda: msgspec.Raw(b"[garbage")),
    valid,
)
FIELDS = [(cls, name) for cls in (Placed, Kinds, Tree, Mixed) for name in cls.__struct_fields__]


@given(st.sampled_from(FIELDS), hostile, st.data())
def test_any_value_in_any_field_is_read_back_or_refused(at: tuple[type, str], value: Any, data: st.DataObject) -> None:
    cls, name = at
    fields: dict[str, Any] = {"order_id": "1"} if cls is Placed else {"address": Address()} if cls is Mixed else {}
    wrap: Callable[[Any], Any] = data.draw(st.sampled_from([lambda v: v, lambda v: [v], lambda v: {"k": v}]))
    only_invalid_messages(cls(**fields | {name: wrap(value)}))
    only_invalid_messages(Moved.model_construct(**{data.draw(st.sampled_from(["id", "to", "at", "anything"])): value}))
    only_invalid_messages(value)


def only_invalid_messages(message: Any) -> None:
    codec = codec_for(type(message)) if hasattr(type(message), "__message__") else codec_for(Placed)
    refused = None
    try:
        body = codec.encode(message)
    except InvalidMessage as error:
        refused = error
    if refused is None:
        read = codec.decode(body)
        assert loosely(read) == loosely(message)
        assert codec.decode(codec.encode(read)) == read
    else:
        assert max(len(refused.field), len(refused.reason)) <= 500
        assert str(refused).encode()  # it can be logged and stored


def loosely(value: Any) -> Any:
    """A list for each tuple, and a tuple for each object."""
    if isinstance(value, list | tuple):
        return [loosely(each) for each in value]
    if isinstance(value, dict):
        return {key: loosely(each) for key, each in value.items()}
    if type(value) in CLASSES or isinstance(value, Item | Address):
        return type(value), *(loosely(getattr(value, name)) for name in field_names(type(value)))
    return value


# --- what is read -----------------------------------------------------------------------------------------------------


TEXTS = ["2024-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "NaN", "1e999999", "P1D", "PT1.5S", "AA==", "\0", "s"]
documents = st.sampled_from(CLASSES).flatmap(
    lambda cls: st.tuples(
        st.just(cls),
        st.dictionaries(
            st.sampled_from([*field_names(cls), "theCount"]),
            json_values | st.sampled_from(TEXTS) | st.integers() | st.lists(st.sampled_from(TEXTS)),
        ).map(msgspec.json.encode),
    )
)
damaged = st.builds(
    lambda body, at, cut, junk: body[:at] + junk + body[at + cut :],
    valid.map(encode),
    st.integers(0, 200),
    st.integers(0, 5),
    st.binary(max_size=3) | st.sampled_from([b"NaN", b"1e400", b'"\\ud800"', b"[" * 70, b"9" * 30, b"-Infinity"]),
)


@given(st.one_of(documents, st.tuples(st.sampled_from(CLASSES), damaged | st.binary())))
def test_any_bytes_are_a_message_that_can_be_sent_or_unreadable(read: tuple[type, bytes]) -> None:
    cls, body = read
    unreadable = None
    try:
        message = codec_for(cls).decode(body)
    except UnreadableMessage as error:
        unreadable = error
    if unreadable is None:
        assert codec_for(cls).decode(encode(message)) == message
    else:
        assert len(unreadable.reason) <= 1002
        assert str(unreadable).encode()


UNREADABLE: list[tuple[type, Any, str]] = [
    (Placed, b"", "truncated"),
    (Placed, b"{}", "order_id: is missing"),
    (Placed, b'{"order_id":1}', "order_id: Expected `str`, got `int`"),
    (Placed, b'{"order_id":"1","total":"1"}', "total: Expected `int`, got `str`"),
    (Placed, b'{"order_id":"1","total":9223372036854775808}', "total: an integer of 64 bits"),
    (Placed, b'{"order_id":"1","items":[{"sku":"a","weight":1e400}]}', "items[0].weight: Number out of range"),
    (Placed, b'{"order_id":"\xff"}', "utf-8"),
    (Placed, b'{"order_id":"\\ud800"}', ""),
    (Placed, b"null", "Expected `object`, got `null`"),
    (Placed, None, ""),
    (Placed, "{}", "is missing"),
    (Placed, b"[" * 10_000_000, "10000000 bytes, the limit is 1048576"),
    (Placed, b'{"x":' + b"[" * 1_000_000, "recursion"),
    (Kinds, b'{"anything":' + b"[" * 64 + b"]" * 64 + b"}", DEEP),
    (Kinds, b'{"anything":' + b"[" * 1_000_000, ""),
    (Kinds, b'{"anything":' + b"[{}," * 100 + b"0" + b"]" * 100 + b"}", DEEP),
    (Kinds, b'{"anything":NaN}', "malformed"),
    (Kinds, b'{"anything":' + b"9" * 1_000_000 + b"}", "anything: Integer value out of range"),
    (Kinds, b'{"price":"Infinity"}', "price: NaN and infinities"),
    (Kinds, b'{"at":"2024-01-01T00:00:00"}', "at: a time needs a zone"),
    (Moved, b'{"to":[{"lat":NaN}]}', "malformed"),
    (Moved, b'{"to":[{"lat":1e400}]}', "out of range"),
    (Moved, b'{"to":[{"lat":"1"}]}', "to[0].lat: Input should be a valid number"),
    (Moved, b'{"theCount":9223372036854775808}', "count: an integer of 64 bits"),
    (Moved, b"[" * 100 + b"]" * 100, DEEP),
    (Mixed, b'{"address":{"city":1}}', "address.city: Input should be a valid string"),
]


@pytest.mark.parametrize(("cls", "body", "reason"), UNREADABLE, ids=[str(body)[:40] for _, body, _ in UNREADABLE])
def test_it_cannot_be_read_and_the_reason_is_told(cls: type, body: Any, reason: str) -> None:
    with pytest.raises(UnreadableMessage) as unreadable:
        codec_for(cls).decode(body)
    assert reason in unreadable.value.reason
    assert unreadable.value.type == ("order.placed" if cls is Placed else cls.__name__)


# --- the codec itself -------------------------------------------------------------------------------------------------


def test_a_class_and_a_limit_have_one_codec() -> None:
    assert codec_for(Placed) is codec_for(Placed)
    assert codec_for(Placed, 10) is not codec_for(Placed)


def test_a_class_that_json_cannot_carry_is_refused_before_the_first_message() -> None:
    class Ambiguous(Event):
        x: Item | Size | Kinds

    with pytest.raises(ConfigurationError, match="Ambiguous cannot be a message"):
        codec_for(Ambiguous)


def test_threads_share_a_codec() -> None:
    message = Kinds(anything={"a": [1, 2.5]}, prices={"eur": 1.5}, tags=frozenset("abc"))
    body = encode(message)
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(300):
            if encode(message) != body or codec_for(Kinds).decode(body) != message:
                wrong.append(body)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pydantic_is_not_imported() -> None:
    script = "import sys, skald.codec; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
