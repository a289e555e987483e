"""What `pilot doctor` looks at: each check says what it found and what to do about it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pilot.cli.agent_checks import agents, sandboxes
from pilot.cli.outside_checks import outside
from pilot.cli.session import Session
from pilot.domain.agent import Check
from pilot.domain.errors import ConfigError, PilotError

if TYPE_CHECKING:
    from pilot.config.load import Loaded
    from pilot.config.schema import Settings

_GIT = (2, 36)
_SQLITE = (3, 51, 3)
_GIB = 1 << 30
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs"})


async def examine(session: Session) -> list[Check]:
    """Everything, in the order in which one thing needs the other."""
    checks = [_python(), _sqlite(), await _git()]
    loaded, found = _config(session)
    checks += found
    if loaded is None:
        return checks
    settings = loaded.settings
    checks += [*_state_dir(settings.state_dir), *_store(session), _port(session, settings)]
    checks += _projects(settings)
    checks += await agents(settings, session.environ)
    checks += _parks(session)
    checks += await outside(settings)
    checks += await asyncio.to_thread(sandboxes, settings, session.environ)
    return checks


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), version, "pilot needs Python 3.11 or newer")


def _sqlite() -> Check:
    from pilot.store.upkeep import sqlite_version

    version = ".".join(map(str, sqlite_version()))
    if sqlite_version() >= _SQLITE:
        return Check("sqlite", True, version)
    return Check(
        "sqlite",
        None,
        f"{version} can, very rarely, damage a database that two connections write at once (fixed in 3.51.3)",
        "use a Python with SQLite 3.51.3 or newer where you can, and `pilot db backup` in any case",
    )


async def _git() -> Check:
    wanted = ".".join(map(str, _GIT))
    remedy = f"install git {wanted} or newer"
    try:
        process = await asyncio.create_subprocess_exec(
            "git", "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        said = (await process.communicate())[0].decode(errors="replace").strip()
    except OSError as error:
        return Check("git", False, f"can't be run: {error.strerror}", remedy)
    found = re.search(r"(\d+)\.(\d+)", said)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return Check("git", version >= _GIT, said or "no version", remedy)


def _config(session: Session) -> tuple[Loaded | None, list[Check]]:
    from pilot.config.load import load

    try:
        loaded = load(session.config, session.environ)
    except ConfigError as error:
        return None, [Check("config", False, problem) for problem in error.problems]
    where = "no pilot.yaml: all defaults" if loaded.path is None else str(loaded.path)
    return loaded, [
        Check("config", True, where),
        *(Check("config", None, warning) for warning in loaded.warnings),
    ]


def _state_dir(path: Path) -> Iterator[Check]:
    place = path
    while not place.exists():
        place = place.parent
    try:
        status = path.stat()
    except FileNotFoundError:
        writable = os.access(place, os.W_OK | os.X_OK)
        yield Check(
            "state_dir",
            writable,
            f"{path}: {'made on first use' if writable else f'can not be made in {place}'}",
            f"make {place} writable for you, or set another state_dir",
        )
    else:
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid():
            yield Check("state_dir", False, f"{path} belongs to uid {status.st_uid}", "chown it, or set another")
        elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            yield Check("state_dir", False, f"{path} is not writable", f"chmod 700 {path}")
        else:
            private = not mode & (stat.S_IRWXG | stat.S_IRWXO)
            ok = True if private else False if mode & stat.S_IWOTH else None
            yield Check("state_dir", ok, f"{path}, mode {mode:04o}", f"chmod 700 {path}")
    kind = _filesystem(place)
    if kind in _NETWORK:
        remedy = "set state_dir or store to a disk of this machine"
        yield Check("filesystem", False, f"{place} is on {kind}, where SQLite's WAL does not work", remedy)
    free = shutil.disk_usage(place).free
    ok = free >= 5 * _GIB or (None if free >= _GIB // 4 else False)
    yield Check("disk", ok, f"{free / _GIB:.1f} GiB free at {place}", "make room; `pilot db prune` removes old history")


def _filesystem(place: Path) -> str:
    """Its type, by the longest mount point above it; empty where that can't be known."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    real = str(place.resolve())
    for line in lines:
        _, mount, found, *_ = line.split(" ", 3)
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _store(session: Session) -> Iterator[Check]:
    from pilot.store import is_postgres, sqlite_path
    from pilot.store.migrate import newest
    from pilot.store.upkeep import quick_check

    try:
        url = session.located().store_url
        if is_postgres(url):
            yield _postgres(url)
            return
        path = sqlite_path(url)
        if not path.exists():
            yield Check("store", True, f"{path}: made on first use")
            return
        schema, mode, found = quick_check(path)
    except PilotError as error:
        yield Check("store", False, str(error))
        return
    if found:
        yield Check("store", False, f"{path} is damaged: {found[0]}", "restore a backup made with `pilot db backup`")
    elif schema < newest("sqlite"):
        yield Check(
            "store",
            None,
            f"{path} has schema {schema}",
            "stop the older pilot; any command brings it up to date then, or `pilot db migrate`",
        )
    else:
        yield Check("store", True, f"{path}, schema {schema}, sound")
    if mode != "wal":
        remedy = f"sqlite3 {path} 'PRAGMA journal_mode = WAL', while no pilot runs"
        yield Check("store mode", None, f"journal mode {mode}: readers and writers wait for each other", remedy)
    mode_bits = stat.S_IMODE(path.stat().st_mode)
    if mode_bits & (stat.S_IRWXG | stat.S_IRWXO):
        yield Check("store access", None, f"others may read {path} (mode {mode_bits:04o})", f"chmod 600 {path}")


