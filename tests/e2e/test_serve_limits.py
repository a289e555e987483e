"""Bad input, bad disks, bad settings: each costs what it must, says one clear thing, and the daemon lives."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Home, prompt

_MIB = 1 << 20
_HOSTILE = (
    b"good\x00nul \xff\xfe\xc3( "
    b"\x1b]52;c;ZXZpbA==\x07\x1b]0;owned\x07\x1b[31mred\x1b[0m\x1b[2J \x9b31m "
    b"\x07\x08\x7f \xe2\x80\xaeabc caf\xc3\xa9\r\n"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


# Output


def test_output_without_end_is_capped_and_memory_stays_flat(home: Home) -> None:
    home.repo("web")
    with home.serve() as daemon:
        home.reach("completed", home.enqueue("web", task_id="warm-up"))
        before = daemon.rss()
        line = home.enqueue("web", "line 100", "say the end of it", task_id="line")
        flood = home.enqueue("web", "flood 100", "say the end of it", task_id="flood")
        most = 0

        def done() -> bool:
            nonlocal most
            most = max(most, daemon.rss())
            return set(home.statuses().values()) == {"completed"}

        home.until(done, "both completed", seconds=60)
    assert most - before < 100 * _MIB
    for id in (line, flood):
        ((size, pieces),) = home.rows("SELECT sum(length(data)), count(*) FROM output WHERE execution_id = ?", id)
        assert 10 * _MIB < size < 80 * _MIB
        assert pieces < 20_000
        said = home.pilot("logs", id).out
        assert "\nthe end of it\n" in said[-200:]  # what it said last is there: a reason would stand there
        assert "bytes of output left out" in said
    home.audit(completed=3)


def test_nothing_that_a_terminal_obeys_comes_through(home: Home) -> None:
    home.repo("web")
    title = "Ring \x07 \x1b]52;c;ZXZpbA==\x07 the \u202ebell \x1b[31m"
    escaped = "".join(f"\\x{byte:02x}" for byte in _HOSTILE)
    id = home.enqueue("web", f"bytes {escaped}", f"bytes {escaped}", task_id="T-1", title=title)
    failing = home.enqueue("web", f"bytes {escaped}", "exit 3", task_id="T-2", title=title, max_attempts=1)
    with home.serve() as daemon:
        home.reach("completed", id)
        home.until(lambda: home.value(failing, "status") in ("failed", "needs_human"), "the end of the failing one")
        log = daemon.log
    assert home.pilot("logs", id, "--raw").raw == _HOSTILE * 2
    commands = (
        ["logs", id],
        ["show", id],
        ["show", failing],
        ["logs", failing],
        ["why", failing],
        ["list"],
        ["events"],
    )
    for command in commands:
        done = home.pilot(*command)
        assert not _CONTROLS.search(done.out + done.err), (command, done.raw)
    assert not _CONTROLS.search(log)
    assert "café" in home.pilot("logs", id).out
    shown = home.pilot("show", id, "--json").raw
    assert not _CONTROLS.search(shown.decode())
    assert json.loads(shown)["task_id"] == "T-1"


# The disk and the database


@pytest.fixture
def small_disk(home: Home) -> Iterator[Path]:
    """The state directory on a disk of 24 MiB."""
    home.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "none", str(home.state)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"this test needs to mount a tmpfs: {done.stderr}")
    try:
        yield home.state
    finally:
        home.clear_away()
        subprocess.run(["umount", "-l", str(home.state)], check=True)


def _fill(disk: Path) -> Path:
    """Take all that is left of a disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (_MIB, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


def test_a_full_disk_loses_nothing_and_the_daemon_goes_on_after_room_is_made(home: Home, small_disk: Path) -> None:
    home.repo("web")
    # Its own file is there before: an agent that meets the full disk itself has failed, as it says.
    running = home.enqueue("web", "nothing", "write T-1.txt T-1", "wait go", "flood 1", task_id="T-1")
    queued = home.enqueue("web", task_id="T-2")
    with home.serve() as daemon:
        home.began("T-1")
        filler = _fill(small_disk)
        refused = home.pilot("enqueue", prompt("T-3"), "-p", "web", "--task-id", "T-3", code=1)
        assert "full" in refused.err
        assert len(refused.err.splitlines()) == 1
        home.go("go")
        # Whatever it is that meets the wall first: the output, the commit, the branch, the end.
        home.until(lambda: re.search(r"full|No space|space left", daemon.log) or _tells_of_space(home), "the wall")
        assert daemon.code is None
        assert daemon.get("/livez") == 200
        assert home.statuses()["T-2"] == "queued"
        filler.unlink()
        home.reach("completed", running, queued, seconds=60)
        third = home.pilot("enqueue", prompt("T-3"), "-p", "web", "--task-id", "T-3", "--json").json
        home.reach("completed", third["id"])
    # The agent had done its work: it was waited for a store that could write that down.
    assert home.rows("SELECT attempt, failures FROM executions ORDER BY id") == [(1, 0)] * 3
    home.audit(completed=3)


def _tells_of_space(home: Home) -> bool:
    reasons = home.rows("SELECT coalesce(reason, '') || coalesce(error, '') FROM executions")
    return any("space" in text or "full" in text for (text,) in reasons)


def _refused(home: Home, code: int) -> str:
    """`serve` ends with that code and one clear line; the line."""
    with home.serve(ready=False) as daemon:
        assert daemon.wait() == code, daemon.log
        lines = [line for line in daemon.log.splitlines() if line.strip()]
        assert len(lines) == 1, daemon.log
        assert lines[0].startswith("error: ")
        return lines[0]


def _damage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\x13" * 8192)


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 4711")
    connection.close()


def _foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()


def _text(path: Path) -> None:
    path.write_text("These are no rows.\n" * 400)


@pytest.mark.parametrize("spoil", [_damage, _newer, _foreign, _text])
def test_a_database_that_is_not_to_be_touched_is_not(home: Home, spoil: object) -> None:
    home.repo("web")
    home.enqueue("web", task_id="T-1")
    path = home.state / "pilot.db"
    for log in home.state.glob("pilot.db-*"):
        log.unlink()
    assert callable(spoil)
    spoil(path)
    before = path.read_bytes()
    line = _refused(home, 2)
    assert str(path) in line
    assert "left as it is" in line
    for command in (["list"], ["status"], ["enqueue", "Do it.", "-p", "web"]):
        done = home.pilot(*command, code=2)
        assert len(done.err.splitlines()) == 1
    assert path.read_bytes() == before


# Settings


def test_a_port_in_use_is_busy(home: Home) -> None:
    home.repo("web")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        home.configure(server={"port": taken.getsockname()[1]})
        assert str(taken.getsockname()[1]) in _refused(home, 75)


def test_a_path_that_is_no_repository_is_named(home: Home) -> None:
    plain = home.root / "plain"
    plain.mkdir()
    for path in (plain, home.root / "nowhere"):
        home.configure(projects=[{"name": "web", "path": str(path)}])
        line = _refused(home, 2)
        assert "web" in line
        assert str(path) in line


def test_sighup_takes_a_good_configuration_and_refuses_a_bad_one(home: Home) -> None:
    home.repo("web")
    with home.serve() as daemon:
        running = home.enqueue("web", "wait go", task_id="T-1")
        home.began("T-1")
        good = home.file.read_text()
        home.file.write_text(good.replace("projects:", "projetcs:"))
        daemon.send(signal.SIGHUP)
        assert "projetcs" in daemon.says("config.refused.*")
        home.file.write_text(good)
        home.repo("api")
        daemon.send(signal.SIGHUP)
        daemon.says("config.reloaded")
        home.reach("completed", home.enqueue("api", task_id="T-2"))
        assert home.value(running, "status") == "running"
        home.go("go")
        home.reach("completed", running)
        assert "Traceback" not in daemon.log
    home.audit(completed=2)


def test_a_missing_agent_parks_its_backend_until_a_person_unparks_it(home: Home) -> None:
    home.repo("web")
    mended = home.settings["executor"]
    home.configure(executor={**mended, "command": {"argv": ["no-such-agent", *mended["command"]["argv"][1:]]}})
    with home.serve() as daemon:
        id = home.enqueue("web", task_id="T-1")
        home.until(lambda: home.rows("SELECT failure FROM parks"), "the park")
        assert home.rows("SELECT backend, failure, until FROM parks") == [("command", "invalid_config", None)]
        assert home.rows("SELECT status, failures FROM executions") == [("queued", 0)]
        status = home.pilot("status", "--json").json
        assert [park["backend"] for park in status["parked"]] == ["command"]
        assert "no-such-agent" in status["parked"][0]["reason"]
        why = home.pilot("why", id, "--json").json
        assert why["holds"][0]["kind"] == "parked"
        assert "no-such-agent" in why["holds"][0]["detail"]
        assert "pilot backend unpark command" in why["next"]
        home.configure(executor=mended)
        daemon.send(signal.SIGHUP)
        daemon.says("config.reloaded")
        home.pilot("backend", "unpark", "command")
        home.reach("completed", id)
    assert home.value(id, "failures") == 0
    home.audit(completed=1)


# What is judged


def test_a_red_gate_is_repaired_and_never_published(home: Home) -> None:
    gate = {"name": "test", "run": "cat mended.txt", "kind": "test"}
    home.repo("web", gates=[gate], gate_repairs=1)
    mended = home.enqueue("web", "do 2: write mended.txt yes", "prompt", task_id="T-1")
    red = home.enqueue("web", "prompt", task_id="T-2", max_attempts=1)
    with home.serve():
        home.reach("completed", mended)
        home.until(lambda: home.value(red, "status") in ("failed", "needs_human"), "the end of the red one")
    assert home.rows("SELECT attempt, failures, delivery FROM executions ORDER BY id") == [
        (1, 0, "branch"),
        (1, 1, "none"),
    ]
    assert home.rows("SELECT failure_class FROM executions WHERE id = ?", red) == [("test",)]
    assert [line.task_id for line in home.diary("start")] == ["T-1", "T-1", "T-2", "T-2"]
    said = home.pilot("logs", mended).out
    assert "No such file or directory" in said  # the agent was told why
    gates = json.loads(home.rows("SELECT gates FROM attempts WHERE execution_id = ?", mended)[0][0])
    assert gates[-1]["exit_code"] == 0
    tree = home.git(home.repositories["web"], "rev-parse", "pilot/T-1^{tree}")
    assert gates[-1]["tree"] == tree
    assert "mended.txt" in home.git(home.repositories["web"], "ls-tree", "--name-only", "pilot/T-1")
    home.audit()


def test_two_identical_failures_need_a_person(home: Home) -> None:
    home.repo("web", gates=[{"name": "test", "run": "echo broken; false", "kind": "test"}], gate_repairs=0)
    id = home.enqueue("web", task_id="T-1", max_attempts=5)
    with home.serve():
        home.reach("needs_human", id)
        assert home.value(id, "attempt") == 2
        assert "twice" in home.value(id, "reason")
        assert home.pilot("show", id, "--json").json["status"] == "needs_human"
        home.pilot("cancel", id)
        home.reach("cancelled", id)
    home.audit(cancelled=1)


def test_dependencies_wait_and_fall_together(home: Home) -> None:
    home.repo("web")
    home.repo("api")
    first = home.enqueue("web", "wait go", task_id="T-1")
    second = home.enqueue("api", task_id="T-2", after=(first,))
    failing = home.enqueue("web", "exit 3", task_id="T-3", max_attempts=1)
    fallen = home.enqueue("api", task_id="T-4", after=(failing, first))
    deeper = home.enqueue("web", task_id="T-5", after=(fallen,))
    with home.serve():
        home.began("T-1")
        assert [home.value(id, "status") for id in (second, fallen, deeper)] == ["blocked"] * 3
        assert home.pilot("why", second, "--json").json["holds"][0]["execution"] == first
        home.go("go")
        home.reach("completed", first, second)
        home.reach("failed", failing)
        home.reach("cancelled", fallen, deeper)
    assert str(failing) in home.value(fallen, "reason")
    starts = [line.task_id for line in home.diary("start")]
    assert starts.index("T-1") < starts.index("T-2")
    assert not {"T-4", "T-5"} & set(starts)
    home.audit(completed=2, failed=1, cancelled=2)


def test_in_place_refuses_a_dirty_checkout(home: Home) -> None:
    web = home.repo("web", workspace="in_place")
    (web / "README.md").write_text("half a thought\n")
    dirty = home.checkout(web)
    id = home.enqueue("web", task_id="T-1")
    with home.serve():
        home.reach("needs_human", id)
        assert home.diary("start") == []
        assert "README.md" in home.value(id, "reason") or "dirty" in home.value(id, "reason")
        assert home.checkout(web) == dirty
        home.git(web, "checkout", "-q", "README.md")
        home.pilot("answer", id, "It is clean now.")
        home.reach("completed", id)
    home.audit(completed=1)
