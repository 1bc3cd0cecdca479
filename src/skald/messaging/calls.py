"""PURE. Commands that workflows call, and what answers them.

A command that is called goes to a topic of its own (``inventory.calls``), and to the handler that it goes to anyway.
The event that this publishes is the answer: it is known by its cause, which is the command. Where there is none, the
service says ``Handled``. So a participant needs no knowledge of who asks.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from skald.message import Event, Record
from skald.unit import Reply

TOPIC = ".calls"
"""Behind the name of the service that handles the command."""


class Handled(Event, key="key", name="skald.Handled"):
    """A command that a workflow called was handled, and its handler has published nothing that would answer it.
    Published by the service itself, in the commit of the handler."""

    service: str
    handler: str
    key: str


class Answer(msgspec.Struct, frozen=True):
    """The event that answers a call, as it is journalled."""

    type: str
    body: msgspec.Raw


decode_answer = msgspec.json.Decoder(Answer).decode


def command_id(run: str, call: str) -> str:
    """Of the command of a call, the same whenever it is asked for. A UUIDv8, which no other message has; it begins as
    the run does, so that the ids of an hour stand together."""
    digest = blake2b(f"{run}:{call}".encode(), digest_size=9).hexdigest()
    return f"{run[:14]}8{digest[:3]}-a{digest[3:6]}-{digest[6:]}"


def is_called(id: str | None) -> bool:
    """Whether a message of this id was called by a workflow."""
    return id is not None and id[14:15] == "8"


def replied(event: Record, *, heard: bool = False) -> Reply:
    """To the call that an event answers. Whoever does not wait for it, any more or at all, has no letter of this id."""
    answer = Answer(event.type, msgspec.Raw(event.payload or b"null"))
    return Reply(event.causation_id or "", msgspec.json.encode(answer), heard)