def _postgres(url: str) -> Check:
    from pilot.store import of_postgres
    from pilot.store.migrate import newest

    found = of_postgres("postgres_upkeep").quick_look(url)
    what = f"{found.name}, PostgreSQL {found.server}"
    if found.schema == newest("postgres"):
        return Check("store", True, f"{what}, schema {found.schema}")
    if not found.may_create:
        remedy = "make the role the owner of the database, or GRANT CREATE ON SCHEMA to it, for `pilot db migrate`"
        return Check("store", False, f"{what}: the role may not make tables there", remedy)
    if not found.schema:
        return Check("store", True, f"{what}: made on first use")
    remedy = "stop the older pilots; any command brings it up to date then, or `pilot db migrate`"
    return Check("store", None, f"{what} has schema {found.schema}", remedy)


def _port(session: Session, settings: Settings) -> Check:
    host, port = settings.server.host, settings.server.port
    name = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        nodes = _serving(session)
        if nodes:
            return Check("port", True, f"{name} is used, and `pilot serve` runs: {', '.join(nodes)}")
        remedy = "set server.port, or end what listens there"
        return Check("port", False, f"{name}: {error.strerror or error}", remedy)
    return Check("port", True, f"{name} is free")


def _serving(session: Session) -> list[str]:
    from pilot.store.glance import answer

    try:
        with session.history() as history:
            nodes = answer(history.status(session.now()))["nodes"]
    except PilotError:
        return []
    return [node["id"] for node in nodes if node["kind"] == "serve" and node["state"] != "lost"]


def _parks(session: Session) -> Iterator[Check]:
    from pilot.store.allowance import words
    from pilot.store.glance import answer

    try:
        with session.history() as history:
            parked = answer(history.status(session.now()))["parked"]
    except PilotError:
        return  # nothing has run yet, or the store has a check of its own
    for park in parked:
        remedy = f"mend the cause, then `pilot backend unpark {park['backend']}`"
        yield Check(f"parked {park['backend']}", None, f"{words(park)}: {park['reason']}", remedy)


def _projects(settings: Settings) -> Iterator[Check]:
    from pilot.runner.identity import repository_key

    keys: dict[str, str] = {}
    sound = 0
    for project in settings.projects:
        if project.path is None:
            continue
        try:
            key, _ = repository_key(project.path)
        except (OSError, PilotError) as error:
            what = "no such path" if isinstance(error, FileNotFoundError) else str(error)
            yield Check(f"project {project.name}", False, f"{project.path}: {what}", "clone it there, or mend its path")
            continue
        if key in keys:
            detail = f"is the same repository as project {keys[key]}"
            yield Check(f"project {project.name}", False, detail, "keep one of them")
            continue
        keys[key] = project.name
        sound += 1
    if not settings.projects:
        yield Check("projects", None, "none; `pilot run` works in any repository", "`pilot init` in a repository")
    elif sound:
        yield Check("projects", True, f"{sound} with a repository on this machine")
