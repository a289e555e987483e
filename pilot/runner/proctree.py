"""Processes as the kernel shows them in /proc: who lives, who descends from whom, who carries which marker.

Everything here is synchronous and cheap (about 10 µs per process of the machine). Where there is no /proc the
scans find nothing, and callers are left with what process groups can do.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MARKER = "PILOT_RUN"
"""The environment variable that every process of a run inherits."""

PROC = Path("/proc")

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_ENTRY = f"{MARKER}=".encode()
_VSIZE, _ENV = 20, slice(47, 49)
"""Places in a process's `stat`, from its state on (proc(5)): how much memory, and between which its environment."""
_BECOMING = 20
"""ms at most that a process has no environment when it becomes another program; hardly ever is it 1."""
_DEAD = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Seen:
    """One process at the moment it was looked at. `ticks` is its start, in clock ticks since boot."""

    pid: int
    ppid: int
    session: int
    state: str
    ticks: int

    @property
    def alive(self) -> bool:
        """Not a zombie."""
        return self.state not in _DEAD


def look(pid: int) -> Seen | None:
    """The process with this pid; None when there is none. Raises OSError when the machine is out of files."""
    try:
        stat = _read(f"{PROC}/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = _fields(stat, 20)
    return Seen(pid, int(fields[1]), int(fields[3]), fields[0].decode("ascii", "replace"), int(fields[19]))


def _fields(stat: bytes, most: int = -1) -> list[bytes]:
    # the name may hold spaces and parentheses: what counts begins after the last one
    return stat[stat.rfind(b")") + 2 :].split(b" ", most)


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the boot id and the pid it names it for ever.

    None: no such process. 0 where the system does not tell.
    """
    if not has_proc():
        return 0 if is_there(pid) else None
    seen = look(pid)
    return None if seen is None else seen.ticks


def is_alive(pid: int, ticks: int) -> bool:
    """Whether that very process still runs: not a zombie, and no later one that got its pid."""
    if not has_proc():
        return is_there(pid)
    seen = look(pid)
    return seen is not None and seen.ticks == ticks and seen.alive


def has_proc() -> bool:
    """Whether this system shows its processes as files."""
    return (PROC / "self" / "stat").exists()


def become_subreaper() -> bool:
    """Make this process the parent of every orphan that its children leave. False where the system can't.

    Called once, at start, by a process that starts everything through `running`: from then on a child in a
    session of its own that carries no marker is taken for an orphan of a run, and ended with it.
    """
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1) == 0


def is_subreaper() -> bool:
    """Whether orphans come to this process."""
    import ctypes

    answer = ctypes.c_int(0)
    return _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer)) == 0 and answer.value == 1


def marker_of(pid: int) -> str | None:
    """The marker in the process's environment, "" without one; None when its environment can't be read.

    Waits some ms for a process that is just becoming another program: until that is done it has no environment.
    """
    try:
        environ = _environ(f"{PROC}/{pid}")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if environ is None:
        return None
    for entry in environ.split(b"\0"):
        if entry.startswith(_ENTRY):
            return os.fsdecode(entry[len(_ENTRY) :])
    return ""


def send(process: Seen, number: int) -> bool:
    """Signal that very process, never one that got its pid later. False when it is gone or not ours to signal."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # an old kernel, or no file left: a check right before has to do
        return is_alive(process.pid, process.ticks) and _kill(process.pid, number)
    try:
        if start_ticks(process.pid) != process.ticks:
            return False
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def signal_group(group: int, number: int) -> None:
    """Signal a process group; nobody left in it is no error."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def reap(pid: int, ticks: int) -> None:
    """Take the exit status of an orphan that came to us, so that it does not stay a zombie."""
    seen = look(pid)
    if seen is None or seen.alive or seen.ticks != ticks or seen.ppid != os.getpid():
        return
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


@dataclass(slots=True)
class Family:
    """The processes of one run (or of many, for recovery), however they hide.

    `root` is the first one, which leads a session of its own, and `root_ticks` its start (0: it was gone at
    once). Nothing of the run is older than `since`. `known` keeps who was found, so that they stay found when
    their parent dies.
    """

    wanted: Callable[[str], bool]
    root: int = 0
    root_ticks: int = 0
    since: int = 0
    known: dict[int, int] = field(default_factory=dict)
    suspects: list[Seen] = field(default_factory=list)
    dead: list[Seen] = field(default_factory=list)

    def begin(self, root: int) -> None:
        """The run's first process was just started by this one."""
        self.root, self.root_ticks = root, start_ticks(root) or 0
        self.since = self.root_ticks or start_ticks(os.getpid()) or 0

    def led(self) -> bool:
        """Whether the root's number is still its own: its session's and group's, and nobody else's."""
        if not has_proc():
            return True
        try:
            first = look(self.root)
        except OSError:
            return True
        return first is None or first.ticks == self.root_ticks

    def scan(self) -> list[Seen]:
        """Every living process of the family: by marker, session, descent, or because it was known.

        Raises OSError when the machine is out of files: then nothing is known about who lives.
        """
        people, vanished = _everyone()
        for _ in range(_LOOKS):
            if not vanished:
                break
            people, vanished = _everyone()  # who vanished while we looked may have left a child behind
        found = self._members(people)
        self.known.update((one.pid, one.ticks) for one in found.values())
        self._adopted(people, found)
        return list(found.values())

    def orphans(self) -> list[Seen]:
        """Who, after `scan`, can only have come from this run, though nothing on them says so.

        They left the session, cleared their environment, and were given to us as subreaper. While another run
        is older than such an orphan it may be that one's, and the run that ends last ends it. To be called on
        the thread that starts children: one between fork and exec looks the same. For how long, see `marker_of`.
        """
        if not self.suspects or not is_subreaper():
            return []
        found = [one for one in self.suspects if is_alive(one.pid, one.ticks) and marker_of(one.pid) == ""]
        self.known.update((one.pid, one.ticks) for one in found)
        return found

    def _members(self, people: Mapping[int, Seen]) -> dict[int, Seen]:
        spared = _line_of(os.getpid(), people)
        first = people.get(self.root)
        led = self.root and (first is None or first.ticks == self.root_ticks)
        found = {}
        for one in people.values():
            if one.pid in spared or one.ticks < self.since or not one.alive:
                continue
            if (
                self.known.get(one.pid) == one.ticks
                or (led and one.session == self.root)
                or self.wanted(marker_of(one.pid) or "")
            ):
                found[one.pid] = one
        for one in _descendants(found, people):
            if one.pid not in spared and one.alive:
                found[one.pid] = one
        return found

    def _adopted(self, people: Mapping[int, Seen], found: Mapping[int, Seen]) -> None:
        """Note children of this process that lead or joined another session: suspects, and dead ones."""
        me = people.get(os.getpid())
        if me is None or not self.root:
            return
        children = [
            one for one in people.values() if one.ppid == me.pid and one.session != me.session and one.pid != self.root
        ]
        self.dead = [one for one in children if not one.alive]
        nameless, oldest = [], None
        for one in children:
            if one.alive and one.pid not in found:
                if marker_of(one.pid) == "":
                    nameless.append(one)
                else:
                    oldest = one.ticks if oldest is None else min(oldest, one.ticks)
        self.suspects = [one for one in nameless if one.ticks >= self.since and (oldest is None or oldest > one.ticks)]


_LOOKS = 3


def _everyone() -> tuple[dict[int, Seen], bool]:
    """Every process by pid, and whether one vanished between listing and looking."""
    people, vanished = {}, False
    try:
        names = os.listdir(PROC)  # noqa: PTH208  (an iterator of Paths costs more than the look itself)
    except FileNotFoundError:
        return {}, False
    for name in names:
        if name.isdigit():
            seen = look(int(name))
            if seen is None:
                vanished = True
            else:
                people[seen.pid] = seen
    return people, vanished


def _line_of(pid: int, people: Mapping[int, Seen]) -> set[int]:
    """The process and all its ancestors: never to be ended, even when pilot itself runs inside a marked run."""
    line: set[int] = set()
    while pid in people and pid not in line:
        line.add(pid)
        pid = people[pid].ppid
    return line


def _descendants(ancestors: Iterable[int], people: Mapping[int, Seen]) -> list[Seen]:
    children: dict[int, list[Seen]] = {}
    for one in people.values():
        children.setdefault(one.ppid, []).append(one)
    found, todo = [], list(ancestors)
    while todo:
        for one in children.pop(todo.pop(), ()):
            found.append(one)
            todo.append(one.pid)
    return found


def _prctl(option: int, argument: object) -> int:
    import ctypes

    try:
        return int(ctypes.CDLL(None).prctl(option, argument, 0, 0, 0))
    except AttributeError:  # not Linux
        return -1


def is_there(pid: int) -> bool:
    """Whether there is any process of this number, also one that is not shown."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _environ(path: str) -> bytes | None:
    for _ in range(_BECOMING):
        environ = _read(f"{path}/environ")
        if environ:
            return environ
        stat = _fields(_read(f"{path}/stat"))
        if stat[_VSIZE] == b"0":  # dead, or the kernel's own
            return None
        start, end = stat[_ENV]
        if end == b"0":
            time.sleep(0.001)
        elif start == end:
            return environ
    return None


def _read(path: str) -> bytes:
    """A file of /proc: several times cheaper than through a file object, and a scan reads hundreds."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = piece = os.read(handle, 1 << 16)
        while piece:
            piece = os.read(handle, 1 << 16)
            data += piece
        return data
    finally:
        os.close(handle)
