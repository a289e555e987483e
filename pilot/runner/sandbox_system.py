"""What of the machine itself every sandbox shows: its programs and libraries, and of /etc what is no secret."""

# Plain strings and os.path: a command line is made of them, for each start of a program.
# ruff: noqa: PTH112, PTH113, PTH115, PTH117, PTH208

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator

FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
"""Readable as they are."""
ETC = (
    "alternatives", "crypto-policies", "dotnet", "fonts", "gitconfig", "group", "hosts", "java*", "jvm", "ld.so.cache",
    "localtime", "maven", "mime.types", "nsswitch.conf", "os-release", "passwd", "php*", "pki", "protocols",
    "resolv.conf", "ruby*", "services", "ssl",
)  # fmt: skip
"""Entries of /etc without which programs don't work, and that say nothing that is anybody's own.

No more: a start in the sandbox costs what its mounts cost, and each costs more than the one before.
"""
_ETC = re.compile("|".join(map(fnmatch.translate, ETC)))
_KERNEL = ("sys", "fs", "acpi", "scsi", "driver")


def is_system(path: str) -> bool:
    """Whether a path is shown with the system."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in (*FOLDERS, "/opt", "/etc"))


def may_be_home(path: str) -> bool:
    """Whether a project's home can be put at that path."""
    if not os.path.isabs(path) or path == "/" or path.startswith(("/proc/", "/dev/", "/sys/")):
        return False
    return not is_system(path) or (path.startswith("/opt/") and os.path.isdir(path))


RUN = "/var/run"
"""A link in every sandbox, through which nothing can be mounted."""


def base(blank: str) -> Iterator[str]:
    """Options of bubblewrap that come first. `blank` is an empty file that may be read."""
    for folder in FOLDERS:
        yield from shown(folder)
    own = [f"/opt/{name}" for name in _listed("/opt")]
    for path in own if list(_closed(own)) else ["/opt"]:
        yield from shown(path)
    for name in _listed("/etc"):
        if _ETC.match(name):
            yield from shown(f"/etc/{name}", blank)
    for folder in ("/tmp", "/var/tmp", "/run"):  # noqa: S108  the sandbox's own
        yield from ("--tmpfs", folder)
    yield from ("--symlink", "/run", RUN)
    yield from _resolver()
    yield from ("--proc", "/proc", "--dev", "/dev")
    yield from _kernel(blank)


def shown(path: str, blank: str = "") -> Iterator[str]:
    """A link as a link, and what everybody may read read-only; pilot may be root, and its agents are not to be."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        yield from ("--symlink", os.readlink(path), path)
    elif _is_open(mode):
        yield from ("--ro-bind", path, path)
        if blank and stat.S_ISDIR(mode):
            yield from _masked(path, blank)


def _masked(folder: str, blank: str) -> Iterator[str]:
    """What in a folder that is shown is not for everybody: private keys, above all."""
    try:
        entries = [entry.path for entry in os.scandir(folder) if not entry.is_symlink()]
    except OSError:
        return
    closed = dict(_closed(entries))
    for path in entries:
        if path not in closed:
            yield from _masked(path, blank)
        elif closed[path]:
            yield from ("--tmpfs", path)
        else:
            yield from ("--ro-bind", blank, path)


def _closed(paths: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Those that not everybody may read, and whether they are folders."""
    for path in paths:
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if not _is_open(mode) and not stat.S_ISLNK(mode):
            yield path, stat.S_ISDIR(mode)


def _is_open(mode: int) -> bool:
    need = 0o005 if stat.S_ISDIR(mode) else 0o004
    return (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and mode & need == need


def _resolver() -> Iterator[str]:
    """Where /etc/resolv.conf leads to: on many systems into /run."""
    real = os.path.realpath("/etc/resolv.conf")
    if real.startswith(("/run/", "/var/", "/mnt/")) and os.path.isfile(real):
        yield from ("--ro-bind", real, real)


def _kernel(blank: str) -> Iterator[str]:
    """The kernel's switches: root may turn them without any capability, and one of them runs programs outside."""
    if os.geteuid() != 0:
        return
    for name in _KERNEL:
        if os.path.isdir(f"/proc/{name}"):
            yield from ("--ro-bind", f"/proc/{name}", f"/proc/{name}")
    for name in _listed("/proc"):
        try:
            mode = 0 if name.isdigit() else os.lstat(f"/proc/{name}").st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and mode & 0o222:
            yield from ("--ro-bind", blank, f"/proc/{name}")


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
