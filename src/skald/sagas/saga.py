"""PURE. Sagas as users write them, from plain functions.

    @saga(deadline=600)
    async def launch(request: Request) -> Machine:
        capacity = await allocate(request)
        ...

    machine = await launch.run(request, id=request.id)      # raises SagaCompensated, naming the step that has failed

A saga is a workflow: everything that one can it can too, but for beginning anew with an empty history.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from skald.errors import ConfigurationError, WorkflowError
from skald.sagas.course import Course
from skald.workflows.definition import Host, Workflow
from skald.workflows.loop import running
from skald.workflows.replay import Machine

P = ParamSpec("P")
R = TypeVar("R")


class SagaWorkflow(Workflow[P, R]):
    """See ``saga``."""

    style = "orchestration"

    def __init__(
        self,
        function: Callable[P, Coroutine[Any, Any, R]],
        *,
        name: str | None = None,
        deadline: float | None = None,
    ) -> None:
        super().__init__(function, name=name)
        self.deadline = deadline
        if deadline is not None and not deadline > 0:
            raise ConfigurationError(f"{self.signature.where}: deadline={deadline} must be more than 0 seconds")

    @property
    def before(self) -> Mapping[str, frozenset[str]] | None:
        """In a graph, the nodes on the paths that lead to each."""
        return None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """The plain function, for tests."""
        if running() is not None:
            raise WorkflowError(
                f"inside a workflow, start the saga {self.name!r} with {self.name}.run(): as a plain function it would "
                "undo nothing"
            )
        return super().__call__(*args, **kwargs)

    def bounded(self, host: Host, args: Sequence[Any], kwargs: dict[str, Any]) -> Coroutine[Any, Any, R]:
        """The function, and when it fails its compensations."""
        work = cast("Any", self.function)(*args, **kwargs)
        return Course(cast("Machine", host), self.deadline, self.before).run(work)


class _SagaDecorator(Protocol):
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> SagaWorkflow[P, R]: ...


@overload
def saga(function: Callable[P, Coroutine[Any, Any, R]], /) -> SagaWorkflow[P, R]: ...
@overload
def saga(*, name: str | None = None, deadline: float | None = None) -> _SagaDecorator: ...
def saga(function: Any = None, /, **options: Any) -> Any:
    """A saga: a workflow whose finished steps are undone, last first, when it fails or is cancelled.

    ``deadline``: after so many seconds it fails with TimeoutError, unless its pivot is done by then.
    """
    if function is not None:
        return SagaWorkflow(function, **options)
    return lambda function: SagaWorkflow(function, **options)
