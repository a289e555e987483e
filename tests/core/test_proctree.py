"""Who a process is, so that no signal ever reaches the one that got its number later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.runner import proctree
from pilot.runner.host import boot_id, host_id
from pilot.runner.proctree import (
    Family,
    Seen,
    is_alive,
    is_subreaper,
    look,
    marker_of,
    reap,
    send,
    signal_group,
    start_ticks,
)

MARK = f"t{os.getpid()}/1"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], env={proctree.MARKER: "n/1"})
    yield process
    process.kill()
    process.wait()


def seen(pid: int) -> Seen:
    found = look(pid)
    assert found is not None
    return found


def test_a_process_is_named_by_its_pid_and_start(child: subprocess.Popen[bytes]) -> None:
    ticks = start_ticks(child.pid)
    assert ticks is not None
    up = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
    assert -5 < up - ticks < 60 * os.sysconf("SC_CLK_TCK")  # both are rounded, and of a tick of their own
    assert start_ticks(child.pid) == ticks
    assert is_alive(child.pid, ticks)
    assert not is_alive(child.pid, ticks - 1)
    assert marker_of(child.pid) == "n/1"
    assert marker_of(os.getpid()) in ("", os.environ.get(proctree.MARKER))


@pytest.mark.parametrize(("env", "marker"), [({proctree.MARKER: "n/1"}, "n/1"), ({"A": "b"}, ""), ({}, "")])
def test_whoever_has_just_been_started_has_its_marker(env: dict[str, str], marker: str) -> None:
    """Its parent hears of it before its environment is set up: every third had none yet at the first look."""
    for _ in range(40):
        with subprocess.Popen(["sleep", "60"], env=env) as process:
            found = marker_of(process.pid)
            process.kill()
        assert found == marker


def test_an_environment_that_stays_away_is_not_taken_for_an_empty_one(
    child: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process is seen whose new program is on a slow disk."""
    stat = Path(f"/proc/{child.pid}/stat").read_text().split(" ")
    folder = tmp_path / str(child.pid)
    folder.mkdir()
    (folder / "environ").touch()
    monkeypatch.setattr(proctree, "PROC", tmp_path)
    start, end = stat[49], stat[50]
    for env, marker in [(("0", "0"), None), ((start, start), ""), ((start, end), None)]:
        (folder / "stat").write_text(" ".join([*stat[:49], *env, *stat[51:]]))
        assert marker_of(child.pid) == marker
    assert marker_of(os.getpid()) is None


def test_a_zombie_is_not_alive_and_is_reaped_only_by_its_parent(child: subprocess.Popen[bytes]) -> None:
    ticks = start_ticks(child.pid) or 0
    reap(child.pid, ticks)  # it lives: nothing to take
    child.kill()
    deadline = time.monotonic() + 10
    while seen(child.pid).state != "Z":
        assert time.monotonic() < deadline
    assert not is_alive(child.pid, ticks)
    reap(child.pid, ticks + 1)
    assert look(child.pid) is not None
    reap(child.pid, ticks)
    assert look(child.pid) is None
    assert start_ticks(child.pid) is None
    assert marker_of(child.pid) is None
    assert not is_alive(child.pid, ticks)
    reap(child.pid, ticks)


def test_any_name_of_a_programme_is_read_rightly(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as process:
        one = seen(process.pid)
        assert (one.ppid, one.alive, one.session) == (os.getpid(), True, os.getsid(0))
        process.kill()


@pytest.mark.parametrize("old_kernel", [False, True])
def test_a_signal_reaches_that_very_process_only(
    child: subprocess.Popen[bytes], old_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old_kernel:
        monkeypatch.delattr(os, "pidfd_open")
    real = seen(child.pid)
    later = Seen(child.pid, real.ppid, real.session, real.state, real.ticks - 1)

    assert not send(later, signal.SIGKILL)
    assert send(real, signal.SIGSTOP)
    assert is_alive(child.pid, real.ticks)
    assert send(real, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not send(real, signal.SIGKILL)
    signal_group(child.pid, signal.SIGKILL)


def test_a_number_that_went_to_somebody_else_is_not_taken_for_the_run(child: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True, env={}) as other:
        ours = Family(lambda _: False)
        ours.begin(other.pid)
        assert ours.led()
        assert [one.pid for one in ours.scan()] == [other.pid]

        reused = Family(lambda _: False, root=other.pid, root_ticks=ours.root_ticks - 1, since=0)
        assert not reused.led()
        assert reused.scan() == []
        reused.known[child.pid] = seen(child.pid).ticks - 1
        assert reused.scan() == []
        other.kill()


def test_a_family_is_found_by_marker_descent_and_memory(tmp_path: Path) -> None:
    grand = tmp_path / "pid"
    code = f"setsid sleep 60 & echo $! > {grand}; wait"
    with subprocess.Popen(["sh", "-c", code], env={proctree.MARKER: MARK, "PATH": os.environ["PATH"]}) as parent:
        deadline = time.monotonic() + 10
        while not (grand.exists() and grand.read_text().endswith("\n")):
            assert time.monotonic() < deadline
        pid = int(grand.read_text())
        by_marker = Family(lambda value: value == MARK)
        assert {one.pid for one in by_marker.scan()} >= {parent.pid, pid}
        by_memory = Family(lambda _: False, known={parent.pid: seen(parent.pid).ticks})
        assert {one.pid for one in by_memory.scan()} >= {parent.pid, pid}
        parent.kill()
        parent.wait()
        assert {one.pid for one in by_memory.scan()} == {pid}
        young = Family(lambda value: value == MARK, since=seen(pid).ticks + 1)
        assert young.scan() == []
        os.kill(pid, signal.SIGKILL)


def test_boot_and_host_are_stable_and_a_pid_namespace_is_a_host_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert boot_id() == boot_id() != ""
    here = host_id()
    there = subprocess.run(
        [sys.executable, "-c", "from pilot.runner.host import host_id; print(host_id())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here

    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").touch()
    monkeypatch.setattr(proctree, "PROC", tmp_path)
    assert host_id() != here
    assert host_id().rpartition("/")[0] == here.rpartition("/")[0]


def test_without_proc_a_pid_is_all_there_is(
    child: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proctree, "PROC", tmp_path / "none")
    assert start_ticks(child.pid) == 0
    assert is_alive(child.pid, 0)
    assert is_alive(1, 0)
    assert boot_id() == ""
    assert host_id().endswith("/0")
    assert Family(lambda _: True).scan() == []
    child.kill()
    child.wait()
    assert start_ticks(child.pid) is None
    assert not is_alive(child.pid, 0)


def test_the_test_process_takes_no_orphans() -> None:
    assert not is_subreaper()
