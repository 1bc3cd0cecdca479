"""PURE. The deterministic event loop on which a workflow runs: a ready queue and a virtual clock, and no I/O.

asyncio works on it as on any other loop (gather, wait, timeout, TaskGroup, Queue, Lock, sleep, cancellation), and in
the same order whenever the same things are delivered in the same order. Three rules make that so:

- It is turned from outside, by ``run``, to quiescence: until nothing is ready. Between two turns somebody completes one
  future or moves the clock. ``run`` belongs into a plain callback of the process's own loop and never into a task,
  because from Python 3.14 on a task cannot be entered while another one runs.
- ``time`` stands still but for ``advance``.
- Tasks and futures hash by the number of their creation, because TaskGroup and ``wait`` keep them in sets, and a set of
  addresses is cancelled in another order at each replay. The upper bits are the workflow's own (``salt``): the sets
  that asyncio keeps over all loops would otherwise be full of equal hashes.

asyncio's ``as_completed`` keeps bare coroutines in a set, whose order no loop can know: give it tasks if what they do
first must come in order (drawing random numbers); steps are told apart by their arguments, and do not mind.

What cannot work here, because its outcome would not be journalled, raises at the call, with the line and the remedy.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import Future, Handle, Task, TimerHandle
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from heapq import heappop, heappush
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from skald.errors import NeverIdle, NotInWorkflow

T = TypeVar("T")

NEVER = 253_402_300_799.0
"""Seconds since 1970, the last of the year 9999: a timer beyond it does not fire."""
MOST_TURNS = 1_000_000
"""Callbacks in one ``run``, after which a workflow counts as one that never waits."""
MOST_THROWS = 100
_OURS = str(Path(__file__).parents[1])
_ASYNCIO = str(Path(asyncio.__file__).parent)


class _Future(Future[Any]):
    __slots__ = ("number",)

    number: int

    def __hash__(self) -> int:
        return self.number


class _Task(Task[Any]):
    __slots__ = ("number",)

    number: int

    def __hash__(self) -> int:
        return self.number


class _Handle(Handle):
    """asyncio's own looks for a debug mode and asks for the context, which costs more than the call."""

    __slots__ = ()

    def __init__(self, callback: Callable[..., Any], args: Sequence[Any], context: Context) -> None:
        self._callback, self._args, self._context, self._cancelled = callback, args, context, False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = _nothing, ()


def _nothing() -> None:
    pass


