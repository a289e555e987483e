"""Programmes are read whole, in bounded memory, and leave nothing behind, whatever they try."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pilot.runner import proctree
from pilot.runner.ending import Patience, end_family
from pilot.runner.process import MARKER, Line, Process, end_marked, running
from pilot.runner.proctree import Family, Seen, is_alive, look, marker_of, start_ticks
from pilot.testing.memory import Peak

ENV = {"PATH": os.environ["PATH"]}
PY = sys.executable
MB = 1 << 20


def py(code: str) -> list[str]:
    return [PY, "-Ic", textwrap.dedent(code)]


def sh(code: str) -> list[str]:
    return ["sh", "-c", code]


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def marked(prefix: str) -> list[int]:
    """Living processes whose marker starts so."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if (marker_of(pid) or "").startswith(prefix)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def pid_in(path: Path) -> int:
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


@pytest.fixture
def marker(tmp_path: Path) -> str:
    return f"test-{os.getpid()}-{tmp_path.name}"


@pytest.fixture(autouse=True)
async def nothing_left(marker: str) -> AsyncIterator[None]:
    files = open_files()
    yield
    left = marked(marker)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
    await until(lambda: open_files() <= files, 5)


# --- reading ---------------------------------------------------------------------------------------------------


async def test_lines_of_both_streams_come_as_bytes_in_order(marker: str) -> None:
    code = r"""
        import os, time
        for fd, data in [(1, b"a\n\n"), (2, b"\xff\x00\x1b[31m\n"), (1, b"b"), (1, b"c\nlast")]:
            os.write(fd, data); time.sleep(0.05)
    """
    async with running(py(code), cwd="/", env=ENV, marker=marker) as process:
        lines = [line async for line in process.lines()]
        assert await process.wait() == 0 == process.returncode

    assert lines == [
        Line("stdout", b"a", False),
        Line("stdout", b"", False),
        Line("stderr", b"\xff\x00\x1b[31m", False),
        Line("stdout", b"bc", False),
        Line("stdout", b"last", False),
    ]


async def test_a_line_of_100_mb_is_cut_in_bounded_memory_and_the_next_is_whole(marker: str) -> None:
    code = "head -c 104857600 /dev/zero | tr '\\0' x; echo; echo next"

    with Peak() as peak:
        async with running(sh(code), cwd="/", env=ENV, marker=marker, line_limit=1000) as process:
            lines = [line async for line in process.lines()]

    assert lines == [Line("stdout", b"x" * 1000, True), Line("stdout", b"next", False)]
    assert peak.rise < 24


@pytest.mark.parametrize(("size", "cut"), [(999, False), (1000, False), (1001, True)])
@pytest.mark.parametrize("end", ["\n", ""])
async def test_a_line_is_cut_only_when_it_is_longer_than_the_limit(marker: str, size: int, cut: bool, end: str) -> None:
    code = f"print('x' * {size}, end={end!r})"
    async with running(py(code), cwd="/", env=ENV, marker=marker, line_limit=1000) as process:
        assert [line async for line in process.lines()] == [Line("stdout", b"x" * min(size, 1000), cut)]


async def test_a_programme_that_nobody_reads_waits_and_memory_stays_flat(marker: str) -> None:
    def written() -> int:
        io = Path(f"/proc/{process.pid}/io").read_text()
        return int(io.split("wchar: ")[1].split()[0])

    with Peak() as peak:
        async with running(["yes"], cwd="/", env=ENV, marker=marker) as process:
            taken = 0
            async for _, data in process.chunks():
                taken += len(data)
                before = -1
                while before != written():  # as far as it comes until someone reads on
                    before = written()
                    await asyncio.sleep(0.05)
                if taken > 20 * MB:
                    break
            assert written() < taken + 8 * MB
    assert peak.rise < 24


async def test_a_reader_that_is_cancelled_loses_no_line(marker: str) -> None:
    code = "import sys,time\nfor i in range(40): print(i, flush=True); time.sleep(0.005)"
    got = []
    async with running(py(code), cwd="/", env=ENV, marker=marker) as process:
        while True:
            try:
                async with asyncio.timeout(0.003):
                    got.append(int((await anext(process.lines())).data))
            except TimeoutError:
                continue
            except StopAsyncIteration:
                break
    assert got == list(range(40))


