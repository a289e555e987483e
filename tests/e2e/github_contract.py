"""GitHub's own description of its API, cut to the calls in use: judge of a client's requests and of a fake's answers.

The description comes with the npm package `@octokit/openapi`. Beyond it, names that GitHub would silently ignore in a
query or a body are refused (a misspelt one must not pass), and the errors that GitHub gives everywhere are allowed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from openapi_core import Config, OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.exceptions import OpenAPIError
from openapi_core.protocols import Request
from werkzeug.datastructures import Headers, ImmutableMultiDict

DESCRIPTION = Path(__file__).parents[1] / "adapters/node_modules/@octokit/openapi/generated/api.github.com.json"

REPO = "/repos/{owner}/{repo}"
CALLS: Mapping[str, tuple[str, ...]] = {
    "/user": ("get",),
    "/users/{username}": ("get",),
    "/app": ("get",),
    "/app/installations/{installation_id}/access_tokens": ("post",),
    REPO: ("get",),
    f"{REPO}/branches/{{branch}}": ("get",),
    f"{REPO}/issues": ("get",),
    f"{REPO}/issues/{{issue_number}}": ("get",),
    f"{REPO}/issues/{{issue_number}}/events": ("get",),
    f"{REPO}/issues/{{issue_number}}/comments": ("get", "post"),
    f"{REPO}/issues/{{issue_number}}/labels": ("post",),
    f"{REPO}/issues/{{issue_number}}/labels/{{name}}": ("delete",),
    f"{REPO}/issues/comments": ("get",),
    f"{REPO}/issues/comments/{{comment_id}}": ("get", "patch"),
    f"{REPO}/labels": ("post",),
    f"{REPO}/collaborators/{{username}}/permission": ("get",),
    f"{REPO}/pulls": ("get", "post"),
    f"{REPO}/pulls/{{pull_number}}": ("get", "patch"),
    f"{REPO}/pulls/{{pull_number}}/reviews": ("get",),
    f"{REPO}/pulls/{{pull_number}}/comments": ("get",),
    f"{REPO}/commits/{{ref}}/check-runs": ("get",),
    f"{REPO}/commits/{{ref}}/check-suites": ("get",),
    f"{REPO}/commits/{{ref}}/status": ("get",),
    f"{REPO}/actions/runs": ("get",),
    f"{REPO}/actions/runs/{{run_id}}/jobs": ("get",),
    f"{REPO}/actions/jobs/{{job_id}}/logs": ("get",),
}
EVENTS = (
    "check-run-completed",
    "issue-comment-created",
    "issue-comment-edited",
    "issues-closed",
    "issues-edited",
    "issues-labeled",
    "issues-opened",
    "issues-reopened",
    "issues-unlabeled",
    "ping",
    "pull-request-closed",
    "pull-request-edited",
    "pull-request-labeled",
    "pull-request-opened",
    "pull-request-reopened",
    "pull-request-review-submitted",
    "pull-request-unlabeled",
)
EVERYWHERE = frozenset({401, 403, 404, 410, 422, 429, 500, 502, 503})
"""Errors that GitHub gives for any call, though the description names them for few."""
HOST = "http://github.test"


class BreaksContract(AssertionError):
    """What was sent is not what GitHub's description allows; the message names the place."""


@dataclass(slots=True)
class _Request:
    """The shape in which openapi-core takes a request."""

    host_url: str
    path: str
    method: str
    parameters: RequestParameters
    content_type: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class _Response:
    status_code: int
    data: bytes | None
    content_type: str
    headers: Mapping[str, Any] = field(default_factory=dict)


def _request(method: str, target: str, body: bytes) -> Request:
    parts = urlsplit(target)
    query = ImmutableMultiDict(parse_qsl(parts.query, keep_blank_values=True))
    parameters = RequestParameters(query=query, header=Headers())
    # no WebhookRequest by shape, which the library's types can't say
    return cast(Request, _Request(HOST, parts.path, method.lower(), parameters, "application/json", body or None))


def check_request(method: str, target: str, body: bytes) -> None:
    """Raise `BreaksContract` unless GitHub's description has such a request. `target`: path and query."""
    _judged("request", method, target, lambda: _contract().validate_request(_request(method, target, body)))
    operation = _operation(method, target)
    if operation is None:
        raise BreaksContract(f"request {method} {target}: not in the cut of the description")
    known = {_resolved(each)["name"] for each in operation.get("parameters", ())}
    if unknown := {name for name, _ in parse_qsl(urlsplit(target).query)} - known:
        raise BreaksContract(f"request {method} {target}: GitHub would ignore {sorted(unknown)} in the query")
    if body and (fields := _fields(operation)) and (unknown := set(json.loads(body)) - fields):
        raise BreaksContract(f"request {method} {target}: GitHub would ignore {sorted(unknown)} in the body")


def check_response(method: str, target: str, code: int, body: bytes) -> None:
    """Raise `BreaksContract` unless this may be the answer to that request."""
    operation = _operation(method, target) or {}
    if str(code) not in operation.get("responses", {}):
        if code == 304 and method == "GET" and not body:
            return
        if code in (301, 307) or (code in EVERYWHERE and isinstance(json.loads(body).get("message"), str)):
            return
    answer = _Response(code, body or None, "application/json")
    request = _request(method, target, b"")
    _judged(f"answer {code}", method, target, lambda: _contract().validate_response(request, answer))


