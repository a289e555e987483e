"""`pilot sync`: reads pull requests, checks and reviews now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pilot.cli import arguments
from pilot.cli.session import Session
from pilot.domain.errors import Busy
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.app.sync import Sync, Synced


@click.command()
@click.argument("ids", metavar="[ID...]", nargs=-1, type=arguments.ID)
@arguments.json_option
@click.pass_obj
def sync(session: Session, ids: tuple[int, ...], json: bool) -> int:
    """Read pull requests, reviews and CI now, and write it back.

    Of these executions, or of all whose pull request is open. What is due to be delivered for them is delivered. A
    `pilot serve` beside it does no harm. Exit code 75: GitHub wants us to wait.
    """
    import asyncio

    from pilot.app.sync import sync as work
    from pilot.telemetry.logs import configure

    loaded = session.loaded()
    configure(level="DEBUG" if session.debug else "ERROR")
    done = asyncio.run(work(loaded, ids, lambda words: session.ui.note(f"reading {one_line(words)} …")))
    if json:
        session.ui.document(_document(done))
    else:
        _table(session, done)
    if done.paused:
        if not json:
            session.ui.failure_line(done.paused)
        return 1 if done.needs_person else Busy.exit_code
    return 1 if any(one.trouble or one.owed for one in done.found) else 0


def _table(session: Session, done: Sync) -> None:
    rows = []
    for one in done.found:
        pull = one.pull
        if pull is None:
            rows.append([str(one.execution), "", "", "", "", "", "it has no pull request"])
            continue
        number = "" if pull.number is None else f"#{pull.number}"
        rows.append(
            [str(one.execution), pull.task_id, f"{pull.repo}{number}", pull.state, pull.checks, _red(one), _news(one)]
        )
    if not rows:
        session.ui.note("no pull request of pilot's is open")
        return
    session.ui.table(["ID", "TASK", "PULL REQUEST", "STATE", "CHECKS", "RED", "NEWS"], rows)


def _red(one: Synced) -> str:
    return "" if one.pull is None else ", ".join(one.pull.red)


def _news(one: Synced) -> str:
    said = [one.trouble, one.owed and f"not delivered: {one.owed}"]
    for name, (before, after) in one.changes.items():
        said.append(f"{name}: {before or 'none'} → {after or 'none'}")
    if one.pull is not None and one.pull.error and not one.owed:
        said.append(one.pull.error)
    return "; ".join(each for each in said if each) or "no change"


def _document(done: Sync) -> dict[str, Any]:
    return {"pulls": [_entry(one) for one in done.found], "paused": done.paused or None}


def _entry(one: Synced) -> dict[str, Any]:
    pull = one.pull
    known = {} if pull is None else {
        "task_id": pull.task_id, "repo": pull.repo, "number": pull.number, "url": pull.url, "branch": pull.branch,
        "state": str(pull.state), "checks": pull.checks, "red": list(pull.red), "repairs": pull.repairs,
        "error": pull.error,
    }  # fmt: skip
    changes = {name: {"before": before, "after": after} for name, (before, after) in one.changes.items()}
    return {"execution": one.execution, "pull": known or None, "changes": changes, "trouble": one.trouble or None,
            "owed": one.owed or None}  # fmt: skip