async def test_a_grandchild_that_holds_the_pipes_delays_nothing(marker: str) -> None:
    started = time.monotonic()
    async with running(sh("sleep 60 & echo done"), cwd="/", env=ENV, marker=marker) as process:
        assert await process.wait() == 0
        assert time.monotonic() - started < 2
        assert [line.data async for line in process.lines()] == [b"done"]
        assert time.monotonic() - started < 5
    assert time.monotonic() - started < 10


async def test_what_was_written_is_read_to_the_end_by_a_slow_reader_too(marker: str) -> None:
    code = "import os\nif os.fork(): os.write(1, b'y' * 1_900_000); os._exit(0)\nimport time; time.sleep(60)"
    async with running(py(code), cwd="/", env=ENV, marker=marker) as process:
        await process.wait()
        await asyncio.sleep(0.5)  # longer than what is left to a grandchild
        size = 0
        async for _, data in process.chunks():
            size += len(data)
    assert size == 1_900_000


async def test_a_grandchild_that_writes_for_ever_does_not_keep_the_output_open(marker: str) -> None:
    async with running(sh("yes & echo done"), cwd="/", env=ENV, marker=marker) as process:
        async with asyncio.timeout(60):
            assert b"done" in {line.data async for line in process.lines()}


async def test_output_that_comes_just_after_the_exit_counts(marker: str) -> None:
    async with running(sh("(sleep 0.05; echo late) & echo early"), cwd="/", env=ENV, marker=marker) as process:
        assert [line.data async for line in process.lines()] == [b"early", b"late"]


async def test_lines_that_come_together_are_gathered_into_one_piece(marker: str) -> None:
    code = "import time\nfor i in range(50): print(i, flush=True); time.sleep(0.001)"
    async with running(py(code), cwd="/", env=ENV, marker=marker) as process:
        pieces = [data async for _, data in process.chunks(gather=0.5)]
    assert b"".join(pieces) == b"".join(b"%d\n" % i for i in range(50))
    assert len(pieces) <= 10  # of fifty, also where the programme itself is kept waiting

    code = "import os\nfor i in range(3000): os.write(1, b'out\\n'); os.write(2, b'err\\n')"
    started = time.monotonic()
    async with running(py(code), cwd="/", env=ENV, marker=marker) as process:
        kinds = [stream async for stream, data in process.chunks(gather=0.2) for _ in data.splitlines()]
    assert sorted(kinds) == ["stderr"] * 3000 + ["stdout"] * 3000
    assert time.monotonic() - started < 20  # not one wait per line, though each is a piece


# --- input, environment, start ---------------------------------------------------------------------------------


async def test_megabytes_of_input_pass_while_output_comes_back(marker: str) -> None:
    data = os.urandom(5 * MB)
    async with running(["cat", "/dev/stdin"], cwd="/", env=ENV, marker=marker, stdin=data) as process:
        back = b"".join([piece async for _, piece in process.chunks()])
        assert await process.wait() == 0
    assert back == data


async def test_a_programme_need_not_read_its_input(marker: str) -> None:
    async with running(sh("exit 3"), cwd="/", env=ENV, marker=marker, stdin=b"x" * 5 * MB) as process:
        assert await process.wait() == 3
    async with running(["cat"], cwd="/", env=ENV, marker=marker) as process:
        assert [line async for line in process.lines()] == []


async def test_an_open_input_is_written_until_it_is_closed(marker: str) -> None:
    async with running(["cat"], cwd="/", env=ENV, marker=marker, stdin=b"1\n", keep_stdin=True) as process:
        lines = process.lines()
        assert (await anext(lines)).data == b"1"
        await process.write(b"2\n")
        assert (await anext(lines)).data == b"2"
        await process.close_stdin()
        await process.close_stdin()
        assert await process.wait() == 0
        with pytest.raises(BrokenPipeError):
            await process.write(b"3\n")


async def test_writing_waits_for_a_programme_that_does_not_read_and_fails_when_it_dies(marker: str) -> None:
    async with running(["sleep", "60"], cwd="/", env=ENV, marker=marker, keep_stdin=True) as process:
        writing = asyncio.create_task(process.write(b"x" * 5 * MB))
        await asyncio.sleep(0.2)
        assert not writing.done()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(BrokenPipeError):
            await writing
        assert await process.wait() == -9


