"""`pilot db copy`: what a person or a script sees of it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pilot.cli import copying as cli
from pilot.cli.main import main
from pilot.cli.ui import Ui
from pilot.runner.host import boot_id, host_id
from pilot.runner.proctree import start_ticks
from pilot.store.copying import Copying, Progress
from tests.store.filled import dump, fill

Pilot = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with something in every table; never opened again, only copied."""
    path = tmp_path_factory.mktemp("made") / "pilot.db"
    fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE nodes SET lease_until = 0")
    return path


@pytest.fixture
def state(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that nobody works with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILOT_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "100")
    shutil.copytree(made.parent, tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def pilot(state: Path, capsys: pytest.CaptureFixture[str]) -> Pilot:
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(words), *capsys.readouterr())

    return run


def sql(state: Path, text: str, *values: Any) -> None:
    with closing(sqlite3.connect(state / "pilot.db")) as connection, connection:
        connection.execute(text, values)


def test_a_copy_says_what_it_did_and_what_to_do_now(pilot: Pilot, state: Path, tmp_path: Path) -> None:
    code, out, err = pilot("db", "copy", "--to", "sqlite:///new/copy.db")

    assert code == 0
    copied = dump(tmp_path / "new/copy.db")
    rows = sum(len(rows) for name, rows in copied.items() if name != "numbers")
    *tables, last = out.splitlines()
    assert last.startswith(f"copied {rows:,} rows of {len(copied) - 1} tables from {state}/pilot.db to {tmp_path}/new/")
    assert f"events\t{len(copied['events'])}\t" in "\n".join(tables)
    assert f"Now set `store:` in the pilot.yaml of every node to sqlite:///{tmp_path}/new/copy.db, then" in err
    assert f"Never start one on {state}/pilot.db again" in err
    assert (tmp_path / "new/copy.db").stat().st_mode & 0o777 == 0o600


def test_the_copy_is_what_a_pilot_works_with_then(pilot: Pilot, state: Path, tmp_path: Path) -> None:
    words = [("list", "--all", "--json"), ("show", "1", "--json"), ("logs", "1"), ("why", "6", "--json")]
    before = [pilot(*asked)[:2] for asked in words]
    assert pilot("db", "copy", "--to", "sqlite:///copy.db")[0] == 0
    (tmp_path / "pilot.yaml").write_text(f"state_dir: {state}\nstore: sqlite:///copy.db\n")

    assert [pilot(*asked)[:2] for asked in words] == before
    assert before[0][0] == 0
    assert pilot("db", "migrate", "--json")[0] == 0


def test_a_script_gets_one_document(pilot: Pilot, state: Path, tmp_path: Path) -> None:
    code, out, _ = pilot("db", "copy", "--to", f"sqlite:///{tmp_path}/copy.db", "--json")

    told = json.loads(out)
    assert (code, told["verified"], told["resumed"], told["already"]) == (0, True, False, False)
    assert (told["from"], told["to"]) == (f"{state}/pilot.db", f"{tmp_path}/copy.db")
    kept = dump(state / "pilot.db")
    assert {t["table"]: t["rows"] for t in told["tables"]} == {n: len(r) for n, r in kept.items() if n != "numbers"}
    assert all(len(t["sha256"]) == 64 for t in told["tables"])
    assert told["rows"] == sum(t["rows"] for t in told["tables"])

    code, out, _ = pilot("db", "copy", "--to", f"sqlite:///{tmp_path}/copy.db", "--json")
    again = json.loads(out)
    assert (code, again["already"], again["tables"]) == (0, True, told["tables"])


