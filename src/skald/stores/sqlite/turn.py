"""Several processes take turns at writing one file: a queue in front of SQLite's own lock.

SQLite lets a waiter look for the file again and again, and the file stands idle between a commit and the next look; in
an flock's queue the kernel wakes the next one at once. It is a courtesy, not a guard: whoever has waited for too long
(a process was stopped in the middle of its turn) goes on without it, and SQLite's lock decides.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Turn:
    """For one job at a time of this process; the kernel ends the turn of a process that dies."""

    def __init__(self, path: Path) -> None:
        self._path = f"{path}-turn"
        self._file = -1
        self._jobs: SimpleQueue[Callable[[], None] | None] | None = None

    def open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._jobs = None

    def close(self) -> None:
        """Does not wait for the thread: it leaves the queue when its turn comes, or with the process."""
        if self._jobs is not None:
            self._jobs.put(None)
        elif self._file >= 0:
            os.close(self._file)
        self._file, self._jobs = -1, None

    def begin(self) -> bool:
        """Takes the turn if nobody has it; ``end`` gives it back."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def end(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    async def run(self, job: Callable[[], T], seconds: float) -> T:
        """Does the job on a thread when the turn has come. ``TimeoutError`` if it has not: the job is never done then.

        A cancelled caller waits for a job that has begun, because the connection is in its hands.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        # Whoever takes the one element decides: the thread does the job, or its caller has gone.
        begun: list[None] = [None]
        self._call(lambda: _do(job, begun, done, loop))
        try:
            await asyncio.wait([done], timeout=seconds)
        except asyncio.CancelledError:
            if not _won(begun):
                await _end_of(done)
            raise
        if not done.done() and _won(begun):
            raise TimeoutError
        return await _end_of(done)

    def _call(self, job: Callable[[], None]) -> None:
        if self._jobs is None:
            self._jobs = SimpleQueue()
            thread = threading.Thread(target=_work, args=(self._file, self._jobs), name="skald-turn", daemon=True)
            thread.start()
        self._jobs.put(job)


def _work(file: int, jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            job()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _do(job: Callable[[], Any], begun: list[None], done: asyncio.Future[Any], loop: asyncio.AbstractEventLoop) -> None:
    if not _won(begun):
        return
    result: Any
    tell: Callable[[Any], None]
    try:
        result, tell = job(), done.set_result
    except BaseException as error:
        result, tell = error, done.set_exception
    with suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(tell, result)


def _won(begun: list[None]) -> bool:
    try:
        begun.pop()
    except IndexError:
        return False
    return True


async def _end_of(done: asyncio.Future[T]) -> T:
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        done.exception()
        raise cancelled
    return done.result()
