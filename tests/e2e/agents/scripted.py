"""An agent that does as its task says, line by line, and keeps a diary outside of its workspace.

    python scripted.py WORKSPACE TASK_ID PROJECT CONTROL < prompt

Lines `do: WORDS` of the prompt are orders, in order; `do 2: WORDS` only when the task is begun for the second time.
In the end it writes `<task_id>.txt`, unless it was told `nothing`, or came to its end before: what it did then has to
be there still. CONTROL is a directory: the diary, and files for
which an agent waits, so that a test decides when something goes on. What works in a project holds the project's
lock, children included: two at a time would be written down as OVERLAP, whenever it happens. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 90.0
"""Seconds after which an agent gives up, so that none outlives a test that broke."""
BEAT = 0.03
_ORDER = re.compile(r"^do(?: (\d+))?: (.+)$", re.MULTILINE)
_STUBBORN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def write_diary(control: Path, *words: object) -> None:
    """One line, whole: what, and when by the machine's monotonic clock."""
    line = " ".join(map(str, (*words, time.monotonic_ns()))) + "\n"
    handle = os.open(control / "diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def lock(control: Path, lane: str) -> bool:
    """Take one of the lane's places; held by this process and its children until the last of them has gone."""
    limit = control / f"limit-{lane}"
    for place in range(int(limit.read_text()) if limit.exists() else 1):
        handle = os.open(control / f"lock-{lane}-{place}", os.O_RDWR | os.O_CREAT, 0o600)
        os.set_inheritable(handle, True)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
        else:
            return True
    return False


def wait_for(sign: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not sign.exists():
        if time.monotonic() > end or not sign.parent.exists():
            sys.exit(99)
        time.sleep(0.01)


def stay(control: Path, task_id: str) -> None:
    """What a child does that left the group and heeds nothing: live on, and say so."""
    for number in _STUBBORN:
        signal.signal(number, signal.SIG_IGN)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and control.exists():
        write_diary(control, "beat", task_id, os.getpid())
        time.sleep(BEAT)


class Agent:
    def __init__(self, workspace: Path, task_id: str, project: str, control: Path, prompt: str) -> None:
        self.workspace = workspace
        self.task_id = task_id
        self.lane = project
        self.control = control
        self.prompt = prompt
        self.silent = False

    def run(self) -> None:
        diary = self.control / "diary"
        before = diary.read_text().splitlines() if diary.exists() else []
        times = 1 + sum(line.split()[:2] == ["start", self.task_id] for line in before)
        self.silent = any(line.split()[:2] == ["end", self.task_id] for line in before)
        orders = [words for n, words in _ORDER.findall(self.prompt) if not n or int(n) == times]
        for words in orders:
            if words.startswith("lane "):
                self.lane = words.removeprefix("lane ")
        if not lock(self.control, self.lane):
            write_diary(self.control, "OVERLAP", self.task_id, os.getpid(), self.lane)
        write_diary(self.control, "start", self.task_id, os.getpid(), self.lane)
        for words in orders:
            order, _, rest = words.partition(" ")
            getattr(self, f"do_{order.replace('-', '_')}")(rest)
        if not self.silent:
            self.do_write(f"{self.task_id}.txt {self.task_id}")
        write_diary(self.control, "end", self.task_id, os.getpid(), self.lane)

    def do_lane(self, _: str) -> None:
        """Read before anything else."""

    def do_nothing(self, _: str) -> None:
        self.silent = True

    def do_write(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def do_wait(self, name: str) -> None:
        wait_for(self.control / name)

    def do_tell(self, name: str) -> None:
        (self.control / name).touch()

    def do_stubborn(self, _: str) -> None:
        for number in _STUBBORN:
            signal.signal(number, signal.SIG_IGN)

    def do_child(self, _: str) -> None:
        """A child in a session of its own that ignores every polite signal."""
        argv = [sys.executable, "-I", "-S", __file__, "--child", str(self.control), self.task_id]
        quiet = subprocess.DEVNULL
        subprocess.Popen(argv, start_new_session=True, close_fds=False, stdin=quiet, stdout=quiet, stderr=quiet)

    def do_say(self, text: str) -> None:
        print(text, flush=True)

    def do_prompt(self, _: str) -> None:
        print(self.prompt, flush=True)

    def do_environment(self, _: str) -> None:
        print("\n".join(sorted(os.environ)), flush=True)

    def do_line(self, megabytes: str) -> None:
        """One line, as long as it was asked for."""
        for _ in range(int(megabytes)):
            sys.stdout.buffer.write(b"x" * (1 << 20))
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()

    def do_flood(self, megabytes: str) -> None:
        """Many lines."""
        block = b"".join(b"%062d\n" % n for n in range(16384))
        for _ in range(int(megabytes)):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()

    def do_bytes(self, escaped: str) -> None:
        """Any bytes, written as Python escapes."""
        sys.stdout.buffer.write(escaped.encode().decode("unicode_escape").encode("latin-1"))
        sys.stdout.buffer.flush()

    def do_exit(self, code: str) -> None:
        write_diary(self.control, "exit", self.task_id, os.getpid(), code)
        sys.stdout.flush()
        os._exit(int(code))


def main() -> None:
    if sys.argv[1] == "--child":
        stay(Path(sys.argv[2]), sys.argv[3])
        return
    workspace, task_id, project, control = sys.argv[1:5]
    Agent(Path(workspace), task_id, project, Path(control), sys.stdin.read()).run()


if __name__ == "__main__":
    main()
