"""What is mounted where in a sandbox: outermost first, each on something that nobody can have put there as a trap."""

# Plain strings and os.path: a command line is made of them, for each start of a program.
# ruff: noqa: PTH110, PTH112, PTH118, PTH120

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pilot.runner.sandbox_system import RUN

Kind = Literal["bind", "ro-bind", "tmpfs", "symlink"]


@dataclass(frozen=True, slots=True)
class Mount:
    """One of bubblewrap's options. `source` is on the machine; of a symlink it is where that leads.

    `own`: a folder of pilot's that agents write into: what is to be mounted below it gets a mount point made.
    `pin`: mounted also where it is seen already, since only what is mounted itself can't be moved away.
    """

    kind: Kind
    source: str = ""
    own: bool = False
    pin: bool = False


@dataclass(slots=True)
class Mounts:
    """By place in the sandbox; whoever comes later at the same place counts."""

    at: dict[str, Mount] = field(default_factory=dict)

    def show(self, path: str, *, write: bool = False, pin: bool = False) -> None:
        """The machine's file or folder at its own place, and where it really is; what is not there is left out."""
        if not os.path.exists(path):
            return
        named, real = os.path.normpath(path), os.path.realpath(path)
        for place in {real} if named.startswith(f"{RUN}/") else dict.fromkeys((named, real)):
            before = self.at.get(place)
            if before is None or write or before.kind != "bind":
                self.at[place] = Mount("bind" if write else "ro-bind", real, pin=pin)

    def put(self, source: str, place: str, *, write: bool = False, own: bool = False) -> None:
        """Something of pilot's at a place of the sandbox."""
        self.at[os.path.normpath(place)] = Mount("bind" if write else "ro-bind", source, own)

    def link(self, place: str, target: str) -> None:
        """A link, where there would be nothing else."""
        self.at.setdefault(os.path.normpath(place), Mount("symlink", target))

    def hide(self, path: str, blank: str) -> None:
        """Cover a path wherever it is seen: a folder becomes empty, a file `blank`."""
        real = os.path.realpath(path)
        empty = Mount("tmpfs") if os.path.isdir(real) else Mount("ro-bind", blank)
        for place, mount in list(self.at.items()):
            if mount.kind.endswith("bind") and f"{real}/".startswith(f"{mount.source}/"):
                self.at[os.path.normpath(os.path.join(place, os.path.relpath(real, mount.source)))] = empty

    def empty(self, path: str) -> None:
        """An empty folder for mount points, so that they are made in no folder that lasts."""
        if self.above(path) is not None:
            self.at[path] = Mount("tmpfs")

    def writable(self, place: str) -> bool:
        """Whether a folder can be written as it is; in one of pilot's own it is made."""
        outer, holder = (place, self.at[place]) if place in self.at else self.above(place) or ("", Mount("tmpfs"))
        if holder.own and place != outer:
            make_place(holder.source, os.path.relpath(place, outer), True)
        return holder.kind == "bind"

    def absent(self, place: str) -> None:
        """Take away what an agent left at a place of one of pilot's own folders."""
        if (above := self.above(place)) is not None and above[1].own:
            make_place(above[1].source, os.path.relpath(place, above[0]), None)

    def fix(self, source: str, place: str) -> None:
        """Read-only at a place where an agent could write else; the way to it can't be moved away either."""
        while (above := self.above(place)) is not None and above[1].own:
            outer, holder = above
            way = os.path.relpath(os.path.dirname(place), outer).split("/")[0]
            if way == ".":
                break
            make_place(holder.source, way, True)
            inner = Mount("bind", os.path.join(holder.source, way), own=True)
            self.at[os.path.join(outer, way)] = inner
        self.at[place] = Mount("ro-bind", source)

    def above(self, place: str) -> tuple[str, Mount] | None:
        """The innermost mount in which a place lies, without one at the place itself."""
        while (place := os.path.dirname(place)) not in ("/", ""):
            if (found := self.at.get(place)) is not None:
                return place, found
        return None

    def arguments(self) -> Iterator[str]:
        """The options, in order. Makes mount points in pilot's own folders. Raises OSError."""
        closed: list[str] = []
        for place in sorted(self.at, key=lambda place: (place.count("/"), place)):
            mount = self.at[place]
            if not self._can_be(place, mount):
                continue
            if mount.kind == "tmpfs":
                yield from ("--tmpfs", place)
                closed.append(place)
            else:
                yield from (f"--{mount.kind}", mount.source, place)
        for place in closed:
            yield from ("--remount-ro", place)

    def _can_be(self, place: str, mount: Mount) -> bool:
        """Whether there is something to mount on, or can be; and whether it is not there already."""
        above = self.above(place)
        if above is None or above[1].kind == "tmpfs":
            return True
        outer, holder = above
        relative = os.path.relpath(place, outer)
        if holder.own:
            folder = mount.kind == "tmpfs" or (mount.kind != "symlink" and os.path.isdir(mount.source))
            make_place(holder.source, relative, None if mount.kind == "symlink" else folder)
            return True
        where = os.path.join(holder.source, relative)
        if holder.kind == "symlink" or mount.kind == "symlink" or os.path.realpath(where) != where:
            del self.at[place]  # seen by the link that is there, and so is all below it
            return False
        if not os.path.lexists(where):
            return False
        return mount.pin or mount.kind != holder.kind or where != mount.source


def make_place(root: str, relative: str, folder: bool | None) -> None:
    """See to it that a folder, a file or (None) nothing is at that path below `root`, to put something on.

    Agents write there, so no link is followed: one on the way, or anything of the wrong kind, is taken away. What
    is in a folder that stands where a file has to be is kept beside it.
    """
    *way, last = relative.split("/")
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in way:
            here, before = _entered(here, name), here
            os.close(before)
        if folder:
            os.close(_entered(here, last))
        else:
            _made_file(here, last, there=folder is False)
    finally:
        os.close(here)


def _entered(above: int, name: str) -> int:
    """The folder of that name, made if need be."""
    mode = _mode(above, name)
    if mode is not None and not stat.S_ISDIR(mode):
        os.unlink(name, dir_fd=above)
        mode = None
    if mode is None:
        os.mkdir(name, 0o700, dir_fd=above)
    elif mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=above)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)


def _made_file(above: int, name: str, *, there: bool) -> None:
    mode = _mode(above, name)
    if mode is not None and stat.S_ISDIR(mode):
        os.rename(name, f"{name}.{secrets.token_hex(4)}", src_dir_fd=above, dst_dir_fd=above)
    elif mode is not None and (not there or not stat.S_ISREG(mode)):
        os.unlink(name, dir_fd=above)
    elif mode is not None:
        return
    if there:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=above))


def _mode(above: int, name: str) -> int | None:
    try:
        return os.lstat(name, dir_fd=above).st_mode
    except FileNotFoundError:
        return None
