"""Dependencies of handlers: made once per process by the functions that a service registers, found by type."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, get_args, get_origin

import msgspec

from skald.errors import ConfigurationError

_GENERATORS = (AsyncIterator, AsyncGenerator, Iterator, Generator)


class Provider(msgspec.Struct, frozen=True):
    makes: type
    function: Callable[..., Any]
    needs: dict[str, type]


def provider_of(function: Callable[..., Any]) -> Provider:
    where = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}: {function.__name__}"
    hints = typing.get_type_hints(function)
    result = hints.pop("return", None)
    if get_origin(result) in _GENERATORS:
        result = get_args(result)[0]
    if not isinstance(result, type) or result is type(None):
        raise ConfigurationError(f"{where}: annotate what it returns; handlers ask for it by that class")
    return Provider(result, function, hints)


async def provide(providers: Mapping[type, Provider], wanted: set[type], stack: AsyncExitStack) -> dict[type, Any]:
    """Makes what is wanted and what that needs; clean-up is left on ``stack``, to run in reverse order."""
    made: dict[type, Any] = {}

    async def make(cls: type, path: tuple[type, ...]) -> Any:
        if cls in made:
            return made[cls]
        if cls in path:
            raise ConfigurationError(f"providers need each other: {' -> '.join(t.__name__ for t in (*path, cls))}")
        provider = providers.get(cls)
        if provider is None:
            raise ConfigurationError(
                f"{path[-1].__name__ if path else 'a handler'} asks for {cls.__name__}, which nothing provides: "
                f"register a function that returns {cls.__name__} with @service.provide"
            )
        arguments = {name: await make(need, (*path, cls)) for name, need in provider.needs.items()}
        made[cls] = await _call(provider.function, arguments, stack)
        return made[cls]

    for cls in wanted:
        await make(cls, ())
    return made


async def _call(function: Callable[..., Any], arguments: dict[str, Any], stack: AsyncExitStack) -> Any:
    if inspect.isasyncgenfunction(function):
        return await stack.enter_async_context(asynccontextmanager(function)(**arguments))
    if inspect.isgeneratorfunction(function):
        return stack.enter_context(contextmanager(function)(**arguments))
    result = function(**arguments)
    return await result if inspect.isawaitable(result) else result