def test_while_a_pilot_works_with_it_nothing_is_begun(pilot: Pilot, state: Path, tmp_path: Path) -> None:
    here = (os.getpid(), start_ticks(os.getpid()), boot_id(), host_id())
    sql(state, "UPDATE nodes SET pid = ?, start_ticks = ?, boot_id = ?, host = ?", *here)

    code, out, err = pilot("db", "copy", "--to", "sqlite:///copy.db")

    assert (code, out, err.count("error: ")) == (75, "", 1)
    assert f"its process (pid {os.getpid()}) is there. Stop it first; nothing was copied" in err
    assert not (tmp_path / "copy.db").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "--to"),
        (("--to", "mysql://root:s3cret@host/db"), 2, "--to: expected sqlite, sqlite:////path/pilot.db, or postgres"),
        (("--to", "postgres://root:s3cret@host/db"), 2, "write postgresql:// for postgres://"),
        (("--to", "postgresql://me:s3cret@127.0.0.1:1/db?connect_timeout=1"), 75, "postgresql://me@127.0.0.1:1/db"),
        (("--to", "postgresql://me:s3cret%zz@127.0.0.1:1/db"), 2, "no postgresql:// URL"),
        (("--to", "postgresql://me:12/s3cret@127.0.0.1:1/db"), 2, "no postgresql:// URL"),
        (("--to", "sqlite"), 2, "one and the same store"),
        (("--to", "sqlite:///notes.txt"), 2, "left as it is"),
        (("--to", "sqlite:////proc/copy.db"), 1, "can't make /proc/copy.db"),
    ],
)
def test_a_bad_place_is_one_error(
    pilot: Pilot, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:  # fmt: skip
    (tmp_path / "notes.txt").write_text("notes " * 100)

    got, out, err = pilot("db", "copy", *words)

    assert (got, out, err.count("error: ")) == (code, "", 1)
    assert said in err
    assert "s3c" not in err
    assert (tmp_path / "notes.txt").read_text() == "notes " * 100


def test_the_place_may_come_from_the_environment(pilot: Pilot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_COPY_TO", f"sqlite:///{tmp_path}/copy.db")

    assert pilot("db", "copy")[0] == 0
    assert (tmp_path / "copy.db").exists()


def test_broken_off_it_says_that_the_same_command_goes_on(
    pilot: Pilot, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Copying._copy

    def interrupted(self: Copying, table: Any, mark: Any) -> None:
        if table.name == "executions":
            raise KeyboardInterrupt
        copied(self, table, mark)

    with monkeypatch.context() as patch:
        patch.setattr(Copying, "_copy", interrupted)
        code, out, err = pilot("db", "copy", "--to", "sqlite:///copy.db")
    assert (code, out, "The same command goes on from here" in err) == (130, "", True)
    (tmp_path / "pilot.yaml").write_text("store: sqlite:///copy.db\n")
    code, _, err = pilot("list")
    assert (code, "is a copy that is not whole" in err) == (2, True)
    (tmp_path / "pilot.yaml").unlink()

    code, out, _ = pilot("db", "copy", "--to", "sqlite:///copy.db", "--json")
    assert (code, json.loads(out)["resumed"]) == (0, True)
    assert dump(tmp_path / "copy.db") == dump(state / "pilot.db")


def test_long_work_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([100.0, 100.5, 103.0, 103.5, 105.5])
    reporter = cli._Reporter(Ui(sys.stdout, sys.stderr, {}), clock=lambda: next(seconds))

    for rows in range(5):
        reporter.tell(Progress("copying", "events", rows * 1_000_000, 4_000_000))

    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        ["copying events: 2,000,000 of 4,000,000 rows (50%)", "copying events: 4,000,000 of 4,000,000 rows (100%)"],
    )


def test_to_a_server_as_a_program_and_its_password_is_nowhere(state: Path, postgres_url: str) -> None:
    # the store that is as new is an empty place; a trusting server takes any password
    url = postgres_url.replace("://pilot@", "://pilot:s3cret@")
    environ = os.environ | {"PILOT_COPY_TO": url}
    program = (sys.executable, "-m", "pilot.cli.main", "db", "copy", "--json")

    ran = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=60)

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows"] == sum(len(r) for n, r in dump(state / "pilot.db").items() if n != "numbers")
    assert "s3cret" not in ran.stdout + ran.stderr
