"""PURE. How the arguments and results of workflows and steps are stored, and how calls are told apart."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec.structs import astuple

from skald.codec import Codec
from skald.errors import ConfigurationError

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
        self._names = self._struct.__struct_fields__
        self._named = [name for name, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY]
        self._arguments = Codec(self._struct)
        self.result = Codec(hints.get("return", Any), name=f"the result of {function.__name__}")

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as JSON; ``InvalidMessage`` names the part that cannot be stored."""
        return self._arguments.encode(self._struct(*args, **kwargs))

    def decode(self, body: bytes) -> tuple[Sequence[Any], dict[str, Any]]:
        """Positional and named arguments."""
        arguments = self._arguments.decode(body)
        named = self._named
        if not named:
            return astuple(arguments), {}
        return (
            [getattr(arguments, name) for name in self._names if name not in named],
            {name: getattr(arguments, name) for name in named},
        )