def check_event(name: str, body: bytes) -> None:
    """Raise `BreaksContract` unless `body` may be the payload of that webhook, such as "issues-labeled"."""
    target = f"/webhooks/{name}"
    _judged("webhook", "POST", target, lambda: _contract().validate_request(_request("POST", target, body)))


def complete(schema: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """An object with what is given and, for the rest that the schema requires, values of the right type."""
    return _filled(_cut()["components"]["schemas"][schema], given)


def complete_event(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of that webhook, with what is given."""
    return _filled(
        _cut()["paths"][f"/webhooks/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"], given
    )


def _judged(what: str, method: str, target: str, check: Callable[[], Any]) -> None:
    try:
        check()
    except OpenAPIError as error:
        raise BreaksContract(f"{what} {method} {target}: {'; '.join(_reasons(error)) or error}") from error


def _reasons(error: BaseException) -> Iterator[str]:
    cause: BaseException | None = error
    while cause is not None:
        for inner in getattr(cause, "schema_errors", ()):
            where = "/".join(str(part) for part in inner.absolute_path)
            yield f"{where or '(top)'}: {inner.message[:300]}"
        cause = cause.__cause__


@functools.cache
def _contract() -> OpenAPI:
    # that the description is OpenAPI is not ours to check, and takes long
    return OpenAPI.from_dict(_cut(), config=Config(spec_validator_cls=None))


@functools.cache
def _cut() -> dict[str, Any]:
    whole = json.loads(DESCRIPTION.read_bytes())
    paths: dict[str, Any] = {
        path: {call: whole["paths"][path][call] for call in calls} for path, calls in CALLS.items()
    }
    for name in EVENTS:
        paths[f"/webhooks/{name}"] = {"post": whole["x-webhooks"][name]["post"]}
    components: dict[str, dict[str, Any]] = {}
    _gather(paths, whole["components"], components)
    _let_null_be(paths)
    _let_null_be(components)
    return {
        "openapi": whole["openapi"],
        "info": whole["info"],
        "servers": [{"url": HOST}],
        "paths": paths,
        "components": components,
    }


def _gather(node: Any, whole: Mapping[str, Any], into: dict[str, dict[str, Any]]) -> None:
    """Copy what `node` refers to, and what that refers to."""
    if isinstance(node, list):
        for item in node:
            _gather(item, whole, into)
    elif isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            kind, name = reference.removeprefix("#/components/").split("/")
            if name not in into.setdefault(kind, {}):
                into[kind][name] = whole[kind][name]
                _gather(into[kind][name], whole, into)
        for item in node.values():
            _gather(item, whole, into)


def _let_null_be(node: Any) -> None:
    """Where null is allowed beside an enumeration, add it there; GitHub sends it."""
    if isinstance(node, list):
        for item in node:
            _let_null_be(item)
    elif isinstance(node, dict):
        if node.get("nullable") is True and None not in node.get("enum", [None]):
            node["enum"] = [*node["enum"], None]
        for item in node.values():
            _let_null_be(item)


@functools.cache
def _templates() -> tuple[tuple[re.Pattern[str], str], ...]:
    # what is spelt out goes before what is open: /issues/comments is no issue
    order = sorted(CALLS, key=lambda path: path.count("{"))
    return tuple((re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path) for path in order)


def _operation(method: str, target: str) -> Mapping[str, Any] | None:
    path = urlsplit(target).path
    for pattern, template in _templates():
        if pattern.fullmatch(path) and method.lower() in CALLS[template]:
            found: Mapping[str, Any] = _cut()["paths"][template][method.lower()]
            return found
    return None


def _resolved(node: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        kind, name = node["$ref"].removeprefix("#/components/").split("/")
        node = _cut()["components"][kind][name]
    return node


def _fields(operation: Mapping[str, Any]) -> set[str]:
    """The names of a body's fields, of all forms that it may have."""
    schema = _resolved(operation["requestBody"]["content"]["application/json"]["schema"])
    forms = [schema, *(_resolved(form) for form in (*schema.get("oneOf", ()), *schema.get("anyOf", ())))]
    return {name for form in forms for name in form.get("properties", {})}


def _filled(schema: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(given)
    schema = _resolved(schema)
    for part in schema.get("allOf", ()):
        made = _filled(part, made)
    for name, kind in schema.get("properties", {}).items():
        if name in made:
            made[name] = _deeper(kind, made[name])
        elif name in schema.get("required", ()):
            made[name] = _something(kind, name)
    return made


def _deeper(schema: Mapping[str, Any], value: Any) -> Any:
    schema = _resolved(schema)
    if isinstance(value, list):
        return [_deeper(schema.get("items", {}), item) for item in value]
    return _filled(schema, value) if isinstance(value, dict) else value


def _something(schema: Mapping[str, Any], name: str) -> Any:
    schema = _resolved(schema)
    if schema.get("nullable"):
        return None
    if "enum" in schema:
        return schema["enum"][0]
    for choice in (*schema.get("oneOf", ()), *schema.get("anyOf", ())):
        return _something(choice, name)
    if schema.get("type") == "object" or "properties" in schema or "allOf" in schema:
        return _filled(schema, {})
    if schema.get("type") == "string":
        formats = {"date-time": "2026-01-01T00:00:00Z", "uri": f"{HOST}/{name}", "email": "nobody@github.test"}
        return formats.get(schema.get("format", ""), f"({name})")
    simple: Mapping[str, Any] = {"integer": 0, "number": 0, "boolean": False, "array": []}
    return simple[schema.get("type", "array")]
