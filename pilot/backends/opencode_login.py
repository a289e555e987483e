"""The file of OpenCode's accounts, and agents that may write it: what it says is obeyed outside of their sandbox, too.

An account of the type "wellknown" names an address whose settings the program fetches and obeys at its next start,
commands among them. So the file is written from inside only for a token that is renewed, and looked at afterwards.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pilot.backends.reading import as_event, parsed


def is_renewed(file: str) -> bool:
    """Whether it has an account whose token the program renews, and so has to be written by it."""
    return any(as_event(account).get("type") == "oauth" for account in (_read(file) or {}).values())


@asynccontextmanager
async def guarded(file: str) -> AsyncIterator[None]:
    """Whatever runs meanwhile adds no account to it that would have commands run, and does not spoil it."""
    before = _read(file)
    try:
        yield
    finally:
        _mend(file, before)


def _mend(file: str, before: dict[str, Any] | None) -> None:
    after = _read(file)
    if before is None or after == before:
        return
    kept = before if after is None else _without_orders(before, after)
    if kept != after:
        Path(file).write_text(json.dumps(kept, indent=2))


def _without_orders(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    added = {name for name, account in after.items() if _gives_orders(account) and before.get(name) != account}
    kept = {name: account for name, account in after.items() if name not in added}
    return {**{name: account for name, account in before.items() if _gives_orders(account)}, **kept}


def _gives_orders(account: object) -> bool:
    return as_event(account).get("type") not in ("api", "oauth")


def _read(file: str) -> dict[str, Any] | None:
    try:
        found = parsed(Path(file).read_bytes())
    except OSError:
        return None
    return None if found is None else dict(found)
