"""Given, when, then: one service by itself, its handlers, compensations and processes.

    def test_a_cancelled_order_is_refunded() -> None:
        (
            Scenario(payments, provide={Gateway: FakeGateway()})
            .given(OrderPlaced("o-1", 7))
            .when(OrderCancelled("o-1"))
            .then(PaymentRefunded("o-1", 7), effects={"charge": "undone"})
        )

A scenario is a value: what is common to several tests can be kept, and ``then`` plays it from its beginning. The
service is the real one, in the runtime that it has in production, on a store in memory that nobody sees. Time is the
scenario's own: ``after`` moves it, and with it retries, delayed messages and the timeouts of processes.

``then`` is exact: all that the service has published since ``when``, and nothing that a handler has raised, unless that
is said. Workflows that handlers start are not run: they have scenarios of their own.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from skald.errors import ConfigurationError, MarkMoved
from skald.messaging.compensation import EffectState
from skald.messaging.definition import field_names
from skald.messaging.processes import RUNNING, Kept, Process, Role
from skald.messaging.service import Service
from skald.store import Row
from skald.testing.report import Report, fits
from skald.testing.stage import Provided, Stage, check_provided, is_message, play, seconds_of, staged, values_of
from skald.unit import Mark, MarkKind, Unit
from skald.workflows.loop import user_line

Happening = Any
"""A message that comes, an SQL statement that is run, or a function that is called while the service is connected."""
Errors = type[BaseException] | BaseException

_EFFECTS = "SELECT handler, key, state, refused FROM skald_effects ORDER BY handler, key"
_PARKED = "SELECT handler FROM skald_deliveries WHERE state = 'parked' ORDER BY handler"
_STARTED = "SELECT run, workflow, id, input FROM skald_workflows ORDER BY started_at, run"
_SIGNALLED = "SELECT id, name, to_id, to_key, payload FROM skald_letters WHERE kind = 0 ORDER BY time, id"
_PROCESS = "SELECT state, payload FROM skald_marks WHERE kind = 'process' AND name = :name AND key = :key"
_TIMEOUTS = "SELECT handler, position, due FROM skald_deliveries WHERE origin = :origin"


class _Before(msgspec.Struct):
    """What stood when ``when`` began."""

    position: int
    parked: Sequence[str]
    refused: Mapping[tuple[str, str], int]
    started: Sequence[Row]
    signalled: Sequence[Row]


class Scenario:
    """``provide`` replaces what the service's providers make, by the class that handlers ask for."""

    def __init__(self, service: Service, *, provide: Provided | None = None) -> None:
        self._service, self._provide = service, dict(provide or {})
        self._given: tuple[Happening, ...] = ()
        self._when: tuple[Happening, ...] = ()
        check_provided(service, self._provide)

    def given(self, *happened: Happening) -> Scenario:
        """What came before: messages, the state of a process, SQL, and functions that are called, in this order."""
        if self._when:
            raise ConfigurationError(f"{user_line()}: what is given comes before what happens: move it before when()")
        return self._with("_given", happened)

    def when(self, *happening: Happening) -> Scenario:
        """What happens: messages, one after the other, SQL, and functions that are called."""
        return self._with("_when", happening)

    def after(self, time: timedelta | float) -> Scenario:
        """So many seconds go by."""
        return self._with("_when", (timedelta(seconds=seconds_of(time)),))

    def _with(self, which: str, more: Sequence[Happening]) -> Scenario:
        for one in more:
            self._check(one)
        found = copy.copy(self)
        setattr(found, which, (*getattr(self, which), *more))
        return found

    def _check(self, one: Happening) -> None:
        if isinstance(one, Process):
            self._role(type(one))
        elif is_message(one):
            handled = {kind.cls: kind.name for handler in self._service.handlers for kind in handler.types}
            if type(one) not in handled:
                raise ConfigurationError(
                    f"{user_line()}: {self._service.name} does not handle {type(one).__name__}; it handles: "
                    f"{', '.join(sorted(handled.values())) or 'nothing'}"
                )
        elif isinstance(one, type) or not (isinstance(one, str | timedelta) or callable(one)):
            raise ConfigurationError(
                f"{user_line()}: {one!r} cannot happen to {self._service.name}: use a message, SQL, or a function"
            )

    def _role(self, cls: type[Process]) -> Role:
        """Of a process that is known by its class, with a field that says which one it is."""
        roles = [handler.keeps.role for handler in self._service.handlers if handler.keeps and handler.keeps.role]
        fields = field_names(cls)
        for role in roles:
            if role.process.cls is cls and role.by in fields:
                return role
        if any(role.process.cls is cls for role in roles):
            raise ConfigurationError(
                f"{user_line()}: which {cls.__name__} it is stands in none of its fields ({', '.join(fields)})"
            )
        raise ConfigurationError(f"{user_line()}: {self._service.name} has no process whose state is {cls.__name__}")

    # --- what is expected ---------------------------------------------------------------------------------------------

    def then(
        self,
        *published: Any,
        rows: Mapping[str, Sequence[Any]] | None = None,
        state: Process | None = None,
        ended: bool = False,
        timeouts: Mapping[str, float] | None = None,
        raised: Errors | Sequence[Errors] = (),
        parked: str | Sequence[str] = (),
        effects: Mapping[str, str] | None = None,
        refused: str | Sequence[str] = (),
        started: Sequence[tuple[Any, ...]] = (),
        signalled: Sequence[tuple[Any, ...]] = (),
    ) -> None:
        """Plays it, and compares. Raises AssertionError with a diff.

        ``published``: every message since ``when``, each as it is or by its class, in the order of the log, in which a
        commit has its events before its commands; a set stands for its members in any order. ``rows``: what SQL
        statements find. ``state``: of the process that its fields name, which still runs or has ``ended``;
        ``timeouts``: the seconds by name until those that it has set. ``raised``: what handlers have raised since the
        beginning, as types, or as errors with this text. ``parked``: handlers whose messages wait for somebody.
        ``effects``: what is remembered of handlers that can be compensated; ``refused``: those that refused what came
        too late. ``started``: workflows, as tuples with their id and arguments. ``signalled``: signals, as tuples with
        the id or the key of the workflow and the value.
        """
        __tracebackhide__ = True
        where = user_line()
        if not self._when:
            raise ConfigurationError(f"{where}: nothing happens: say when(…) or after(…)")
        if state is None and (ended or timeouts is not None):
            raise ConfigurationError(f"{where}: ended= and timeouts= are those of a process: say its state=, too")
        for known in effects or {}:
            self._check_effect(known, where)
        report = Report(f"{where}: the scenario of {self._service.name}")

        async def compare() -> tuple[list[str], BaseException | None]:
            async with staged(self._service, self._provide, {}) as stage:
                await stage.lab.rest_workflows()
                before = await self._play(stage)
                came = [stage.read(record) for record in await stage.records(before.position)]
                report.compare("published", published, came)
                errors = [one.error for one in stage.raised]
                stranger = _compare_errors(report, _several(raised), errors)
                now = await _standing(stage)
                left = Counter(now.parked) - Counter(before.parked)
                report.compare("parked", sorted(_several(parked)), sorted(left.elements()))
                late = Counter(now.refused) - Counter(before.refused)
                report.compare("refused", sorted(_several(refused)), sorted(name for name, _ in late.elements()))
                report.compare("started", [_named(one) for one in started], self._starts(before, now))
                report.compare("signalled", [_named(one) for one in signalled], _signals(before, now, signalled))
                if effects is not None:
                    report.compare_all("effects", effects, await _effects(stage))
                for sql, expected in (rows or {}).items():
                    report.compare(f"rows of {sql}", expected, values_of(await stage.service.fetch(sql)))
                if state is not None:
                    await self._compare_process(stage, report, state, ended, timeouts)
                return stage.told, stranger

        report.raise_if_any(*play(compare))

    def _starts(self, before: _Before, now: _Before) -> list[tuple[Any, ...]]:
        known = {workflow.name: workflow.signature for workflow in self._service.workflows}
        old, found = {row["run"] for row in before.started}, []
        for row in now.started:
            if row["run"] not in old:
                name, body = row["workflow"], bytes(row["input"])
                # One of another service would never be run.
                args, named = known[name].decode(body) if name in known else ([f"not of {self._service.name}"], {})
                found.append((name, row["id"], *args, *named.values()))
        return found

    def _check_effect(self, name: str, where: str) -> None:
        known = [handler.name for handler in self._service.handlers if handler.keeps and handler.keeps.compensated]
        if name.partition(" ")[0] not in known:
            raise ConfigurationError(
                f"{where}: effects={{{name!r}: …}}: no handler of this name is compensated; there are: "
                f"{', '.join(known) or 'none'}"
            )

    async def _compare_process(
        self, stage: Stage, report: Report, state: Process, ended: bool, timeouts: Mapping[str, float] | None
    ) -> None:
        role = self._role(type(state))
        name, key = role.process.name, str(getattr(state, role.by))
        found = await stage.service.fetch(_PROCESS, name=name, key=key)
        if not found:
            report.compare(f"the process {name} {key}", [state], [])
            return
        kept = msgspec.json.decode(bytes(found[0]["payload"]), type=Kept)
        report.compare(f"the process {name} {key}", [state], [msgspec.json.decode(kept.state, type=type(state))])
        report.compare("it", [_life(ended)], [_life(found[0]["state"] != RUNNING)])
        if timeouts is not None:
            rows = await stage.service.fetch(_TIMEOUTS, origin=f"{name}:{key}")
            due = {(row["handler"], row["position"]): (row["due"] - stage.lab.clock.now()) / 1e6 for row in rows}
            came = {each: due[role.process.timeouts[each], number] for each, number in kept.timeouts.items()}
            report.compare_all("timeouts", timeouts, came)

    # --- playing it ---------------------------------------------------------------------------------------------------

    async def _play(self, stage: Stage) -> _Before:
        for one in self._given:
            await self._happen(stage, one, "given")
        before = await _standing(stage)
        for one in self._when:
            await self._happen(stage, one, "when")
        return before

    async def _happen(self, stage: Stage, one: Happening, word: str) -> None:
        if isinstance(one, timedelta):
            await stage.lab.advance(one)
            return
        stage.tell(f"{word} {one.__name__ if inspect.isfunction(one) else one!r}")
        if isinstance(one, Process):
            await self._store(stage, one)
        elif is_message(one):
            await stage.publish(one)
        else:
            await stage.do(one)

    async def _store(self, stage: Stage, state: Process) -> None:
        role = self._role(type(state))
        key = str(getattr(state, role.by))
        kept = msgspec.json.encode(Kept(msgspec.Raw(msgspec.json.encode(state))))
        step, now = getattr(state, "step", None), stage.lab.clock.now()
        mark = Mark(
            MarkKind.PROCESS, role.process.name, key, 0, RUNNING, now, kept, None if step is None else str(step), key
        )
        try:
            async with stage.service.store.transaction() as tx:
                await tx.apply(Unit(marks=(mark,)))
        except MarkMoved:
            raise ConfigurationError(
                f"{user_line()}: {state!r} cannot be given: what came before it has made this process already; give "
                "its state first, or what leads to it"
            ) from None


