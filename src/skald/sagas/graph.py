"""PURE. Sagas composed at run time, as a graph of steps.

    travel = (
        Saga("travel", deadline=600)
        .step("flight", reserve_flight)
        .step("hotel", reserve_hotel)
        .step("payment", charge, after=["flight", "hotel"])
    )
    outcome = await travel.run(request, id="t-1")
    outcome.payment

A parameter of a step that is named like an earlier step gets that one's result, and waits for it; all others are the
saga's own, by name, in the order in which they first appear. Steps run as soon as what they wait for is done, at once
where nothing is between them. When one fails, no further ones begin, those that run may end, and then all is undone:
what no path connects at once. A step can only wait for earlier ones, so that no graph has a cycle.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter
from keyword import iskeyword
from typing import Any, cast

import msgspec

from skald.errors import ConfigurationError
from skald.sagas.course import Course
from skald.sagas.saga import SagaWorkflow
from skald.workflows.definition import Step
from skald.workflows.loop import running, user_line
from skald.workflows.signature import Signature


class Node(msgspec.Struct, frozen=True):
    """``after`` are the nodes that it waits for; ``before`` all those on the paths that lead to it."""

    name: str
    step: Step[..., Any]
    parameters: tuple[str, ...]
    after: tuple[str, ...]
    before: frozenset[str]


class Saga(SagaWorkflow[..., Any]):
    """A saga as a graph. Its result has an attribute for each step, ``None`` where one was passed over."""

    def __init__(self, name: str, *, deadline: float | None = None) -> None:
        if "," in name or not name.isprintable() or not (deadline is None or deadline > 0):
            raise ConfigurationError(
                f"{user_line()}: Saga({name!r}, deadline={deadline}): a printable name without a comma, and more than "
                "0 seconds"
            )

        async def run(*args: Any) -> Any:
            return await self._run(args)

        self._nodes: dict[str, Node] = {}
        self._inputs: dict[str, Parameter] = {}
        self._function = run
        self._describe()
        super().__init__(run, name=name, deadline=deadline)

    @property
    def before(self) -> Mapping[str, frozenset[str]]:
        return {node.name: node.before for node in self._nodes.values()}

    def step(self, name: str, step: Step[..., Any], *, after: Iterable[str] = ()) -> Saga:
        """Adds a step, to run after others, and after those whose results it takes. Returns this saga."""
        where = f"{user_line()}: {self.name}.step({name!r})"
        if not isinstance(step, Step):
            raise ConfigurationError(f"{where}: {step!r} is no step; make it one with @step")
        if not name.isidentifier() or iskeyword(name):
            raise ConfigurationError(f"{where}: use a name that a parameter and an attribute can have")
        if name in self._nodes:
            raise ConfigurationError(f"{where}: there is a step of this name already")
        if name in self._inputs:
            raise ConfigurationError(f"{where}: an earlier step takes {name!r}: add this one before it, or rename it")
        hints, parameters = typing.get_type_hints(step.function), inspect.signature(step.function).parameters
        wanted = dict.fromkeys([*after, *(one for one in parameters if one in self._nodes)])
        if missing := [one for one in wanted if one not in self._nodes]:
            known = ", ".join(self._nodes) or "none yet"
            raise ConfigurationError(
                f"{where}: after={missing[0]!r}: it can wait only for steps that were added before ({known}), so that "
                "there are no cycles"
            )
        for one, parameter in parameters.items():
            if one not in self._nodes:
                self._add_input(where, parameter.replace(annotation=hints.get(one, Any)))
        before = frozenset(wanted).union(*(self._nodes[one].before for one in wanted))
        self._nodes[name] = Node(name, step, tuple(parameters), tuple(wanted), before)
        self._describe()
        self.signature = Signature(self._function)
        return self

    def _add_input(self, where: str, parameter: Parameter) -> None:
        mine = parameter.replace(kind=Parameter.POSITIONAL_OR_KEYWORD)
        known = self._inputs.setdefault(mine.name, mine)
        if known.annotation != mine.annotation:
            raise ConfigurationError(
                f"{where}: {mine.name!r} is {mine.annotation} here, and {known.annotation} in an earlier step: as an "
                "argument of the saga it has one type"
            )

    def _describe(self) -> None:
        """Gives the function the signature that it has by now. Parameters with a default come last."""
        inputs = sorted(self._inputs.values(), key=lambda one: one.default is not Parameter.empty)
        fields = [(node.name, _or_none(node.step)) for node in self._nodes.values()]
        outcome = msgspec.defstruct("Outcome", fields, frozen=True)
        self._order, self._outcome = [one.name for one in inputs], outcome
        described = cast("Any", self._function)
        described.__signature__ = inspect.Signature(inputs)
        described.__annotations__ = {**{one.name: one.annotation for one in inputs}, "return": outcome}

    # --- running ------------------------------------------------------------------------------------------------------

    async def _run(self, args: Sequence[Any]) -> Any:
        run = _Run(self._nodes, dict(zip(self._order, args, strict=False)))
        return self._outcome(**await run.all())


class _Run:
    """One run of a graph, as a saga or as a plain function."""

    def __init__(self, nodes: Mapping[str, Node], values: dict[str, Any]) -> None:
        self._nodes, self._values = nodes, values
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: list[Exception] = []
        loop = running()
        self._course = None if loop is None else cast("Course", loop.host.conductor)

    async def all(self) -> dict[str, Any]:
        """The results; raises the first failure when nothing runs any more."""
        for node in self._nodes.values():
            self._tasks[node.name] = asyncio.create_task(self._one(node), name=node.name)
        if self._tasks:
            try:
                await asyncio.wait(self._tasks.values())
            except asyncio.CancelledError:
                for task in self._tasks.values():
                    task.cancel()
                raise
        if self._failures:
            raise self._failures[0]
        return {name: self._values[name] for name in self._nodes}

    async def _one(self, node: Node) -> None:
        if node.after:
            await asyncio.wait([self._tasks[name] for name in node.after])
        if self._failures:
            return
        # What the caller has left out has a default.
        arguments = {name: self._values[name] for name in node.parameters if name in self._values}
        try:
            if self._course is None:
                self._values[node.name] = await node.step(**arguments)
            else:
                self._values[node.name] = await self._course.execute(node.name, node.step, (), arguments)
        except Exception as failure:
            self._failures.append(failure)


def _or_none(step: Step[..., Any]) -> Any:
    """What a step may come to."""
    return typing.Optional[typing.get_type_hints(step.function).get("return", Any)]  # noqa: UP045 - not every hint has an |
