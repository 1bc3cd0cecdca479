"""Whether another process still exists: only ever "gone" if that is certain."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from skald.runtime import process
from skald.runtime.process import is_gone, this_process
from skald.store import Member


def member_of(child: subprocess.Popen[bytes]) -> Member:
    start = process._start_time(child.pid)
    assert start is not None
    return msgspec.structs.replace(this_process("g"), pid=child.pid, start_time=start)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def test_this_process_is_there() -> None:
    assert not is_gone(this_process("g"))


def test_an_ended_process_is_gone_even_before_it_is_collected(child: subprocess.Popen[bytes]) -> None:
    member = member_of(child)
    assert not is_gone(member)
    child.kill()
    while not is_gone(member):
        pass
    child.wait()
    assert is_gone(member)


def test_another_process_with_the_same_number_is_not_it(child: subprocess.Popen[bytes]) -> None:
    member = msgspec.structs.replace(member_of(child), start_time=1)
    assert is_gone(member)


@pytest.mark.parametrize("change", [{"boot_id": "another"}, {"pid_namespace": "another"}, {"pid_namespace": ""}])
def test_elsewhere_nothing_is_certain(child: subprocess.Popen[bytes], change: dict[str, str]) -> None:
    member = member_of(child)
    child.kill()
    child.wait()
    assert is_gone(member)
    assert not is_gone(msgspec.structs.replace(member, **change))


def test_a_process_that_is_hidden_but_answers_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under hidepid=, where other users' processes are not in /proc."""
    member = this_process("g")
    monkeypatch.setattr(process, "_start_time", lambda pid: None)
    assert not is_gone(member)
