"""Child processes that talk to the benchmark in lines of JSON: told what to do on stdin, answering on stdout.

The same file is both sides: ``Children`` starts them, each as ``python -m benchmarks.harness.child MODULE:FUNCTION``.
The function gets a ``Channel`` and the arguments, and may be sync or async. A child whose parent is gone ends itself;
the parent kills whatever is left when its block ends.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds that an answer may take unless the caller says otherwise."""


class ChildFailed(Exception):
    """A child raised, ended, or did not answer in time."""


class Child:
    """One running child, as its parent sees it."""

    def __init__(self, target: str, **arguments: Any) -> None:
        self._target = target
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.child", target, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,  # so that Ctrl-C reaches the parent alone, which ends the others in order
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **values: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(values).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next thing that the child says."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            self._rest += self._more(deadline)
        line, self._rest = self._rest.split(b"\n", 1)
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise ChildFailed(f"{self._target} failed:\n{said['error']}")
        return said

    def has_spoken(self) -> bool:
        assert self._process.stdout is not None
        return b"\n" in self._rest or bool(select.select([self._process.stdout], [], [], 0)[0])

    def _more(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
            raise ChildFailed(f"{self._target} did not answer in time")
        data = os.read(self._process.stdout.fileno(), 1 << 20)
        if not data:
            raise ChildFailed(f"{self._target} ended with status {self._process.wait()}")
        return data

    def ask(self, timeout: float = PATIENCE, **values: Any) -> dict[str, Any]:
        self.tell(**values)
        return self.hear(timeout)

    def resident(self) -> float:
        """Resident memory in MiB."""
        asked = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True, check=False)
        return int(asked.stdout.strip() or 0) / 1024

    def close(self) -> None:
        """Ends it: politely by closing its stdin, and by force after two seconds."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Children:
    """``with Children() as start:`` starts children that are gone when the block has ended."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    def __call__(self, target: str, **arguments: Any) -> Child:
        child = Child(target, **arguments)
        self._started.append(child)
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._started:
            child.close()


class Channel:
    """The child's side."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        os._exit(0)  # the parent is gone, or wants us gone

    def say(self, **values: Any) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    def hear(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._lines.get())
        return told

    async def heard(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.hear)


def main() -> None:
    module, name = sys.argv[1].split(":")
    channel = Channel()
    try:
        function = getattr(importlib.import_module(module), name)
        result = function(channel, **json.loads(sys.argv[2]))
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except BaseException:
        channel.say(error=traceback.format_exc())
        os._exit(1)


if __name__ == "__main__":
    main()