class WorkflowLoop(asyncio.AbstractEventLoop):
    """``time`` is where its clock stands at first, seconds since 1970. ``host`` is whatever runs on it.

    ``complain`` is told what a normal loop would hand to its exception handler.
    """

    def __init__(
        self,
        time: float = 0.0,
        *,
        salt: int = 0,
        host: Any = None,
        complain: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.host = host
        self._now = time
        self._number = salt << 20
        self._base = salt << 20
        self._ready: deque[Handle] = deque()
        self.timers: list[tuple[float, int, TimerHandle]] = []
        self._tasks: list[tuple[_Task, Context]] = []
        self._look_at = 32
        self._generators: list[AsyncGenerator[Any, Any]] = []
        self._keep = self._generators.append
        self._complain = complain
        self._running = self._looking = False
        self._ended: BaseException | None = None

    # --- turned from outside ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs until nothing is ready. Raises ``NeverIdle`` for a workflow that is always ready again."""
        outer, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        # Kept until the end: when the garbage collector finds them is no business of a workflow.
        sys.set_asyncgen_hooks(self._keep, None)
        self._running = True
        ready, left = self._ready, MOST_TURNS
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    try:
                        handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                    except SystemExit:
                        pass  # of the workflow's own code: its task has ended with it, and nothing else has to
                    except KeyboardInterrupt:
                        raise
                    except BaseException as error:
                        self.call_exception_handler({"message": "a callback has failed", "exception": error})
                left -= 1
                if not left:
                    raise NeverIdle(self._lines())
        finally:
            self._running = False
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(outer)

    def look(self, function: Callable[[], T]) -> T:
        """Calls a function as if it were on this loop, without a turn."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        self._looking = True
        try:
            return function()
        finally:
            self._looking = False
            asyncio._set_running_loop(outer)

    def advance(self, time: float) -> bool:
        """Moves the clock, never backwards, and makes ready what is due. True if a timer was."""
        if time > self._now:
            self._now = time
        due = False
        while self.timers and (first := self.next_timer()) is not None and first <= self._now:
            self._ready.append(heappop(self.timers)[2])
            due = True
        return due

    def next_timer(self) -> float | None:
        """When the next timer is due, on this clock."""
        timers = self.timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)
        return timers[0][0] if timers else None

    def end(self, signal: BaseException) -> list[Task[Any]]:
        """Leaves for good: throws ``signal`` into each task that waits, newest first, each in its own context.

        ``finally`` blocks run and can do nothing any more. Returns the tasks that would not end, to be kept alive:
        dropping such a coroutine never comes back from its destructor.
        """
        self._ended = signal
        self._ready.clear()
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        stubborn: list[Task[Any]] = []
        try:
            for task, context in reversed(self._tasks):
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    if not _thrown_out(task.get_coro(), signal, context):
                        stubborn.append(task)
        finally:
            asyncio._set_running_loop(outer)
            self._ready.clear()
            self.timers.clear()
            self._tasks.clear()
            self._complain = None
            # It has come through every frame, and would keep them.
            signal.__traceback__ = signal.__context__ = None
        return stubborn

    def _lines(self) -> str:
        frames = [frame for task, _ in self._tasks if not task.done() for frame in task.get_stack(limit=1)]
        return ", ".join(dict.fromkeys(_place(frame) for frame in frames))

    # --- what asyncio asks of a loop ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        handle = _Handle(callback, args, copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        timer = TimerHandle(when, callback, args, self, context)
        self._number += 1
        if when < NEVER:
            heappush(self.timers, (when, self._number, timer))
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """``next_timer`` passes over it."""

    def create_future(self) -> Future[Any]:
        future = _Future(loop=self)
        self._number = future.number = self._number + 1
        return future

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool | None = None,
    ) -> Task[T]:
        if self._ended is not None:
            coro.close()
            raise self._ended
        if self._looking:
            coro.close()
            raise self._refused("a new task in a query or a validator", "they may only look")
        if eager_start:
            coro.close()
            raise self._refused("eager_start=True", "leave it out: here every task starts at the loop's next turn")
        context = copy_context() if context is None else context
        number = self._number = self._number + 1
        # Numbered first: asyncio puts the task into a set of its own while it is made.
        task = _Task.__new__(_Task)
        task.number = number
        # Not asyncio's own name, whose number counts all tasks of the process.
        name = name or f"task-{number - self._base}"
        task.__init__(coro, loop=self, name=name, context=context)  # type: ignore[misc]
        self._tasks.append((task, context))
        if len(self._tasks) > self._look_at:
            self._tasks = [entry for entry in self._tasks if not entry[0].done()]
            self._look_at = 32 + 2 * len(self._tasks)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._complain is not None and self._ended is None:
            self._complain(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_exception_handler(self) -> None:
        return None

    def get_task_factory(self) -> None:
        return None

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._ended is not None

    def _refused(self, what: str, remedy: str) -> NotInWorkflow:
        return NotInWorkflow(what, user_line(), remedy)


_STEP = "do it in a @step, whose result is journalled"
_REMEDIES = {
    "run_in_executor": ("asyncio.to_thread or an executor", "call it from a @step; a synchronous @step has a thread"),
    "call_soon_threadsafe": ("another thread, or a future of one,", _STEP),
    "getaddrinfo": ("a name server", _STEP),
    "create_connection": ("a socket", _STEP),
    "subprocess_exec": ("a subprocess", _STEP),
    "subprocess_shell": ("a subprocess", _STEP),
    "add_signal_handler": ("a signal handler", "set it in the program itself"),
    "set_task_factory": ("a task factory", "leave it out: the order of tasks is the loop's own"),
    "set_exception_handler": ("an exception handler", "await the tasks, or use a TaskGroup"),
    "run_until_complete": ("a loop inside the loop", "await it"),
    "run_forever": ("a loop inside the loop", "await it"),
    "stop": ("stopping the loop", "return from the workflow"),
    "close": ("closing the loop", "return from the workflow"),
}


def _refusal(name: str) -> Callable[..., Any]:
    what, remedy = _REMEDIES.get(name, (f"loop.{name}", _STEP))

    def refuse(self: WorkflowLoop, *args: Any, **kwargs: Any) -> Any:
        raise self._refused(what, remedy)

    refuse.__name__ = name
    return refuse


for _name in vars(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in vars(WorkflowLoop):
        setattr(WorkflowLoop, _name, _refusal(_name))
WorkflowLoop.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def running() -> WorkflowLoop | None:
    """The loop of the workflow that runs right now, if one does."""
    loop = asyncio._get_running_loop()
    return loop if isinstance(loop, WorkflowLoop) else None


def explained(error: BaseException) -> BaseException:
    """asyncio's own words for a future, lock or event of another loop, with the line and the remedy added."""
    if isinstance(error, RuntimeError) and ("different loop" in str(error) or "different event loop" in str(error)):
        remedy = "make it inside the workflow, and await what happens outside in a @step"
        found = NotInWorkflow("a future, lock or event of another loop", _raised_at(error.__traceback__), remedy)
        found.__cause__ = error
        return found
    return error


def user_line() -> str:
    """The line that called into asyncio or this library."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_OURS, _ASYNCIO)):
        frame = frame.f_back
    return _place(frame) if frame is not None else "?"


def _raised_at(traceback: TracebackType | None) -> str:
    place = "?"
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith((_OURS, _ASYNCIO)):
            place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _thrown_out(coroutine: Any, signal: BaseException, context: Context) -> bool:
    for _ in range(MOST_THROWS):
        try:
            context.run(coroutine.throw, signal)
        except BaseException:
            return True
    return False
