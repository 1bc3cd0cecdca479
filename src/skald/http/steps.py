"""Steps that are requests over HTTP, on a client of the user's own (httpx, or one that is used alike).

    charge = http_step("charge", client, "POST", "/charges/{order}", takes=Charge, returns=Charged, compensate=refund)

    charged = await charge(Charge(order.id, order.total))

Every attempt sends the same idempotency key. What an answer means:

    2xx                       done
    408, 425, 429, 503        not done, and tried again: the server has not taken it up
    any other below 500       ``HttpRejected``: not done, and not tried again
    any other, or none        ``HttpUnknown``: it may have been done; tried again, looked up, or undone

A server that cannot be connected to has done nothing. ``rejected`` and ``unknown`` name status codes that mean
something else at a server. What would be sent to another place, because a field that stands in the URL is empty or made
of dots, is not sent, and not tried again: ``HttpUnsendable``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from string import Formatter, punctuation
from typing import Any, Protocol, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from skald.codec import Codec, codec_for
from skald.errors import ConfigurationError, OutcomeUnknown, SkaldError
from skald.messaging.definition import field_names
from skald.retry import NEVER, Backoff, Policy, Retry
from skald.sagas.recovery import Recovery, Undo
from skald.workflows.context import attempt
from skald.workflows.definition import Step
from skald.workflows.loop import user_line

B = TypeVar("B")
R = TypeVar("R")
_WITH_A_BODY = ("POST", "PUT", "PATCH")
_NOT_TAKEN_UP = frozenset({408, 425, 429, 503})
_NOT_CONNECTED = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
"""What httpx raises where nothing was sent; by name, because the client is the user's."""
_IN_A_KEY = punctuation.replace("%", "")
"""What stays as it is in a key, as letters and digits do: all that a header can have, but for the sign of encoding."""
_ELSEWHERE = ("", ".", "..")
"""Segments of a path that mean another place."""
MAX_SHOWN = 200
"""Characters of an answer that stand in an error."""


class HttpRejected(SkaldError):
    """The server has refused the request: it was not done."""

    def __init__(self, request: str, status: int, text: str) -> None:
        super().__init__(f"{request}: {status}: {text[:MAX_SHOWN]}")
        self.status, self.text = status, text


class HttpUnsendable(SkaldError):
    """The message gives no URL of the kind that is meant: nothing was sent."""


class HttpNotTakenUp(SkaldError):
    """The server could not be reached, or was too busy: it was not done, and may be tried again."""


class HttpUnknown(OutcomeUnknown):
    """The request was sent, and what became of it is not known."""


class Answer(Protocol):
    @property
    def status_code(self) -> int: ...

    @property
    def content(self) -> bytes: ...

    @property
    def text(self) -> str: ...


class Client(Protocol):
    """``httpx.AsyncClient``, as far as it is needed."""

    async def request(
        self, method: str, url: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer: ...


class HttpOptions(TypedDict, total=False):
    """See ``skald.step``."""

    retry: Policy | None
    timeout: float | None
    total: float | None
    pause: bool
    compensate: Undo | None
    pivot: bool
    critical: bool
    forward: bool
    human: bool


def http_step(
    name: str,
    client: Callable[[], Client],
    method: str,
    url: str,
    *,
    takes: type[B],
    returns: type[R],
    rejected: Collection[int] = (),
    unknown: Collection[int] = (),
    header: str = "Idempotency-Key",
    lookup: Callable[[B], Any] | None = None,
    **options: Unpack[HttpOptions],
) -> Step[[B], R]:
    """A step that takes one message and sends it as JSON, with POST, PUT and PATCH; ``{fields}`` of it may stand in the
    URL. ``client`` returns the client, in the process in which the step runs. ``returns`` is what the answer's body is
    read as, ``type(None)`` for one that nobody reads. ``lookup`` is a function of a parameter ``request``, as in
    ``skald.step``. In ``header`` the attempt's key is percent-encoded, which changes it only where the step's name has
    spaces, ``%``, or letters beyond ASCII. See above for what status codes mean."""
    known = field_names(takes)
    for _, field, _, _ in Formatter().parse(url):
        if field is not None and field not in known:
            raise ConfigurationError(
                f"{user_line()}: http_step({name!r}): {{{field}}} in the URL is not a field of {takes.__name__} "
                f"({', '.join(known)})"
            )
    method = method.upper()
    encode, read = codec_for(takes).encode, Codec(returns, name=f"the answer to {name}")
    shown = f"{method} {url}"

    async def send(request: Any) -> Any:
        place = _place(url, shown, {field: quote(str(getattr(request, field)), safe="") for field in known})
        headers = {header: quote(attempt().key, safe=_IN_A_KEY)}
        content = None
        if method in _WITH_A_BODY:
            content, headers["Content-Type"] = encode(request), "application/json"
        try:
            answer = await client().request(method, place, content=content, headers=headers)
        except Exception as error:
            text = f"{shown}: {type(error).__name__}: {error}"
            if _NOT_CONNECTED.intersection(cls.__name__ for cls in type(error).__mro__):
                raise HttpNotTakenUp(text) from error
            raise HttpUnknown(text) from error
        status = answer.status_code
        if status in unknown:
            raise HttpUnknown(f"{shown}: {status}")
        if status in rejected:
            raise HttpRejected(shown, status, answer.text)
        if 200 <= status < 300:
            return None if returns is type(None) else read.decode(answer.content)
        if status in _NOT_TAKEN_UP:
            raise HttpNotTakenUp(f"{shown}: {status}")
        if status < 500:
            raise HttpRejected(shown, status, answer.text)
        raise HttpUnknown(f"{shown}: {status}")

    send.__name__ = send.__qualname__ = name
    send.__annotations__ = {"request": takes, "return": returns}
    options["retry"] = _policy(options.get("retry"), Recovery.of(options))
    return Step(send, lookup=lookup, **options)


def _place(url: str, shown: str, fields: dict[str, str]) -> str:
    """The URL for these fields, each of which stays where it stands: quoting leaves dots alone, and clients and servers
    take such segments out of a path. After the path they mean nothing."""
    for segment in url.partition("?")[0].split("/"):
        if "{" in segment and (found := segment.format(**fields)) in _ELSEWHERE:
            raise HttpUnsendable(f"{shown}: {segment} is {found!r}, which is another place: check it before the step")
    return url.format(**fields)


def _policy(retry: Policy | None, recovery: Recovery) -> Policy:
    """What was rejected, or not even sent, is not tried again, unless there is a rule for that."""
    # First, since it treats one rule for all errors unlike the rules by class that are made of it here.
    retry = recovery.patience(retry)
    if recovery.forward and isinstance(retry, Retry):
        return retry  # which ``Step`` refuses
    rules = retry if isinstance(retry, Mapping) else {} if retry is None else {"*": retry}
    found: dict[Any, Retry | Backoff] = {HttpRejected: NEVER, HttpUnsendable: NEVER, **rules}
    return found
