"""PURE. How the arguments and results of workflows and steps are stored, and how calls are told apart."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec.structs import astuple

from skald.codec import Codec
from skald.errors import ConfigurationError, UnreadableMessage

Identity = tuple[str, bytes, int]
"""Of a call: name, digest of the arguments, occurrence among the calls that are equal in both."""


def identity_text(identity: Identity) -> str:
    name, digest, occurrence = identity
    return f"{name}:{digest.hex()}:{occurrence}"


def identity_of(text: str) -> Identity:
    """From its text."""
    name, digest, occurrence = text.rsplit(":", 2)
    return name, bytes.fromhex(digest), int(occurrence)


def digest_of(body: bytes) -> bytes:
    """Of encoded arguments."""
    return blake2b(body, digest_size=8).digest()


_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Signature:
    """How the arguments and the result of a function are stored."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = inspect.unwrap(function).__code__
        self.where = f"{code.co_filename}:{code.co_firstlineno}: {function.__name__}"
        try:
            hints = typing.get_type_hints(function)
        except NameError as error:
            raise ConfigurationError(
                f"{self.where}: the annotation {error.name!r} cannot be resolved; import it outside of TYPE_CHECKING"
            ) from error
        fields: list[Any] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigurationError(
                    f"{self.where}: name its parameters instead of *{name}; they are stored by name"
                )
            kind = hints.get(name, Any)
            default = () if parameter.default is parameter.empty else (parameter.default,)
            fields.append((name, kind, *default))
        # Without defaults, so that a parameter that is added with one does not change the digests of older calls.
        self._struct = msgspec.defstruct(function.__name__, fields, frozen=True, omit_defaults=True)
        self.has_defaults = any(len(field) > 2 for field in fields)
        self._names = self._struct.__struct_fields__
        self._named = [name for name, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY]
        self._arguments = Codec(self._struct)
        self.result = Codec(hints.get("return", Any), name=f"the result of {function.__name__}")

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as JSON; ``InvalidMessage`` names the part that cannot be stored."""
        return self._arguments.encode(self._struct(*args, **kwargs))

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Any]:
        """As ``encode``, and what ``unpacked`` makes a copy of them of."""
        return self._arguments.written(self._struct(*args, **kwargs))

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes, Any]:
        """As ``written``, with their digest."""
        body, copy = self._arguments.written(self._struct(*args, **kwargs))
        return body, blake2b(body, digest_size=8).digest(), copy

    @cached_property
    def _whole(self) -> tuple[Callable[..., Any], Codec]:
        if not self.has_defaults:
            return self._struct, self._arguments
        name, bases = self._struct.__name__, (self._struct,)
        struct = msgspec.defstruct(name, (), bases=bases, frozen=True, omit_defaults=False)
        return struct, Codec(struct)

    def input(self, args: tuple[Any, ...]) -> tuple[bytes, Any]:
        """The arguments of a workflow, and what ``unpacked`` makes a copy of them of. They have the defaults of today,
        which they keep whatever the code says later."""
        struct, codec = self._whole
        return codec.written(struct(*args))

    def whole(self, body: bytes) -> bytes:
        """``input`` of encoded arguments."""
        codec = self._whole[1]
        return body if codec is self._arguments else codec.encode(codec.decode(body))

    def agrees(self, given: bytes, stored: bytes) -> bool:
        """Whether each of the given arguments is the stored one. What was stored before a parameter was added has the
        default of it."""
        if given == stored:
            return True
        try:
            known = _raw(self.whole(stored))
        except UnreadableMessage:
            return False
        return all(known.get(name) == value for name, value in _raw(given).items())

    def read(self, body: bytes) -> Any:
        """The arguments as attributes."""
        return self._arguments.decode(body)

    def decode(self, body: bytes) -> tuple[Sequence[Any], dict[str, Any]]:
        """Positional and named arguments."""
        return self.unpacked(self._arguments.decode(body))

    def unpacked(self, arguments: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        named = self._named
        if not named:
            return astuple(arguments), {}
        return (
            [getattr(arguments, name) for name in self._names if name not in named],
            {name: getattr(arguments, name) for name in named},
        )
