"""`pilot db copy`: the store into another place, and what to do then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session
from pilot.cli.ui import Ui
from pilot.domain.errors import UsageError

if TYPE_CHECKING:
    from pilot.store.copying import Copied, Progress

OFTEN = 2.0
"""Seconds between two lines that say how far it is."""


@click.command()
@click.option(
    "--to",
    "target",
    metavar="URL",
    required=True,
    envvar="PILOT_COPY_TO",
    help="postgresql://user@host/db or sqlite:////path/pilot.db (else $PILOT_COPY_TO); has to be empty.",
)
@click.option("--fresh", is_flag=True, help="Throw away what an unfinished copy left there, and begin anew.")
@json_option
@click.pass_obj
def copy(session: Session, target: str, fresh: bool, json: bool) -> None:
    """Copy the whole store to another database, verified; between SQLite and PostgreSQL, either way.

    Nobody may work with it meanwhile. Broken off, the same command goes on where it was. Until it is whole and
    verified nothing can use the copy; the store itself stays as it is.
    """
    from functools import partial

    from pilot.app.node import alive
    from pilot.store import is_postgres
    from pilot.store.copying import copy_store

    located = session.located()
    url = _target(target, located.state_dir)
    reporter = _Reporter(session.ui)
    began = time.monotonic()
    try:
        copied = copy_store(
            located.store_url,
            url,
            partial(alive, local=not is_postgres(located.store_url)),
            reporter.tell,
            fresh=fresh,
        )
    except KeyboardInterrupt:
        if reporter.began:
            session.ui.note("Broken off. The same command goes on from here; until then nothing can use the copy.")
        raise
    seconds = time.monotonic() - began
    if json:
        session.ui.document(_document(copied, seconds))
    else:
        _say(session.ui, copied, seconds, url)


def _target(text: str, state_dir: Path) -> str:
    from pilot.config.locate import store_problem, store_url

    if problem := store_problem(text):
        raise UsageError(f"--to: {problem}")  # without the text: it may have a password in it
    return store_url(text, state_dir, lambda path: Path(path).expanduser().absolute())


@dataclass(slots=True)
class _Reporter:
    """Says on stderr how far it is: not each step, and what takes long at once."""

    ui: Ui
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0
    said: float = 0.0

    def tell(self, progress: Progress) -> None:
        now = self.clock()
        if not self.began:
            self.began = self.said = now
        if now - self.said < OFTEN:
            return
        self.said = now
        part = f" ({100 * progress.rows // progress.of}%)" if progress.of else ""
        self.ui.note(f"{progress.doing} {progress.table}: {progress.rows:,} of {progress.of:,} rows{part}")


def _document(copied: Copied, seconds: float) -> dict[str, Any]:
    return {
        "from": copied.source,
        "to": copied.target,
        "store": copied.store,
        "verified": True,
        "resumed": copied.resumed,
        "restarted": copied.restarted,
        "already": copied.already,
        "rows": copied.rows,
        "seconds": round(seconds, 3),
        "tables": [
            {"table": name, "rows": tally.rows, "sha256": tally.digest.hex()} for name, tally in copied.tallies.items()
        ],
    }


def _say(ui: Ui, copied: Copied, seconds: float, url: str) -> None:
    ui.table(
        ("table", "rows", "sha256"),
        [(name, f"{t.rows:,}", t.digest.hex()[:16]) for name, t in copied.tallies.items() if t.rows],
    )
    if copied.restarted:
        ui.note("The store has changed since an unfinished copy of it, which was thrown away.")
    tables = f"{copied.rows:,} rows of {len(copied.tallies)} tables"
    if copied.already:
        ui.line(f"{copied.target} is a whole copy of {copied.source} already: {tables}, compared just now")
    else:
        ui.line(f"copied {tables} from {copied.source} to {copied.target} in {seconds:.1f} s; read again, all the same")
    # what can be put there as it is; a password or parameters of a server are not shown
    place = url if url.startswith("sqlite:") else f"the URL given here ({copied.target})"
    ui.note(
        f"Now set `store:` in the pilot.yaml of every node to {place}, then start pilot. "
        f"Never start one on {copied.source} again: it is as it was, and would do everything a second time. "
        "Keep it as a backup."
    )
