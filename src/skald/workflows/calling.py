"""PURE. A command that a workflow has called, and the answer to it, as they are stored (see ``asking``).

The command is written in the unit of the journal entry because of which it was called, and with it a letter that nobody
can read yet: it holds the place of the answer. A replay sends nothing. Whoever takes a workflow over sends what has
neither an answer in the journal nor such a letter: its unit was never written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import msgspec

from skald.codec import MAX_BODY, codec_for
from skald.errors import (
    CallRejected,
    ConfigurationError,
    InvalidMessage,
    UndeclaredMessage,
    UnreadableMessage,
    WorkflowError,
)
from skald.message import MAX_KEY, Command, MessageType, Record, child_traceparent, is_key, message_type, slot_of
from skald.messaging.calls import Answer, Handled, command_id, decode_answer
from skald.messaging.compensation import CompensationFailed
from skald.sagas.recovery import Recovery
from skald.unit import AddressKind, EntryKind, Letter, LetterKind
from skald.workflows.loop import user_line
from skald.workflows.signature import Identity, identity_text

HANDLED, GIVEN_UP = message_type(Handled), message_type(CompensationFailed)
MAX_TEXT = 2_000
"""Characters of a rejection that are told."""


class Route(msgspec.Struct, frozen=True):
    """Where a command goes when it is called, and what may come back, by wire name."""

    service: str
    topic: str
    replies: Mapping[str, type]


class Calls:
    """What the workflows of a service may call: named in ``Service(calls=[…])``, connected when the application is."""

    def __init__(self, service: str = "", kinds: Iterable[MessageType] = ()) -> None:
        self.service, self.kinds = service, tuple(kinds)
        self.routes: Mapping[type, Route] = {}
        self.max_body = MAX_BODY
        """Bytes of a command, and of an answer."""
        self._declared = {kind.cls for kind in self.kinds}

    def kind(self, command: object) -> MessageType:
        """Of a command that may be called; raises for any other."""
        if not isinstance(command, Command):
            raise WorkflowError(f"{user_line()}: call({command!r}) takes a command: an instance of a class of Command")
        kind = message_type(type(command))
        if kind.cls not in self._declared:
            service = self.service or "the service of this workflow"
            raise UndeclaredMessage(
                f"{user_line()}: {service} does not declare to call {kind.name}: name it in "
                f"Service({self.service!r}, calls=[{kind.name}])"
            )
        return kind

    def route(self, kind: MessageType) -> Route:
        found = self.routes.get(kind.cls)
        if found is None:
            raise ConfigurationError(
                f"{self.service} calls {kind.name}, and the application is not known here that says who handles it: "
                "connect the service, or replay with all services of the application"
            )
        return found


class Asked(msgspec.Struct, eq=False, kw_only=True):
    """What a workflow has asked of others. A letter holds the place of the answer, which comes as a letter, too."""

    identity: Identity
    future: Any
    """Of the workflow's loop."""
    run: str
    _id: str | None = None

    @property
    def id(self) -> str:
        """Of the letter; the same at every replay."""
        if self._id is None:
            self._id = command_id(self.run, self._name())
        return self._id

    def _name(self) -> str:
        """Unlike any other of its run."""
        return identity_text(self.identity)

    @property
    def letters(self) -> tuple[str, ...]:
        """Those that there may be of it; they go when it is given up."""
        return (self.id,)

    def record(self, time: int) -> Record | None:
        """The message that is sent, if there is one."""
        return None

    @abstractmethod
    def place(self, time: int) -> Letter:
        """Holds the place of the answer."""

    def is_answered_by(self, letter: str) -> bool:
        """Whether a letter that names this call has its answer."""
        return letter == self.id or letter in self.letters

    @abstractmethod
    def verdict(self, payload: bytes) -> EntryKind:
        """Whether an answer is what was asked for."""

    @abstractmethod
    def settle(self, kind: EntryKind, payload: bytes) -> None:
        """Told what the journal says."""

    def __str__(self) -> str:
        name, digest, occurrence = self.identity
        return f"{name}#{occurrence} ({digest.hex()[:8]})"