async def test_a_programme_without_an_input_can_not_be_written_to(marker: str) -> None:
    async with running(["true"], cwd="/", env=ENV, marker=marker) as process:
        with pytest.raises(BrokenPipeError):
            await process.write(b"x")


async def test_the_environment_is_what_was_given_and_the_marker(
    marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "secret")
    env = ENV | {"A": "1", MARKER: "somebody else's"}
    code = """
        import os
        print(dict(os.environ))
        print(os.getcwd(), os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid())
    """
    async with running(py(code), cwd=str(tmp_path), env=env, marker=marker) as process:
        lines = [line.data.decode() async for line in process.lines()]
    seen = {k: v for k, v in eval(lines[0]).items() if k != "LC_CTYPE"}  # Python sets that one itself
    assert seen.pop(MARKER).startswith(f"{marker}/")
    assert seen == ENV | {"A": "1"}
    assert lines[1] == f"{tmp_path} True True"


@pytest.mark.parametrize(
    ("argv", "cwd", "error"),
    [
        (["no-such-programme"], "/", FileNotFoundError),
        (["/etc/passwd"], "/", PermissionError),
        (["true"], "/no/such/place", FileNotFoundError),
        (["true"], "/etc/passwd", NotADirectoryError),
        (["true", "a\0b"], "/", OSError),
        (["true", "\ud800"], "/", OSError),
        (["true", "x" * MB], "/", OSError),
    ],
)
@pytest.mark.parametrize("stdin", [None, b"x"])
async def test_what_can_not_be_started_is_an_os_error(
    marker: str, argv: list[str], cwd: str, error: type[OSError], stdin: bytes | None
) -> None:
    with pytest.raises(OSError) as raised:
        async with running(argv, cwd=cwd, env=ENV, marker=marker, stdin=stdin):
            pytest.fail("it started")
    assert type(raised.value) is error


