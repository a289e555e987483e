"""`pilot backend`: the agents there are, and those that take no work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session
from pilot.domain.errors import NotFound, PilotError, StoreError

if TYPE_CHECKING:
    from pilot.config.executor import ExecutorSettings


@click.group()
def backend() -> None:
    """Coding agents: which there are, and are parked."""


@backend.command("list")
@json_option
@click.pass_obj
def list_(session: Session, json: bool) -> None:
    """The agents that tasks can go to, what they can do, and which of their accounts take no work."""
    from pilot.store.allowance import words

    found = _backends(session)
    if json:
        session.ui.document({"backends": found})
        return
    session.ui.table(
        ["BACKEND", "ACCOUNT", "USED", "CAN", "PARKED"],
        [
            [
                one["name"],
                one["account"] or "-",
                "yes" if one["used"] else "-",
                " ".join(name for name, able in (one["capabilities"] or {}).items() if able) or "-",
                f"{words(one)}: {one['reason']}" if one["parked"] else "-",
            ]
            for one in found
        ],
    )


def _backends(session: Session) -> list[dict[str, Any]]:
    """One for each park, and one for each backend whose own account is not parked."""
    from pilot.backends import known_backends
    from pilot.config.uses import used_agents

    settings = session.loaded().settings
    parks = _parked(session)
    used = dict(used_agents(settings))
    found: list[dict[str, Any]] = []
    for name in sorted({*known_backends(settings.executor), *used, *(park["backend"] for park in parks)}):
        can, own = _described(session, name, used.get(name, settings.executor))
        facts = {"name": name, "used": name in used, "capabilities": can}
        parked = [park for park in parks if park["backend"] == name]
        if not any(park["account"] in (None, own) for park in parked):
            none = dict.fromkeys(("state", "failure_class", "reason", "until", "since", "tries", "probe"))
            found.append(facts | {"account": own, "parked": False, **none})
        for park in parked:
            found.append(facts | {"parked": True} | {key: value for key, value in park.items() if key != "backend"})
    return found


def _described(session: Session, name: str, executor: ExecutorSettings) -> tuple[dict[str, bool] | None, str | None]:
    """What it can do, and its account; None is not known."""
    from dataclasses import asdict

    from pilot.backends import build

    try:
        built = build(name, executor, session.environ)
    except PilotError:
        return None, None
    return asdict(built.capabilities()), built.account() or None


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
@click.option("--account", metavar="A", help="Only this account's park, as `backend list` shows it.")
@json_option
@click.pass_obj
def unpark(session: Session, name: str, account: str | None, json: bool) -> None:
    """Let a parked backend be tried: the next task goes first, the others when it has an answer."""
    try:
        session.act(lambda store: store.queue.unpark(name, session.person(), account))
    except NotFound:
        parked = ", ".join(_called(park) for park in _parked(session)) or "none"
        which = repr(name) if account is None else f"{name!r} of account {account!r}"
        raise NotFound(f"backend {which} is not parked; parked: {parked}") from None
    if json:
        session.ui.document({"backend": name, "account": account, "parked": False})
    else:
        session.ui.line(f"{name} may be tried again: the next of its tasks starts, the others follow its answer")


def _called(park: dict[str, Any]) -> str:
    return park["backend"] if park["account"] is None else f"{park['backend']} ({park['account']})"
