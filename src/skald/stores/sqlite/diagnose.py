"""What the operator of a file should know: a WAL that does not shrink, a full disk, a file system that is not local."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import apsw

from skald.store import Finding
from skald.stores.sqlite.connect import connect_reader
from skald.stores.sqlite.failures import translate

LARGE_WAL = 256 << 20
"""Bytes; four times the size at which the writer truncates it."""
LITTLE_SPACE = 256 << 20
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs", "fuse.glusterfs"}
_VOLATILE = {"tmpfs", "ramfs"}
_MOUNTS = Path("/proc/self/mounts")
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


def diagnose(path: Path) -> list[Finding]:
    """Blocking; opens the file read-only, if it is there."""
    if not path.exists():
        return [Finding("error", "missing", f"{path} does not exist", "skald migrate")]
    return [*_file_system(path), *_space(path), *_wal(path), *_mode(path)]


def _wal(path: Path) -> Iterator[Finding]:
    try:
        size = Path(f"{path}-wal").stat().st_size
    except OSError:
        return
    if not size:
        return
    text = f"the WAL of {path} has {size >> 20} MiB" if size >> 20 else f"the WAL of {path} has {size >> 10} KiB"
    if size > LARGE_WAL:
        remedy = "some process holds a read transaction open for long, so that it cannot be truncated: end it"
        yield Finding("warning", "wal_size", text, remedy)
    else:
        yield Finding("info", "wal_size", text)


def _space(path: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(path.parent).free
    if free < LITTLE_SPACE:
        yield Finding("warning", "disk", f"{path.parent} has {free >> 20} MiB left", "free some space")


def _mode(path: Path) -> Iterator[Finding]:
    try:
        connection = connect_reader(path)
        try:
            mode = connection.execute("PRAGMA journal_mode").get
        finally:
            connection.close()
    except apsw.Error as error:
        remedy = "check the file and its rights, or restore a backup"
        yield Finding("error", "unreadable", str(translate(error, path)), remedy)
        return
    if mode != "wal":
        remedy = "start the service once: it switches the file back"
        yield Finding("warning", "journal_mode", f"{path} is in journal mode {mode}, not wal", remedy)


def _file_system(path: Path) -> Iterator[Finding]:
    kind = file_system(path)
    if kind in _REMOTE:
        remedy = "put the file on a local disk: a WAL needs shared memory, which no network file system has"
        yield Finding("error", "file_system", f"{path} is on {kind}", remedy)
    elif kind in _VOLATILE:
        yield Finding("info", "file_system", f"{path} is on {kind}: nothing in it survives the machine")


def file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the file system that holds a path; ``None`` where the system does not tell."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    here, best, kind = path.resolve(), -1, None
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(_unescaped(fields[1]))
        # The last of several mounts on one place hides the others.
        if here.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def _unescaped(text: str) -> str:
    for code, character in _ESCAPES.items():
        text = text.replace(code, character)
    return text
