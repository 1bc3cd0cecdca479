"""Messages as JSON, checked at the sender: what could not be read back as it was sent is never stored.

A message class does not validate when it is constructed, so ``encode`` does. It writes the body, reads it
back with the typed decoder and compares, all three in C. Between them these find wrong types, missing
fields, text that is no Unicode, and NaN (which msgspec writes as ``null``, so that a ``float | None`` would
swallow it). Four things survive, and only the types that can hold them pay for looking:

    naive datetimes, infinite Decimals   a walk over just the fields that can hold them
    integers beyond 64 bits (signed)     a search for 19 digits in the body, in types with numbers
    nesting deeper than 64               a count of brackets, in recursive types and types with ``Any``
    sets, which have no stable order     are written sorted if their elements can be (as are the type's dicts)

When one of these finds something, or the comparison fails, a walk over the message beside what was read from
it decides, and names the field. It lets a list stand for a tuple and the reverse, and looks at the fields
where a class has no ``__eq__``. So ``Any`` carries what JSON has, and refuses a datetime, a set or an
integer key, which would come back as something else; a subclass in place of the declared class is refused as
well, for its additional fields would be lost.

``decode`` applies the same limits: what it returns can be sent again. Unknown fields are ignored; the last
of duplicate keys wins. pydantic models write and (strictly) read themselves, then the same rules apply.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from math import inf, isfinite
from typing import Any
from uuid import UUID

import msgspec
from msgspec import UNSET, inspect

from skald.errors import ConfigurationError, InvalidMessage, MessageTooLarge, UnreadableMessage

MAX_BODY = 1_048_576
MAX_DEPTH = 64
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_TOO_DEEP = f"nested deeper than {MAX_DEPTH}"

Check = Callable[[Any, Any, int], None]  # what was sent, what is read back, how deep; raises _Refused


class _Refused(Exception):
    """Gathers its path on the way out: each container puts its step in front, and success builds no paths."""

    path = ""

    def under(self, step: str) -> _Refused:
        self.path = step + self.path
        return self


def _short(text: str) -> str:  # errors are logged and stored
    return text[:500].encode("utf-8", "backslashreplace").decode()[:500]


def _step(key: object) -> str:
    if isinstance(key, str):
        return f"[{key[:60]!a}]"
    return f"[{key}]" if type(key) is int and key.bit_length() < 64 else f"[{type(key).__name__}]"


# --- values (beside themselves, where only the value itself is looked at) -----------------------------------


def _walk(sent: Any, read: Any, depth: int) -> None:
    _VALUES.get(type(sent), _other)(sent, read, depth)


def _deeper(depth: int) -> int:
    if depth > MAX_DEPTH:
        raise _Refused(_TOO_DEEP)
    return depth + 1


def _same(sent: Any, read: Any, depth: int) -> None:
    if not (sent is read or (sent == read and isinstance(sent, Decimal) == isinstance(read, Decimal))):
        here, there = type(sent).__name__, type(read).__name__
        raise _Refused(f"this {here} would be read back as {'another' if here == there else 'a'} {there}")


def _int(sent: Any, read: Any, depth: int) -> None:
    if not _INT_MIN <= sent <= _INT_MAX:
        raise _Refused(f"an integer of {sent.bit_length()} bits does not fit into 64 bits (signed)")
    _same(sent, read, depth)


def _number(sent: float | Decimal, read: Any, depth: int) -> None:
    if not (isfinite(sent) if isinstance(sent, float) else sent.is_finite()):
        raise _Refused("NaN and infinities are not numbers in JSON")
    _same(sent, read, depth)


def _str(sent: Any, read: Any, depth: int) -> None:
    try:
        sent.isascii() or sent.encode()
    except UnicodeEncodeError:
        raise _Refused("a lone surrogate is not Unicode text") from None
    _same(sent, read, depth)


def _datetime(sent: Any, read: Any, depth: int) -> None:
    if sent.utcoffset() is None:
        raise _Refused("a time needs a zone: use datetime(..., tzinfo=UTC)")
    _same(sent, read, depth)


def _writable(value: Any) -> None:
    try:
        _plain(value)
    except Exception as error:
        raise _Refused(str(error)) from None


def _list(sent: Any, read: Any, depth: int) -> None:
    if not isinstance(read, list | tuple) or len(read) != len(sent):
        _same(sent, read, depth)
    depth = _deeper(depth)
    for index, (mine, theirs) in enumerate(zip(sent, read, strict=True)):
        try:
            _walk(mine, theirs, depth)
        except _Refused as refused:
            raise refused.under(f"[{index}]") from None


def _set(sent: Any, read: Any, depth: int) -> None:
    _list([*sent], [*sent], depth)
    _same(sent, read, depth)


def _dict(sent: Any, read: Any, depth: int) -> None:
    if not isinstance(read, dict):
        _same(sent, read, depth)
    depth = _deeper(depth)
    for key, mine in sent.items():
        try:
            (_str if isinstance(key, str) else _walk)(key, key, depth)
            _writable({key: None})
            if key not in read:
                raise _Refused(f"this {type(key).__name__} would not be read back as a key")
            _walk(mine, read[key], depth)
        except _Refused as refused:
            raise refused.under(_step(key)) from None


def _object(names: Iterable[str], sent: Any, read: Any, depth: int) -> None:
    depth = _deeper(depth)
    for name in names:
        try:
            mine, theirs = getattr(sent, name, UNSET), getattr(read, name, UNSET)
            if mine is UNSET and (theirs is not UNSET or not hasattr(sent, name)):
                raise _Refused("is missing")
            if mine is not UNSET:
                _walk(mine, theirs, depth)
        except _Refused as refused:
            raise refused.under(f".{name}") from None


def _other(sent: Any, read: Any, depth: int) -> None:
    cls: Any = type(sent)
    names = _field_names(cls)
    if names is not None and cls is type(read):
        return _object((*names, *(sent.model_extra or ())) if _is_model(cls) else names, sent, read, depth)
    if isinstance(sent, Enum):
        _walk(sent.value, sent.value, depth)
        return _same(sent, read, depth)
    if isinstance(sent, msgspec.Raw):
        return _walk(plain := _parse(bytes(sent)), plain, depth)
    for base in (list, tuple, dict, set, frozenset, datetime):
        if isinstance(sent, base):
            return _VALUES[base](sent, read, depth)
    _writable(sent)
    _same(sent, read, depth)


_VALUES: dict[type, Check] = {
    **dict.fromkeys((type(None), bool, bytes, bytearray, memoryview, date, time, timedelta, UUID), _same),
    **{int: _int, float: _number, Decimal: _number, str: _str, datetime: _datetime},
    **{list: _list, tuple: _list, dict: _dict, set: _set, frozenset: _set},
}


@cache  # of a Struct, pydantic model or dataclass
def _field_names(cls: Any) -> tuple[str, ...] | None:
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    names = getattr(cls, "__struct_fields__", None)
    return tuple(cls.model_fields) if _is_model(cls) else names


# --- types: which checks a class needs ----------------------------------------------------------------------

_OPEN = {inspect.AnyType, inspect.RawType, inspect.CustomType}
_NUMBERS = _OPEN | {inspect.IntType, inspect.FloatType}
_SETS = {inspect.SetType, inspect.FrozenSetType}
_BEYOND_COMPARISON = {inspect.RawType, inspect.CustomType, inspect.DecimalType, inspect.DateTimeType, object}


def _children(kind: Any) -> list[Any]:
    children = [getattr(kind, name, None) for name in ("type", "item_type", "key_type", "value_type")]
    children += [*getattr(kind, "types", ()), *getattr(kind, "item_types", ())]
    children += [field.type for field in getattr(kind, "fields", ())]
    return [child for child in children if isinstance(child, inspect.Type)]


def _survey(kind: Any, kinds: set[type], depths: dict[int, float]) -> float:
    """Collects what a type is made of, and returns how deep its values can be."""
    if id(kind) not in depths:
        kinds.add(type(kind) if _comparable(kind) else object)
        depths[id(kind)] = inf  # what a recursive type finds when it meets itself
        below = max((_survey(child, kinds, depths) for child in _children(kind)), default=0)
        depths[id(kind)] = inf if type(kind) in _OPEN else below + 1
    return depths[id(kind)]


def _comparable(kind: Any) -> bool:
    """Whether ``==`` is known to look at every field."""
    if isinstance(kind, inspect.DataclassType):
        generated = getattr(getattr(kind.cls.__eq__, "__code__", None), "co_filename", "") == "<string>"
        return generated and all(field.compare for field in dataclasses.fields(kind.cls))
    return not isinstance(kind, inspect.StructType) or kind.cls.__eq__ is msgspec.Struct.__eq__


def _beyond_comparison(kind: Any) -> Check | None:
    """A check of just those fields in which reading back and comparing does not find everything."""
    fields = []
    for field in getattr(kind, "fields", ()):
        _survey(field.type, kinds := set[type](), {})
        if kinds & _BEYOND_COMPARISON:
            fields.append(field.name)
    return _walk if not _comparable(kind) else partial(_object, fields) if fields else None


# --- bodies -------------------------------------------------------------------------------------------------

_DIGITS = bytes(ord("0") if chr(c).isdecimal() and c < 128 else ord("-") for c in range(256))
# Looked for by `find`: `in` would first try it as a number, and take twice the time.
_LONG = b"0" * len(str(_INT_MAX))
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")


def _too_deep(body: bytes) -> bool:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", body).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        outer = brackets.replace(b"[]", b"")  # takes exactly the innermost level away
        if len(outer) == len(brackets):
            return False  # all gone, or unbalanced: that is for the parser to say
        brackets = outer
    return bool(brackets)


def _is_model(cls: Any) -> bool:
    return hasattr(cls, "model_validate_json") and hasattr(cls, "model_dump_json")


def _write_model(message: Any) -> bytes:
    return message.model_dump_json(by_alias=True, round_trip=True, warnings=False).encode()  # type: ignore[no-any-return]


def _read_model(cls: Any, body: bytes) -> Any:
    _parse(body)  # pydantic takes NaN, Infinity and 1e400 for numbers
    return cls.model_validate_json(body, strict=True)


def _enc_hook(value: Any) -> Any:
    if _is_model(type(value)):
        return msgspec.Raw(_write_model(value))
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _dec_hook(cls: type, value: Any) -> Any:
    return _read_model(cls, _plain(value)) if _is_model(cls) else value


_parse = msgspec.json.Decoder().decode
_plain = msgspec.json.Encoder(enc_hook=_enc_hook).encode
_sorted = msgspec.json.Encoder(enc_hook=_enc_hook, order="deterministic").encode


def _write_sorted(message: Any) -> bytes:
    try:
        return _sorted(message)
    except TypeError:  # elements that cannot be compared, such as Structs, or a dict whose keys are no text
        return _plain(message)


def _culprit(message: Any, error: Exception) -> Exception:
    """The value to blame, if one is: most errors do not say where they happened."""
    with suppress(Exception):  # the message's own code fails
        try:
            _walk(message, message, 1)
        except _Refused as refused:
            return refused
    return error


def _explain(error: Exception) -> tuple[str, str]:
    path = reason = ""
    with suppress(Exception):  # the error's own code fails
        path, reason = _locate(error)
    return _short(path.removeprefix(".")) or "$", _short(reason) or type(error).__name__


def _locate(error: Any) -> tuple[str, str]:
    if isinstance(error, _Refused):
        return error.path, str(error)
    if hasattr(error, "errors"):  # pydantic's
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        return "".join(steps), first["msg"]
    reason, _, at = str(error).partition(" - at `")
    path = at.removesuffix("`").partition("$")[2]
    if hasattr(error.__cause__, "errors"):  # from a model inside a Struct
        inner, reason = _locate(error.__cause__)
        return path + inner, reason
    if missing := re.search("missing required field `(.*?)`", reason):
        return f"{path}.{missing[1]}", "is missing"
    return path, reason


class Codec:
    """Encodes and decodes the messages of one class, or the values of any type; safe to share between threads."""

    def __init__(self, cls: Any, max_body: int = MAX_BODY, *, name: str | None = None) -> None:
        declared = getattr(cls, "__dict__", {}).get("__message__")  # a union has none
        self._advice = "send a reference"
        if name is None:
            name = declared.name if declared is not None else getattr(cls, "__name__", str(cls))
            if declared is not None:
                self._advice += ", or raise max_body"
        self.type: str = name
        self._max_body = max_body
        self._write: Callable[[Any], bytes] = _write_model
        self._read: Callable[[bytes], Any] = partial(_read_model, cls)
        self._numbers, self._deep, self._simple = False, True, False
        self._rest: Check | None = _walk
        if not _is_model(cls):
            self._compile(cls)

    def _compile(self, cls: Any) -> None:
        try:
            kind = inspect.type_info(cls)
            self._read = msgspec.json.Decoder(cls, dec_hook=_dec_hook).decode
        except Exception as error:
            raise ConfigurationError(f"{self.type} cannot be a message: {error}") from error
        self._deep = _survey(kind, kinds := set[type](), {}) > MAX_DEPTH
        self._write = _write_sorted if kinds & _SETS else _plain
        self._numbers = bool(kinds & _NUMBERS)
        self._rest = _beyond_comparison(kind)
        self._simple = not (self._deep or self._rest)

    def encode(self, message: Any) -> bytes:
        """The message as JSON; ``InvalidMessage`` names the field that cannot be sent."""
        try:
            body = self._write(message)
            if len(body) <= self._max_body:
                self._verify(message, body)
                return body
        except Exception as error:
            raise InvalidMessage(self.type, *_explain(_culprit(message, error))) from error
        raise MessageTooLarge(self.type, len(body), self._max_body, self._advice)

    def written(self, message: Any) -> tuple[bytes, Any]:
        """As ``encode``, and the message as its reader gets it, which ``encode`` finds out anyway."""
        # Not what ``encode`` calls: that is in the way of each event, where a call more costs 1 %.
        try:
            body = self._write(message)
            if len(body) <= self._max_body:
                if self._simple:
                    read = self._read(body)
                    if read == message and not (self._numbers and body.translate(_DIGITS).find(_LONG) >= 0):
                        return body, read
                return body, self._verify(message, body)
        except Exception as error:
            raise InvalidMessage(self.type, *_explain(_culprit(message, error))) from error
        raise MessageTooLarge(self.type, len(body), self._max_body, self._advice)

    def _verify(self, message: Any, body: bytes) -> Any:
        if self._deep and _too_deep(body):
            raise RecursionError(_TOO_DEEP)
        read = self._read(body)
        if read != message or (self._numbers and body.translate(_DIGITS).find(_LONG) >= 0):
            _walk(message, read, 1)
        elif self._rest is not None:
            self._rest(message, read, 1)
        return read

    def decode(self, payload: bytes) -> Any:
        """The message, or ``UnreadableMessage`` with the reason, whatever the bytes are."""
        try:
            if len(payload) > self._max_body:
                raise _Refused(f"the body has {len(payload)} bytes, the limit is {self._max_body}")
            if self._deep and _too_deep(payload):
                raise RecursionError(_TOO_DEEP)
            message = self._read(payload)
            if self._numbers and payload.translate(_DIGITS).find(_LONG) >= 0:
                _walk(message, message, 1)
            elif self._rest is not None:
                self._rest(message, message, 1)
            return message
        except Exception as error:
            field, reason = _explain(error)
            raise UnreadableMessage(self.type, reason if field == "$" else f"{field}: {reason}") from error


_codec = cache(Codec)


def codec_for(cls: type, max_body: int = MAX_BODY) -> Codec:
    """The one codec of a class and limit; ``ConfigurationError`` for a class that JSON cannot carry."""
    return _codec(cls, max_body)
