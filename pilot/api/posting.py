"""Routes that change something: described by FastAPI, read and answered without its detours.

A body goes from its bytes into its model in one step: strict as JSON is, no half of a surrogate pair, no number that
is none; and a call costs half of what it would otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends, Header
from fastapi.params import Path as InPath
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_Bind = Callable[[Request], Awaitable[Any]]


class Route(APIRoute):
    """As FastAPI's; one that takes POST alone answers by itself. Its endpoint gets what its parameters ask for.

    These are the request, one body, values in the path and in headers, and `needs(...)`.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if self.methods == {"POST"}:
            self._binds = _binds_of(self.endpoint)
            self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        values = {name: await bind(request) for name, bind in self._binds}
        response: Response = await self.endpoint(**values)
        await response(scope, receive, send)


def _binds_of(endpoint: Callable[..., Any]) -> list[tuple[str, _Bind]]:
    """How each parameter comes by its value; who calls is asked first, so that nobody else is told more."""
    hints = get_type_hints(endpoint, include_extras=True)
    parameters = inspect.signature(endpoint).parameters
    found = [(name, _bind(name, hints[name], parameter.default)) for name, parameter in parameters.items()]
    return sorted(found, key=lambda one: not _marks(hints[one[0]], Depends))


def _bind(name: str, hint: Any, default: Any) -> _Bind:
    if hint is Request:
        return _itself
    for mark in _marks(hint, Depends):
        assert mark.dependency is not None  # noqa: S101  `needs` has one
        dependency: _Bind = mark.dependency
        return dependency
    for mark in _marks(hint, Header):
        return _from_header(mark.alias or name.replace("_", "-"), TypeAdapter(hint), default)
    if _marks(hint, InPath):
        return _from_path(name, TypeAdapter(hint))
    models = [each for each in (hint, *get_args(hint)) if isinstance(each, type) and issubclass(each, BaseModel)]
    if len(models) != 1:
        raise TypeError(f"a route of POST has no use for {name}: {hint}")
    return _from_body(models[0], default)


def _marks(hint: Any, kind: type[Any]) -> list[Any]:
    return [each for each in hint.__metadata__ if isinstance(each, kind)] if get_origin(hint) is Annotated else []


async def _itself(request: Request) -> Request:
    return request


def _from_path(name: str, adapter: TypeAdapter[Any]) -> _Bind:
    async def bind(request: Request) -> Any:
        try:
            return adapter.validate_python(request.path_params[name])
        except ValidationError as error:
            raise _invalid(error, "path", name) from None

    return bind


def _from_header(name: str, adapter: TypeAdapter[Any], default: Any) -> _Bind:
    async def bind(request: Request) -> Any:
        value = request.headers.get(name)
        if value is None:
            return default
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise _invalid(error, "header", name) from None

    return bind


def _from_body(model: type[BaseModel], default: Any) -> _Bind:
    read = model.__pydantic_validator__.validate_json

    async def bind(request: Request) -> Any:
        body = await request.body()
        if not body and default is not inspect.Parameter.empty:
            return default
        try:
            return read(body)
        except ValidationError as error:
            raise _invalid(error, "body") from None

    return bind


def _invalid(error: ValidationError, *place: str) -> RequestValidationError:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**each, "loc": (*place, *each["loc"])} for each in found])
