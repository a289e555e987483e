"""`pilot db`: look after the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pilot.cli import arguments
from pilot.cli.arguments import json_option
from pilot.cli.copying import copy
from pilot.cli.session import Session

if TYPE_CHECKING:
    from pilot.store import Store


@click.group()
def db() -> None:
    """Look after the store: migrate, check, backup, prune, copy."""


db.add_command(copy)


@db.command()
@json_option
@click.pass_obj
def migrate(session: Session, json: bool) -> None:
    """Bring the schema up to this version. Every command does it by itself, too."""
    from pilot.store import is_postgres, of_postgres, sqlite_path
    from pilot.store.migrate import newest
    from pilot.store.upkeep import bring_up

    url = session.located().store_url
    if is_postgres(url):
        name, applied = of_postgres("postgres_upkeep").bring_up(url)
    else:
        name, applied = str(sqlite_path(url)), bring_up(sqlite_path(url), session.now)
    schema = newest("postgres" if is_postgres(url) else "sqlite")
    if json:
        session.ui.document({"store": name, "applied": applied, "schema": schema})
        return
    for migration in applied:
        session.ui.line(f"applied {migration}")
    session.ui.line(f"{name} has schema {schema}{'' if applied else ' already'}")


@db.command()
@json_option
@click.pass_obj
def check(session: Session, json: bool) -> int:
    """Read the whole store and say what is wrong; exit 1 when something is."""
    from pilot.store import is_postgres, of_postgres, sqlite_path
    from pilot.store.upkeep import AUDITS
    from pilot.store.upkeep import check as audit

    url = session.located().store_url
    if is_postgres(url):
        name, findings = of_postgres("postgres_upkeep").check(url)
    else:
        name, findings = str(sqlite_path(url)), audit(sqlite_path(url))
    if json:
        found = [{"check": finding.check, "detail": finding.detail} for finding in findings]
        session.ui.document({"store": name, "ok": not findings, "findings": found})
    elif findings:
        for finding in findings:
            session.ui.line(f"{finding.check}: {finding.detail}", "red")
        session.ui.note(
            "Keep a copy made with pg_dump as it is, then restore a sound one."
            if is_postgres(url)
            else "Keep a copy of the file as it is, then restore a backup made with `pilot db backup`, "
            "or move the file away to start empty."
        )
    else:
        read = "" if is_postgres(url) else "pages, keys and "
        session.ui.line(f"{name} is sound: {read}{len(AUDITS)} promises")
    return 1 if findings else 0


@db.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def backup(session: Session, file: Path, json: bool) -> None:
    """Copy the store, whole and consistent, into a new file; also while `serve` runs."""
    from pilot.store import is_postgres, of_postgres, sqlite_path
    from pilot.store.upkeep import backup as copy

    url = session.located().store_url
    if is_postgres(url):
        raise of_postgres("postgres_upkeep").no_backup(url)
    size = copy(sqlite_path(url), file)
    if json:
        session.ui.document({"file": str(file.absolute()), "bytes": size})
    else:
        session.ui.line(f"{file}: {size:,} bytes")
        session.ui.note("To restore it: stop every pilot, and put it in the place of the store's file.")


@db.command()
@click.option("--older-than", metavar="TIME", default="90d", show_default=True, help="What ended longer ago: 12h, 30d.")
@json_option
@click.pass_obj
def prune(session: Session, older_than: str, json: bool) -> None:
    """Remove executions that ended long ago, with their output and events, and calls over HTTP. Never open ones."""
    before = session.now() - arguments.milliseconds(older_than, "--older-than")

    async def both(store: Store) -> tuple[int, int]:
        return await store.queue.prune(before), await store.audit.prune(before)

    removed, calls = session.act(both)
    if json:
        session.ui.document({"removed": removed, "calls": calls})
    else:
        session.ui.line(f"removed {removed:,} execution{'' if removed == 1 else 's'}, ended over {older_than} ago")
        if calls:
            session.ui.line(f"removed {calls:,} record{'' if calls == 1 else 's'} of calls over HTTP")