class Ask(Asked, eq=False, kw_only=True):
    """A command that a workflow has called."""

    kind: MessageType
    calls: Calls
    body: bytes
    key: str
    correlation: str
    timeout: float | None = None
    recovery: Recovery = Recovery()
    """``compensate`` is an ``Undoing``."""
    undoing: Undoing | None = None
    """What it compensates with: then nothing is an answer, too."""
    attempt: int = 1
    retry: int = 0
    """How often its workflow had failed, and was retried."""
    result: bytes | None = None
    """Once it is done."""

    @property
    def name(self) -> str:
        return self.kind.name

    def _name(self) -> str:
        return self._name_after(self.retry)

    def _name_after(self, retry: int) -> str:
        name = f"{identity_text(self.identity)}:{self.attempt}"
        return f"{name}:{retry}" if retry else name

    @property
    def letters(self) -> tuple[str, ...]:
        # The answer to one that was sent before the last retry may still come; it is not sent again then.
        return self.id, *(command_id(self.run, self._name_after(retry)) for retry in range(self.retry))

    def after_retry(self, retry: int) -> None:
        """Its workflow had failed: if it is sent now that is another command, as with ``again``."""
        self.retry, self._id = retry, None

    def again(self, future: Any) -> Ask:
        """Another command of the same content: what answers the first one does not answer this one."""
        return msgspec.structs.replace(self, future=future, attempt=self.attempt + 1, result=None, _id=None)

    def record(self, time: int) -> Record:
        """The command as it is sent."""
        id, topic = self.id, self.calls.route(self.kind).topic
        trace = child_traceparent(None, self.correlation, id)
        return Record(
            0, id, topic, self.key, slot_of(self.key), self.kind.name, self.kind.version, time, self.correlation,
            self.run, trace, self.body,
        )  # fmt: skip

    def place(self, time: int) -> Letter:
        name = identity_text(self.identity)
        return Letter(self.id, LetterKind.CALL, AddressKind.RUN, self.run, name, b"", time)

    def verdict(self, payload: bytes) -> EntryKind:
        type, wanted = decode_answer(payload).type, results(self.kind.cls)
        if type == HANDLED.name:
            done = self.undoing is not None or wanted is None or NoneType in wanted
        elif wanted is None:
            done = type != GIVEN_UP.name
        else:
            done = type in _events(self.kind.cls)
        return EntryKind.CALL_DONE if done else EntryKind.CALL_REJECTED

    def settle(self, kind: EntryKind, payload: bytes) -> None:
        answer = decode_answer(payload)
        message = self._message(answer)
        if kind == EntryKind.CALL_DONE:
            self.result = b"null" if message is None else bytes(answer.body)
            self.future.set_result(message)
            return
        text = "its handler has published nothing" if message is None else bytes(answer.body).decode()[:MAX_TEXT]
        self.future.set_exception(CallRejected(self.name, answer.type, text, message))

    def _message(self, answer: Answer) -> Any:
        if answer.type == HANDLED.name:
            return None
        found = _events(self.kind.cls).get(answer.type) or self.calls.route(self.kind).replies.get(answer.type)
        if found is None:
            raise UnreadableMessage(answer.type, f"{self.name} was answered by it once, and is no more by its handler")
        return codec_for(found, self.calls.max_body).decode(bytes(answer.body))

    def read(self, body: bytes) -> Any:
        """What a person says that it has come to; ``UnreadableMessage`` if it can come to no such thing."""
        wanted = results(self.kind.cls)
        if wanted is None:
            return msgspec.json.decode(body)
        error: UnreadableMessage | None = None
        for cls in wanted:
            if cls is NoneType and body == b"null":
                return None
            if cls is not NoneType:
                try:
                    return codec_for(cls, self.calls.max_body).decode(body)
                except UnreadableMessage as unreadable:
                    error = unreadable
        raise error or UnreadableMessage(self.name, "it comes to nothing: say null")


class Undoing(msgspec.Struct, frozen=True):
    """A command that undoes another one."""

    command: Callable[[Any], Any]
    """Of the ``FailedExecution``."""
    name: str
    guarantee: str = "at_least_once"
    independent: bool = False

    def misfits(self, step: Any) -> list[str]:
        return []


def key_of(kind: MessageType, command: Any, otherwise: str) -> str:
    """The key of a command; its workflow's id, if its class has none."""
    if kind.key is None:
        return otherwise
    value = getattr(command, kind.key)
    key = "" if value is None else str(value)
    if not is_key(key):
        raise InvalidMessage(kind.name, kind.key, f"the key must have 1 to {MAX_KEY} characters, without NUL")
    return key


@lru_cache(maxsize=4_096)
def results(cls: type) -> tuple[type, ...] | None:
    """What a command's class says that a call comes to; ``None`` if it says nothing."""
    for each in cls.__mro__:
        for base in each.__dict__.get("__orig_bases__", ()):
            if get_origin(base) is Command:
                return _classes(get_args(base)[0], f"{cls.__module__}.{cls.__qualname__}")
    return None


@lru_cache(maxsize=4_096)
def _events(cls: type) -> Mapping[str, type]:
    """Those of the results that are events, by wire name."""
    return {message_type(one).name: one for one in results(cls) or () if one is not NoneType}


def _classes(hint: Any, where: str) -> tuple[type, ...] | None:
    if hint is Any or isinstance(hint, TypeVar):
        return None
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    found = tuple(NoneType if member is None else member for member in members)
    for one in found:
        if one is not NoneType and "__message__" not in getattr(one, "__dict__", {}):
            raise ConfigurationError(
                f"{where}: Command[{one}]: name a class of Event itself, which stands above this one, or None"
            )
    return cast("tuple[type, ...]", found)
