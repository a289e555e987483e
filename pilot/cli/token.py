"""`pilot token`: who may call this pilot over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pilot.cli import arguments
from pilot.cli.arguments import json_option
from pilot.cli.session import Session
from pilot.cli.ui import ago
from pilot.domain.access import Scope

if TYPE_CHECKING:
    from pilot.domain.access import Token


@click.group()
def token() -> None:
    """Tokens for the HTTP API: workers, scripts, other machines."""


@token.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([str(scope) for scope in Scope]),
    help="What it is good for, each including those before it; work if not said.",
)
@click.option("--expires", metavar="TIME", help="After so long it counts no more: 12h, 30d. Never if not said.")
@json_option
@click.pass_obj
def create(session: Session, name: str, scopes: tuple[str, ...], expires: str | None, json: bool) -> None:
    """Make a token and print it: the only time that it is shown. Only its hash is kept."""
    wanted = [Scope(scope) for scope in scopes] or [Scope.WORK]
    at = None if expires is None else session.now() + arguments.milliseconds(expires, "--expires")
    by = session.person()
    made = session.act(lambda store: store.tokens.create(name, wanted, by, at))
    id = made.split("_")[1]
    if json:
        known = next(each for each in session.act(lambda store: store.tokens.list()) if each.id == id)
        session.ui.document({**_document(known, session.now()), "token": made})
        return
    session.ui.line(made)
    session.ui.note(f"Keep it: it is not shown again. `pilot token revoke {id}` ends it.")


@token.command("list")
@json_option
@click.pass_obj
def list_(session: Session, json: bool) -> None:
    """All tokens, also those that count no more; never their secrets."""
    now = session.now()
    known = session.act(lambda store: store.tokens.list())
    found = [_document(each, now) for each in known]
    if json:
        session.ui.document({"tokens": found})
        return
    session.ui.table(
        ["ID", "NAME", "SCOPES", "STATE", "CREATED", "BY", "LAST USED", "EXPIRES"],
        [
            [
                one["id"], one["name"], " ".join(one["scopes"]), one["state"], ago(each.created_at, now),
                each.created_by, ago(each.last_used_at, now), ago(each.expires_at, now),
            ]
            for one, each in zip(found, known, strict=True)
        ],
        gives=1,
    )  # fmt: skip


@token.command()
@click.argument("id", metavar="ID")
@json_option
@click.pass_obj
def revoke(session: Session, id: str, json: bool) -> None:
    """End a token: it counts no more, for good, with whoever has it."""
    by = session.person()
    ended = session.act(lambda store: store.tokens.revoke(id, by))
    if json:
        session.ui.document(_document(ended, session.now()))
    else:
        session.ui.line(f"{ended.id} ({ended.name}) counts no more")


def _document(token: Token, now: int) -> dict[str, Any]:
    from pilot.store.documents import rfc3339

    state = "active"
    if token.revoked_at is not None:
        state = "revoked"
    elif token.expires_at is not None and token.expires_at <= now:
        state = "expired"
    return {
        "id": token.id,
        "name": token.name,
        "scopes": [str(scope) for scope in Scope if scope in token.scopes],
        "state": state,
        "created_at": rfc3339(token.created_at),
        "created_by": token.created_by,
        "expires_at": rfc3339(token.expires_at),
        "last_used_at": rfc3339(token.last_used_at),
        "revoked_at": rfc3339(token.revoked_at),
    }
