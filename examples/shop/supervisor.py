"""Keeps the demo's processes: starts them, starts again whichever dies, and stops them all.

A process that was killed is started again at once; one that ends by itself soon after its start waits, longer
each time. Process ids are in ``run/NAME.pid``, output in ``log/NAME.log``. Nothing outlives the supervisor
(see ``child``).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

BACKOFF = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY = 5.0
"""Seconds of life after which a process is no longer considered to be failing."""
PATIENCE = 5.0
"""Seconds between asking a process to stop and ending it."""


class NotStarted(Exception):
    """A process dies whenever it is started; the message shows what it said."""


class Child:
    """One process by name, whichever incarnation it is in."""

    def __init__(self, name: str, arguments: Iterable[str], listens: socket.socket | None = None) -> None:
        self.name, self.arguments, self.listens = name, tuple(arguments), listens
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        self.failures = 0
        """Ends in a row, each by itself and soon after the start."""
        self.allowed = asyncio.Event()
        self.allowed.set()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None


class Supervisor:
    def __init__(self, folder: Path, children: Iterable[Child], environment: Mapping[str, str]) -> None:
        self._run, self.logs = folder / "run", folder / "log"
        self.children = {child.name: child for child in children}
        self._environment = dict(environment)
        self._lifeline: tuple[int, ...] = os.pipe()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def restarts(self) -> int:
        return sum(max(0, child.starts - 1) for child in self.children.values())

    def start(self) -> None:
        for folder in (self._run, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._tasks = [asyncio.create_task(self._keep(child)) for child in self.children.values()]

    def kill(self, name: str) -> bool:
        """``kill -9``, as a person or a machine would; false if it is just not running."""
        child = self.children[name]
        if child.process is None or not child.alive:
            return False
        child.process.kill()
        return True

    @asynccontextmanager
    async def down(self, name: str) -> AsyncIterator[None]:
        """Killed, and not started again before the block ends."""
        child = self.children[name]
        child.allowed.clear()
        try:
            if self.kill(name) and child.process is not None:
                await child.process.wait()
            yield
        finally:
            child.allowed.set()

    async def stop(self) -> None:
        """Asks all to stop, ends those that do not, and waits until no one is left. May be called twice."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        living = [child.process for child in self.children.values() if child.process and child.alive]
        for process in living:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(process.wait() for process in living))
        except TimeoutError:
            for process in living:
                if process.returncode is None:
                    process.kill()
            await asyncio.gather(*(process.wait() for process in living))
        for child in self.children.values():
            (self._run / f"{child.name}.pid").unlink(missing_ok=True)
        for end in self._lifeline:
            os.close(end)
        self._lifeline = ()

    async def tick(self, seconds: float = 0.05) -> None:
        """A pause of whoever waits for the processes; raises ``NotStarted`` if one does nothing but end."""
        for child in self.children.values():
            if child.failures >= len(BACKOFF) - 1:
                raise NotStarted(f"{child.name} does not stay alive; it said:\n{self._last_words(child.name)}")
        await asyncio.sleep(seconds)

    def _last_words(self, name: str) -> str:
        return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    # --- one child ------------------------------------------------------------------------------------------

    async def _keep(self, child: Child) -> None:
        while not self._stopping:
            await child.allowed.wait()
            started = time.monotonic()
            child.process = process = await self._spawn(child)
            child.starts += 1
            (self._run / f"{child.name}.pid").write_text(f"{process.pid}\n")
            status = await process.wait()
            # Whoever was killed is not to blame for it.
            steady = status == -signal.SIGKILL or time.monotonic() - started > STEADY
            child.failures = 0 if steady else child.failures + 1
            await asyncio.sleep(BACKOFF[min(child.failures, len(BACKOFF) - 1)])

    async def _spawn(self, child: Child) -> asyncio.subprocess.Process:
        kept = [self._lifeline[0]]
        environment = {**self._environment, "SHOP_LIFELINE": str(self._lifeline[0])}
        if child.listens is not None:
            kept.append(child.listens.fileno())
            environment["SHOP_SOCKET"] = str(child.listens.fileno())
        with (self.logs / f"{child.name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "examples.shop.child",
                *child.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=kept,
                # Ctrl-C goes to the supervisor alone, which then stops everybody in order.
                start_new_session=True,
            )


def listen(port: int) -> socket.socket:
    """A listening socket at the port, or at a free one if somebody has it."""
    for wanted in (port, 0):
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(("127.0.0.1", wanted))
        except OSError:
            opened.close()
            if wanted == 0:
                raise
            continue
        opened.listen(512)
        return opened
    raise AssertionError("unreachable")


def url_of(opened: socket.socket) -> str:
    return f"http://127.0.0.1:{opened.getsockname()[1]}"
