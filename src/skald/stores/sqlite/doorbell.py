"""The doorbell: one datagram tells the readers of a file, in whatever process, that something was appended.

SQLite has no notification between processes. Each listener binds a Unix datagram socket in a folder that both
sides compute from the path of the file; whoever appended sends one byte to every socket there and waits for
none. A hint: it may be lost (a full queue, a folder that cannot be made), so every listener polls as well.

The folder is beside the file. The path of a socket must be short, though: where the folder's own is too long, Linux
reaches it through an open descriptor; elsewhere (macOS) nothing of the kind exists, and a short folder in the
temporary one serves instead.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

LONGEST = 100
"""Bytes of a socket's path: the system takes 104 (macOS) or 108 (Linux)."""
_NAME = 24  # "PID-12345678.sock"
_DESCRIPTORS = "/proc/self/fd"


def bells_folder(path: Path) -> Path:
    """The folder of a file's doorbells: beside it, or a short one in the temporary folder where it must be."""
    path = path.resolve()
    folder = path.parent / ".bells" / path.stem
    if _is_short(folder) or os.path.isdir(_DESCRIPTORS):
        return folder
    digest = sha256(os.fsencode(path)).hexdigest()[:16]
    # Not the TMPDIR of this process if that can be helped: the other side may have another one.
    temporary = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()
    return Path(temporary, f"skald-{os.getuid()}", digest)


def _is_short(folder: Path) -> bool:
    return len(os.fsencode(folder)) + _NAME <= LONGEST


@contextmanager
def _within_reach(folder: Path) -> Iterator[str]:
    """A path of the folder that is short enough, while the block lasts."""
    if _is_short(folder):
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"{_DESCRIPTORS}/{descriptor}"
    finally:
        os.close(descriptor)


class Doorbell:
    """Rings for one file; ``close`` is legal at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = bells_folder(path)
        self._socket: socket.socket | None = None

    def ring(self) -> None:
        """At once, and not when the event loop gets to it: readers wait for nothing else."""
        with suppress(OSError), _within_reach(self._folder) as folder:
            for name in os.listdir(folder):
                self._send(os.path.join(folder, name))

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        return listen(self._path, heard)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, address: str) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        try:
            self._socket.sendto(b"!", address)
        except ConnectionRefusedError:  # nobody has it open any more
            with suppress(OSError):
                os.unlink(address)
        except OSError:
            pass  # full, gone, or not ours: it was a hint


def listen(path: Path, heard: Callable[[], None]) -> Callable[[], None]:
    """Calls ``heard`` on the running loop after a ring, where that is possible; returns what stops it."""
    loop = asyncio.get_running_loop()
    address = os.path.join(bells_folder(path), f"{os.getpid()}-{secrets.token_hex(4)}.sock")
    bell = _bind(address)
    if bell is None:
        return lambda: None

    def answer() -> None:
        with suppress(BlockingIOError):
            while bell.recv(16):
                pass
        heard()

    def stop() -> None:
        if bell.fileno() >= 0:
            loop.remove_reader(bell)
            bell.close()
            with suppress(OSError):
                os.unlink(address)

    loop.add_reader(bell, answer)
    return stop


def _bind(address: str) -> socket.socket | None:
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        folder = Path(address).parent
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        # In a shared temporary folder somebody else may have made it first, and would see who is listening.
        if folder.parent.stat().st_uid != os.getuid() or folder.stat().st_uid != os.getuid():
            raise OSError(f"{folder} belongs to another user")
        bell.setblocking(False)
        with _within_reach(folder) as short:
            bell.bind(os.path.join(short, os.path.basename(address)))
    except OSError:
        bell.close()
        return None
    return bell