async def test_a_machine_without_another_thread_is_an_os_error_and_leaves_no_child(
    marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as poor:
        if sys.version_info >= (3, 12):
            watcher = "asyncio.unix_events._PidfdChildWatcher.add_child_handler"
            poor.setattr(watcher, lambda *_: refuse(threading.current_thread()))
        else:
            poor.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't be watched"):
            async with running(["sleep", "60"], cwd="/", env=ENV, marker=marker):
                pytest.fail("it started")
    assert marked(marker) == []


# --- ending ----------------------------------------------------------------------------------------------------

TRAPS = """
    import os, signal, time
    def note(number, _): os.write(1, signal.Signals(number).name.encode() + b"\\n")  # print is not reentrant
    for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, note)
    print("ready", flush=True)
    while True: time.sleep(60)
"""


async def test_the_ladder_is_interrupt_then_int_then_term_then_kill(marker: str) -> None:
    steps = []

    async def interrupt(process: Process) -> None:
        steps.append("interrupt")
        await process.write(b"please\n")

    argv = py(TRAPS)
    async with running(
        argv, cwd="/", env=ENV, marker=marker, keep_stdin=True, interrupt=interrupt, grace=0.3
    ) as process:
        lines = process.lines()
        assert (await anext(lines)).data == b"ready"
        await process.end()
        await process.end()
        steps += [line.data.decode() async for line in lines]
    assert steps == ["interrupt", "SIGINT", "SIGTERM"]
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("failing", [False, True])
async def test_an_interrupt_that_hangs_or_fails_is_followed_by_the_signals(marker: str, failing: bool) -> None:
    async def interrupt(_: Process) -> None:
        if failing:
            raise ValueError("no such request")
        await asyncio.sleep(60)

    async with running(["sleep", "60"], cwd="/", env=ENV, marker=marker, interrupt=interrupt, grace=0.2) as process:
        pass
    assert process.returncode == -signal.SIGINT


async def test_an_interrupt_that_works_spares_the_signals(marker: str) -> None:
    async def interrupt(process: Process) -> None:
        await process.close_stdin()
        await process.wait()

    async with running(
        sh("cat; exit 5"), cwd="/", env=ENV, marker=marker, keep_stdin=True, interrupt=interrupt
    ) as process:
        pass
    assert process.returncode == 5


async def test_a_full_pipe_does_not_keep_a_programme_from_ending_itself(marker: str) -> None:
    code = """
        import signal, sys
        def bye(*_): sys.stdout.buffer.write(b"x" * 9_000_000); sys.stdout.flush(); sys.exit(7)
        signal.signal(signal.SIGINT, bye)
        sys.stderr.write("ready\\n"); sys.stderr.flush()
        while True: signal.pause()
    """
    async with running(py(code), cwd="/", env=ENV, marker=marker, grace=20) as process:
        await anext(process.lines())
    assert process.returncode == 7


async def test_a_stopped_programme_ends_by_itself(marker: str) -> None:
    async with running(["sleep", "60"], cwd="/", env=ENV, marker=marker, grace=20) as process:
        os.kill(process.pid, signal.SIGSTOP)
        await until(lambda: (seen := look(process.pid)) and seen.state == "T")
        started = time.monotonic()
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - started < 10


# the first process starts one that hides, and goes on or exits
HIDE = """
    import os, signal, sys, time
    where, stays = sys.argv[1], sys.argv[2] == "stays"
    def hidden(clear):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
        code = (
            "import os,signal,sys,time\\n"
            "with open(sys.argv[1] + '.part', 'w') as file: print(os.getpid(), file=file)\\n"
            "os.rename(sys.argv[1] + '.part', sys.argv[1])\\n"
            "if sys.argv[2] == 'stop': os.kill(os.getpid(), signal.SIGSTOP)\\n"
            "while True: time.sleep(60)"
        )
        os.execve(sys.executable, [sys.executable, "-Ic", code, where, sys.argv[4]], {} if clear else dict(os.environ))
    how = sys.argv[3]
    if os.fork() == 0:
        if "setsid" in how: os.setsid()
        if "double" in how and os.fork(): os._exit(0)
        hidden("clear" in how)
    while not os.path.exists(where): time.sleep(0.01)
    print("hidden", flush=True)
    while stays: time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "stays"),
    [
        ("child", "exits"),
        ("setsid", "exits"),
        ("setsid double", "exits"),
        ("setsid double", "stays"),
        ("double clear", "exits"),  # found by its session
        ("setsid clear", "stays"),  # found by descent
    ],
)
@pytest.mark.parametrize("then", ["run", "stop"])
async def test_no_descendant_survives(marker: str, tmp_path: Path, how: str, stays: str, then: str) -> None:
    where = tmp_path / "pid"
    argv = [*py(HIDE), str(where), stays, how, then]
    async with running(argv, cwd="/", env=ENV, marker=marker, grace=0.3) as process:
        assert (await anext(process.lines())).data == b"hidden"
        if stays == "exits":
            assert await process.wait() == 0
        pid = await pid_in(where)
        ticks = start_ticks(pid)
        assert ticks is not None
        assert is_alive(pid, ticks)
    assert not is_alive(pid, ticks)


async def test_a_stopped_descendant_gets_its_chance_to_end_in_order(marker: str, tmp_path: Path) -> None:
    where, last = tmp_path / "pid", tmp_path / "last-words"
    stopped = f"trap 'echo bye > {last}; exit' TERM; echo $$ > {where}; kill -STOP $$; while :; do sleep 1; done"
    argv = ["sh", "-c", 'setsid sh -c "$1" & wait', "sh", stopped]
    async with running(argv, cwd="/", env=ENV, marker=marker, grace=20):
        pid = await pid_in(where)
        await until(lambda: (seen := look(pid)) and seen.state == "T")
    assert last.read_text() == "bye\n"


async def test_another_run_with_the_same_marker_goes_on(marker: str) -> None:
    async with running(["sleep", "60"], cwd="/", env=ENV, marker=marker) as longer:
        async with running(["true"], cwd="/", env=ENV, marker=marker) as process:
            await process.wait()
        assert longer.returncode is None
        assert is_alive(longer.pid, start_ticks(longer.pid) or 0)


# --- cancellation ----------------------------------------------------------------------------------------------


async def test_a_cancellation_ends_it_and_goes_on_up(marker: str) -> None:
    async def work() -> None:
        async with running(sh("sleep 60 & sleep 60"), cwd="/", env=ENV, marker=marker) as process:
            ready.set_result(process)
            async for _ in process.lines():
                pass

    ready: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(work())
    await ready
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert marked(marker) == []


async def test_a_second_cancellation_shortens_the_graces(marker: str) -> None:
    async def work() -> None:
        async with running(py(TRAPS), cwd="/", env=ENV, marker=marker, grace=600) as process:
            await anext(process.lines())
            ready.set()
            await process.wait()

    ready = asyncio.Event()
    task = asyncio.create_task(work())
    await ready.wait()
    task.cancel()
    await asyncio.sleep(0.3)
    assert not task.done()
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 5
    assert marked(marker) == []


async def test_cancelled_at_any_moment_of_its_start_it_leaves_nothing(marker: str) -> None:
    async def work() -> None:
        argv = sh("setsid sleep 60 & sleep 60")
        async with running(argv, cwd="/", env=ENV, marker=marker, stdin=b"x", grace=0.3) as process:
            await process.wait()

    for turns in range(12):
        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert marked(marker) == [], turns


async def test_a_closing_loop_leaves_nothing_and_says_nothing(marker: str, tmp_path: Path) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(
        textwrap.dedent(f"""
        import asyncio
        from pilot.runner.process import running
        async def agent():
            argv = ["sh", "-c", "trap '' INT TERM; (trap '' TERM; setsid sleep 60) & while :; do sleep 1; done"]
            async with running(argv, cwd="/", env={ENV!r}, marker={marker!r}, grace=0.3) as process:
                print("up", flush=True)
                await process.wait()
        async def main():
            tasks = [asyncio.create_task(agent()) for _ in range(3)]
            await asyncio.Event().wait()
        asyncio.run(main())
        """)
    )
    daemon = subprocess.Popen([PY, "-W", "error", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert daemon.stdout is not None
    for _ in range(3):
        await asyncio.to_thread(daemon.stdout.readline)
    daemon.send_signal(signal.SIGINT)
    _, errors = await asyncio.to_thread(daemon.communicate, timeout=30)
    assert errors.decode().rstrip().endswith("KeyboardInterrupt")
    assert b"Warning" not in errors
    assert b"never" not in errors
    assert marked(marker) == []


# --- recovery --------------------------------------------------------------------------------------------------


async def test_recovery_ends_what_is_marked_and_nobody_else(marker: str, tmp_path: Path) -> None:
    stubborn = sh(f"trap '' TERM; echo up >> {tmp_path}/up; while :; do sleep 1; done")
    mine = [subprocess.Popen(stubborn, env=ENV | {MARKER: f"{marker}:1:{n}"}, start_new_session=True) for n in range(2)]
    other = subprocess.Popen(stubborn, env=ENV | {MARKER: f"{marker}:2:1"}, start_new_session=True)
    try:
        await until(lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text() == "up\n" * 3)
        found = await end_marked(f"{marker}:1:")
        assert {process.pid for process in mine} <= set(found)
        assert [process.wait() for process in mine] == [-9, -9]
        assert other.poll() is None
        assert await end_marked(f"{marker}:1:") == []
    finally:
        other.kill()
        other.wait()
    await end_marked(f"{marker}:2:")
    with pytest.raises(ValueError, match="empty prefix"):
        await end_marked("")


async def test_recovery_spares_the_claims_after_the_lost_one(marker: str) -> None:
    sleep = ["sleep", "600"]
    lost, later = (
        subprocess.Popen(sleep, env=ENV | {MARKER: f"{marker}:1:{fence}/ab"}, start_new_session=True)
        for fence in (9, 10)
    )
    try:
        await until(lambda: len(marked(f"{marker}:1:")) == 2)
        assert await end_marked(f"{marker}:1:", upto=9) == [lost.pid]
        assert lost.wait() < 0
        assert later.poll() is None
    finally:
        later.kill()
        later.wait()


async def test_recovery_spares_itself_and_its_ancestors_inside_a_marked_run(marker: str) -> None:
    code = f"import asyncio; from pilot.runner.process import end_marked; print(asyncio.run(end_marked({marker!r})))"
    argv = ["sh", "-c", '"$@"; echo alive', "sh", PY, "-c", code]
    run = await asyncio.to_thread(
        subprocess.run, argv, env=ENV | {MARKER: f"{marker}/1"}, capture_output=True, check=True
    )
    assert run.stdout == b"[]\nalive\n"


SUBREAPER = """
    import asyncio, os, sys, time
    from pathlib import Path
    from pilot.runner.process import become_subreaper, running
    from pilot.runner.proctree import is_alive, look, start_ticks
    ENV, MARK, HIDE, WHERE = {env!r}, {marker!r}, {hide!r}, {where!r}

    async def hide(name):
        argv = [sys.executable, "-Ic", HIDE, WHERE + name, "exits", "setsid double clear", "run"]
        async with running(argv, cwd="/", env=ENV, marker=MARK, grace=0.3) as process:
            await process.wait()
            pid = int(Path(WHERE + name).read_text())
            alive = pid, start_ticks(pid)
            assert is_alive(*alive)
        return alive

    async def main():
        assert become_subreaper()
        assert not is_alive(*await hide("a")), "an orphan without a name survived"
        async with running(["sleep", "60"], cwd="/", env=ENV, marker=MARK) as older:
            kept = await hide("b")
            assert is_alive(*kept), "it may be the older run's"
            assert older.returncode is None
        assert not is_alive(*kept), "the last run that may have started it ends it"
        async with running(["sh", "-c", "setsid true & sleep 0.2"], cwd="/", env=ENV, marker=MARK) as process:
            await process.wait()
        deadline = time.monotonic() + 10
        while zombies := [p for p in map(look, map(int, filter(str.isdigit, os.listdir("/proc"))))
                          if p and p.ppid == os.getpid()]:
            assert time.monotonic() < deadline, zombies
            await asyncio.sleep(0.05)
        print("ok")

    asyncio.run(main())
"""


async def test_orphans_that_hide_everything_are_ended_and_reaped_by_a_subreaper(marker: str, tmp_path: Path) -> None:
    code = textwrap.dedent(SUBREAPER).format(
        env=ENV, marker=marker, hide=textwrap.dedent(HIDE), where=str(tmp_path / "pid-")
    )
    run = await asyncio.to_thread(subprocess.run, [PY, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "ok\n", "")


# --- poor machines ---------------------------------------------------------------------------------------------

NO_FILES = """
    import asyncio, os, resource
    from pilot.runner.process import running
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    hoard = []

    async def main():
        async with running(["sleep", "60"], cwd="/", env={env!r}, marker={marker!r}, grace=0.3) as process:
            try:
                while True: hoard.append(os.open("/dev/null", os.O_RDONLY))
            except OSError: pass
            try:
                async with running(["true"], cwd="/", env={env!r}, marker={marker!r}): print("started?")
            except OSError as error: print(error.strerror)
            asyncio.get_running_loop().call_later(1, lambda: [os.close(fd) for fd in hoard])
        print(process.returncode)

    asyncio.run(main())
"""


async def test_a_machine_out_of_files_refuses_and_still_ends_what_runs(marker: str) -> None:
    code = textwrap.dedent(NO_FILES).format(env=ENV, marker=marker)
    run = await asyncio.to_thread(subprocess.run, [PY, "-W", "error", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Too many open files" in run.stdout.splitlines()
    assert run.stdout.splitlines()[-1] == "-2"
    assert marked(marker) == []


async def test_a_look_that_failed_is_not_taken_for_nobody(marker: str) -> None:
    class Poor(Family):
        fails = 3

        def scan(self) -> list[Seen]:
            self.fails -= 1
            if self.fails >= 0:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().scan()

    async with running(["sleep", "60"], cwd="/", env=ENV, marker=marker) as process:
        family = Poor(lambda value: value.startswith(marker))
        assert await end_family(family, Patience(), 1.0) == []
        assert list(family.known) == [process.pid]
        assert await process.wait() == -signal.SIGTERM


async def test_without_proc_the_group_is_ended(marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proctree, "PROC", tmp_path / "no-proc")
    argv = sh("trap '' TERM INT; (trap '' TERM INT; sleep 60) & echo up; while :; do sleep 1; done")
    async with running(argv, cwd="/", env=ENV, marker=marker, grace=0.2) as process:
        await anext(process.lines())
    assert process.returncode == -9
    monkeypatch.undo()
    await until(lambda: marked(marker) == [])  # nobody could see them go
    async with running(["true"], cwd="/", env=ENV, marker=marker) as process:
        assert await process.wait() == 0
