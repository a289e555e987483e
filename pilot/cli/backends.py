"""`pilot backend`: the agents there are, and those that take no work."""

from __future__ import annotations

from typing import Any

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session
from pilot.domain.errors import NotFound, PilotError, StoreError


@click.group()
def backend() -> None:
    """Coding agents: which there are, which are parked."""


@backend.command("list")
@json_option
@click.pass_obj
def list_(session: Session, json: bool) -> None:
    """The agents that tasks can go to, what they can do, and until when they are parked."""
    from dataclasses import asdict

    from pilot.backends import build, known_backends
    from pilot.config.uses import used_agents

    settings = session.loaded().settings
    parked = {park["backend"]: park for park in _parked(session)}
    used = dict(used_agents(settings))
    found: list[dict[str, Any]] = []
    for name in sorted({*known_backends(settings.executor), *used, *parked}):
        try:
            can = asdict(build(name, used.get(name, settings.executor), session.environ).capabilities())
        except PilotError:
            can = None
        park = parked.get(name)
        found.append(
            {
                "name": name,
                "used": name in used,
                "capabilities": can,
                "parked": park is not None,
                "until": park["until"] if park else None,
                "reason": park["reason"] if park else None,
            }
        )
    if json:
        session.ui.document({"backends": found})
        return
    session.ui.table(
        ["BACKEND", "USED", "CAN", "PARKED"],
        [
            [
                one["name"],
                "yes" if one["used"] else "-",
                " ".join(name for name, able in (one["capabilities"] or {}).items() if able) or "-",
                f"until {one['until'] or 'somebody unparks it'}: {one['reason']}" if one["parked"] else "-",
            ]
            for one in found
        ],
    )


def _parked(session: Session) -> list[dict[str, Any]]:
    from pilot.store.glance import answer

    try:
        with session.history() as history:
            parked: list[dict[str, Any]] = answer(history.status(session.now()))["parked"]
            return parked
    except StoreError:
        return []  # nothing has run yet


@backend.command()
@click.argument("name", metavar="BACKEND")
@json_option
@click.pass_obj
def unpark(session: Session, name: str, json: bool) -> None:
    """Let a parked backend take work again; its queued tasks start at once."""
    try:
        session.act(lambda store: store.queue.unpark(name, session.person()))
    except NotFound:
        parked = ", ".join(park["backend"] for park in _parked(session)) or "none"
        raise NotFound(f"backend {name!r} is not parked; parked: {parked}") from None
    if json:
        session.ui.document({"backend": name, "parked": False})
    else:
        session.ui.line(f"{name} takes work again")
