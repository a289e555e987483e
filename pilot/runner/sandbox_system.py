"""What of the machine itself every sandbox shows: its programs and libraries, and of /etc what is no secret."""

# Plain strings and os.path: a command line is made of them, for each start of a program.
# ruff: noqa: PTH112, PTH113, PTH115, PTH117, PTH208

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator

FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
"""Readable as they are."""
ETC = (
    "alternatives", "bash.bashrc", "bash_completion.d", "ca-certificates*", "crypto-policies", "debian_version",
    "dotnet", "fonts", "gai.conf", "gitattributes", "gitconfig", "gradle", "group", "host.conf", "hostname", "hosts",
    "inputrc", "java*", "jvm", "ld.so.cache", "ld.so.conf*", "locale.*", "localtime", "lsb-release", "machine-id",
    "magic*", "maven", "mime.types", "nsswitch.conf", "os-release", "passwd", "perl", "php*", "pki", "profile",
    "profile.d", "protocols", "python*", "resolv.conf", "rpc", "ruby*", "services", "shells", "ssl", "terminfo",
    "timezone", "xdg",
)  # fmt: skip
"""Entries of /etc that programs need and that say nothing that is anybody's own."""
_KERNEL = ("sys", "irq", "bus", "fs", "acpi", "scsi", "driver", "asound", "tty")


def is_system(path: str) -> bool:
    """Whether a path is shown with the system."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in (*FOLDERS, "/opt"))


def may_be_home(path: str) -> bool:
    """Whether a project's home can be put at that path."""
    if not os.path.isabs(path) or path == "/" or path.startswith(("/proc/", "/dev/", "/sys/", "/etc/")):
        return False
    return not is_system(path) or (path.startswith("/opt/") and os.path.isdir(path))


def base(blank: str) -> Iterator[str]:
    """Options of bubblewrap that come first. `blank` is an empty file that may be read."""
    for folder in FOLDERS:
        yield from shown(folder)
    for name in _listed("/opt"):
        yield from shown(f"/opt/{name}")
    for name in _listed("/etc"):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ETC):
            yield from shown(f"/etc/{name}", blank)
    for folder in ("/tmp", "/var/tmp", "/run"):  # noqa: S108  the sandbox's own
        yield from ("--tmpfs", folder)
    yield from ("--symlink", "/run", "/var/run")
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
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode) and _is_open(mode):
            yield from _masked(entry.path, blank)
        elif stat.S_ISDIR(mode):
            yield from ("--tmpfs", entry.path)
        elif not stat.S_ISLNK(mode) and not _is_open(mode):
            yield from ("--ro-bind", blank, entry.path)


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
    for name in _KERNEL:
        if os.path.isdir(f"/proc/{name}"):
            yield from ("--ro-bind", f"/proc/{name}", f"/proc/{name}")
    for name in _listed("/proc"):
        try:
            mode = os.lstat(f"/proc/{name}").st_mode
        except OSError:
            continue
        if not name.isdigit() and stat.S_ISREG(mode) and (mode & 0o222 or not mode & 0o004):
            yield from ("--ro-bind", blank, f"/proc/{name}")


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
