"""Which scope a route needs, and who calls it."""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from starlette.requests import Request

from pilot.api.problems import NotAllowed
from pilot.domain.access import Caller, Scope


def needs(scope: Scope) -> Any:
    """A dependency of a route: the caller, who has this scope; raises `NotAllowed`.

    `scope` is to be found again at the dependency's function, for the API's own description.
    """

    async def dependency(request: Request) -> Caller:
        caller = caller_of(request)
        request.state.needs = scope
        allow(caller, scope)
        return caller

    dependency.scope = scope  # type: ignore[attr-defined]
    return Depends(dependency)


def allow(caller: Caller, scope: Scope) -> None:
    """Raises `NotAllowed`, in words, when its token is not good for this."""
    if not caller.may(scope):
        has = ", ".join(each for each in Scope if each in caller.scopes) or "none"
        raise NotAllowed(f"this needs a token with the scope `{scope}`; {caller.name!r} has: {has}")


def caller_of(request: Request) -> Caller:
    """Whom the guard let in; raises `NotAllowed` where no guard stands before the route."""
    caller = request.scope.get("state", {}).get("caller")
    if not isinstance(caller, Caller):
        raise NotAllowed("nobody has checked who calls")
    return caller


def allow_commands(request: Request, caller: Caller) -> None:
    """The body turned out to be one that runs a program: that needs `admin`; raises `NotAllowed`."""
    allow(caller, Scope.ADMIN)
    request.state.needs = Scope.ADMIN  # so that its row is durable before it is answered
