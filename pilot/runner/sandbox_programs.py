"""Where a program is, and what else of the machine belongs to it: nothing of a home that is not its own."""

# Plain strings and os.path: a command line is made of them, for each start of a program.
# ruff: noqa: PTH110, PTH111, PTH112, PTH113, PTH114, PTH115, PTH117, PTH118, PTH119, PTH120, PTH123

from __future__ import annotations

import configparser
import errno
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping

from pilot.runner.sandbox_system import is_system

_BESIDE = ("lib", "lib64", "libexec", "include", "share")
"""What lies beside a `bin` and belongs to it."""
_COMPANIONS = {".cargo": (".rustup",)}
"""Folders beside a prefix without which its programs do nothing."""
_LINKS = 256
"""Links of one folder that are followed; more is no folder of programs."""


def find(program: str, env: Mapping[str, str], cwd: str) -> str:
    """The file that would be started. Raises OSError as starting it would."""
    if "/" in program:
        path = os.path.join(cwd, program)
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
        if not os.path.isfile(path) or not os.access(path, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), program)
        return os.path.normpath(path)
    for folder in search_path(env):
        if (found := shutil.which(program, path=folder)) is not None:
            return found
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)


def search_path(env: Mapping[str, str]) -> list[str]:
    """The folders of PATH; relative ones would be the agent's."""
    folders = env.get("PATH", os.defpath).split(os.pathsep)
    return list(dict.fromkeys(os.path.normpath(folder) for folder in folders if os.path.isabs(folder)))


def needs(path: str, env: Mapping[str, str], depth: int = 4) -> Iterator[str]:
    """Paths to show so that this file runs: itself, its package, its interpreter. Links as `link` finds them."""
    real = os.path.realpath(path)
    for place in (real, *(link for link, _ in links(path))):
        yield from _belongings(place, env)
    if not is_system(real):
        yield real
        folder = os.path.dirname(real)
        if os.path.isfile(real) and not _is_home(folder, env):
            yield folder
    if depth and (found := interpreter(real, env)):
        yield found
        yield from needs(found, env, depth - 1)


def links(path: str) -> Iterator[tuple[str, str]]:
    """The chain of links that leads to a file: where each is, and what is written in it."""
    for _ in range(16):
        if not os.path.islink(path):
            return
        target = os.readlink(path)
        yield path, target
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))


def folder_needs(folder: str, env: Mapping[str, str]) -> Iterator[str]:
    """Paths to show so that the programs of a folder of PATH run."""
    if is_system(os.path.realpath(folder)) or not os.path.isdir(folder) or _is_home(folder, env):
        return
    prefix, name = os.path.split(folder)
    if name == "shims" and not _is_home(prefix, env):
        yield prefix  # a version manager's: what they start is all below
        return
    yield folder
    yield from _prefix(folder, env)
    yield from _behind_links(folder, env)


def _behind_links(folder: str, env: Mapping[str, str]) -> Iterator[str]:
    try:
        entries = [entry.path for entry in os.scandir(folder) if entry.is_symlink()]
    except OSError:
        return
    for path in entries[:_LINKS]:
        real = os.path.realpath(path)
        if os.path.isfile(real) and not is_system(real) and not real.startswith(f"{folder}/"):
            yield real
            yield from _belongings(real, env)


def _belongings(real: str, env: Mapping[str, str]) -> Iterator[str]:
    """The packages, the virtual environment or the prefix of which a file is part."""
    parts = real.split("/")
    if "node_modules" in parts:
        yield "/".join(parts[: parts.index("node_modules") + 1])
    yield from _prefix(os.path.dirname(real), env)


def _prefix(folder: str, env: Mapping[str, str]) -> Iterator[str]:
    """What lies beside a folder `bin`."""
    if is_system(folder) or os.path.basename(folder) not in ("bin", "sbin"):
        return
    prefix = os.path.dirname(folder)
    if os.path.isfile(os.path.join(prefix, "pyvenv.cfg")):
        yield prefix
        yield from _base_python(prefix, env)
        return
    if _is_home(prefix, env):
        return
    yield folder
    own = os.path.basename(prefix) == ".local"  # its share holds what programs keep, logins among it
    for name in _BESIDE:
        if not (own and name == "share"):
            yield os.path.join(prefix, name)
    for name in _COMPANIONS.get(os.path.basename(prefix), ()):
        yield os.path.join(os.path.dirname(prefix), name)


def _base_python(prefix: str, env: Mapping[str, str]) -> Iterator[str]:
    """The Python from which a virtual environment was made."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        with open(os.path.join(prefix, "pyvenv.cfg"), encoding="utf-8") as file:
            parser.read_string(f"[venv]\n{file.read()}")
    except (OSError, ValueError, configparser.Error):
        return
    home = parser.get("venv", "home", fallback="")
    for folder in dict.fromkeys((home, os.path.realpath(home))) if os.path.isabs(home) else ():
        if not os.path.isfile(os.path.join(os.path.dirname(folder), "pyvenv.cfg")):
            yield from _prefix(folder, env)
    python = os.path.realpath(os.path.join(prefix, "bin", "python"))
    if not is_system(python):
        yield from _prefix(os.path.dirname(python), env)


def interpreter(path: str, env: Mapping[str, str]) -> str | None:
    """The program that a script names in its first line. Raises `FileNotFoundError` when it is not there."""
    try:
        with open(path, "rb") as file:
            first = file.readline(512)
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    try:
        words = shlex.split(os.fsdecode(first[2:]))
    except ValueError:
        return None
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    if not words:
        return None
    return find(words[0], env, "/")


def _is_home(folder: str, env: Mapping[str, str]) -> bool:
    """Whether a folder is a home, or has homes below it."""
    homes = {os.path.normpath(home) for home in (env.get("HOME", ""), os.path.expanduser("~")) if os.path.isabs(home)}
    homes |= {os.path.realpath(home) for home in homes}
    inside = any(home == folder or home.startswith(f"{folder.rstrip('/')}/") for home in homes)
    return inside or folder.count("/") < 2 or os.path.dirname(folder) == "/home"
