"""`pilot doctor`: is everything there? One line per check, with what to do about it."""

from __future__ import annotations

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session

_MARKS = {True: ("✓", "green"), None: ("!", "yellow"), False: ("✗", "red")}
_WORDS = {True: "ok", None: "warning", False: "failure"}


@click.command()
@json_option
@click.pass_obj
def doctor(session: Session, json: bool) -> int:
    """Check git, agents, store, permissions, port, projects.

    Each line says what to do; the exit code is 1 when something is wrong.
    """
    import asyncio

    from pilot.cli.checks import examine

    checks = asyncio.run(examine(session))
    failed = any(check.ok is False for check in checks)
    if json:
        session.ui.document(
            {
                "ok": not failed,
                "checks": [
                    {
                        "name": check.name,
                        "status": _WORDS[check.ok],
                        "detail": check.detail,
                        "remedy": check.remedy or None,
                    }
                    for check in checks
                ],
            }
        )
    else:
        for check in checks:
            mark, style = _MARKS[check.ok]
            session.ui.marked(mark, style, f"{check.name}: {check.detail}")
            if check.remedy and check.ok is not True:
                session.ui.line(f"    → {check.remedy}")
    return 1 if failed else 0
