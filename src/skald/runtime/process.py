"""Who this process is, and whether another one of this machine still exists.

A process id alone can be given to somebody else. Together with the boot id, the pid namespace and the start time (in
clock ticks since boot, ``/proc/PID/stat`` field 22, see proc(5)) it names one process for ever. Where these cannot be
read (macOS) the boot id is empty, and leases have to run out.
"""

from __future__ import annotations

import os
from pathlib import Path

from skald.message import new_id
from skald.store import Member


def this_process(group: str) -> Member:
    pid = os.getpid()
    return Member(
        id=new_id(),
        group=group,
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        start_time=_start_time(pid) or 0,
    )


def is_gone(member: Member) -> bool:
    """True only if the member ran on this machine, in this pid namespace, and does not exist any more."""
    boot_id = _boot_id()
    if not boot_id or not member.pid_namespace or member.pid_namespace != _pid_namespace():
        return False
    if member.boot_id != boot_id:
        # Another machine's boot id and an earlier one of this machine look alike, so the lease decides.
        return False
    found = _start_time(member.pid)
    # Under hidepid= the processes of other users are not shown: what is not seen is asked for.
    return not _exists(member.pid) if found is None else found != member.start_time


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return True


def _start_time(pid: int) -> int | None:
    """``None`` if it cannot be read, -1 for a zombie, which has ended and is merely not collected yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything, so count the fields behind the last one.
    fields = stat.rpartition(b")")[2].split()
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])