async def _standing(stage: Stage) -> _Before:
    parked = tuple(row["handler"] for row in await stage.service.fetch(_PARKED))
    refused = {
        (row["handler"], row["key"]): len(msgspec.json.decode(row["refused"]))
        for row in await stage.service.fetch(_EFFECTS)
        if row["refused"] is not None
    }
    started, signalled = await stage.service.fetch(_STARTED), await stage.service.fetch(_SIGNALLED)
    return _Before(await stage.position(), parked, refused, started, signalled)


def _signals(before: _Before, now: _Before, expected: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    codecs = {signal.name: signal.codec for signal, *_ in expected}
    old, found = {row["id"] for row in before.signalled}, []
    for row in now.signalled:
        if row["id"] not in old:
            codec, body = codecs.get(row["name"]), bytes(row["payload"])
            value = msgspec.json.decode(body) if codec is None else codec.decode(body)
            found.append((row["name"], row["to_id"] or row["to_key"], value))
    return found


def _named(one: tuple[Any, ...]) -> tuple[Any, ...]:
    """With the name of the workflow or the signal in place of itself."""
    return one[0].name, *one[1:]


async def _effects(stage: Stage) -> Mapping[str, str]:
    """By handler; by handler and key, where one has several."""
    rows = await stage.service.fetch(_EFFECTS)
    keys = Counter(row["handler"] for row in rows)
    names = (row["handler"] if keys[row["handler"]] == 1 else f"{row['handler']} {row['key']}" for row in rows)
    return {name: EffectState(row["state"]).value for name, row in zip(names, rows, strict=True)}


def _compare_errors(report: Report, expected: Sequence[Errors], came: Sequence[BaseException]) -> BaseException | None:
    """Returns one that nobody expected."""
    strangers = [error for error in came if not any(fits(one, error) for one in expected)]
    missing = [one for one in expected if not any(fits(one, error) for error in came)]
    if strangers or missing:
        report.compare("raised", [one for one in expected if one not in missing] + missing, [*came])
    return strangers[0] if strangers else None


def _several(some: Any) -> Sequence[Any]:
    return tuple(some) if isinstance(some, Sequence) and not isinstance(some, str) else (some,)


def _life(ended: bool) -> str:
    return "has ended" if ended else "runs"
