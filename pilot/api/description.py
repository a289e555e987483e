"""The OpenAPI document: what FastAPI knows of the routes, and what it can't know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from pilot.api.given import Problem

PATH = "/api/v1/openapi.json"
_WORDS = """Tasks in, executions out; workers claim over HTTP.

Every call but the two health checks and this document needs `Authorization: Bearer TOKEN`. A token has a scope:
`read` looks at everything; `work` also puts tasks and plans in, claims, and speaks of what it claimed; `admin` also
cancels, retries, answers, pauses, and puts in what runs programs. `pilot token create` makes one.

Errors are problem documents (RFC 9457). Times are RFC 3339, UTC. Lists have cursors: ask again with what the last page
named. Fields may be added; skip those that you don't know.
"""
_TAGS = (
    ("executions", "Tasks, from queued to their end."),
    ("work", "For workers: claim, heartbeat, complete. All that is said of a claim goes with its fence."),
    ("plans", "Steps that wait for each other."),
    ("projects", "Repositories: one execution at a time in each, unless they say otherwise."),
    ("state", "Figures, nodes, events, and who did what."),
    ("health", "For service managers and load balancers; no token."),
)
_OPEN = ("/livez", "/readyz")


def operation_id(route: APIRoute) -> str:
    """The endpoint's own name: `claim`, `heartbeat`."""
    return route.name


def describe(app: FastAPI, version: str) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = get_openapi(
        title="pilot",
        version=version,
        summary="Turns tickets into finished changes with coding agents, one at a time per repository.",
        description=_WORDS,
        routes=app.routes,
        tags=[{"name": name, "description": words} for name, words in _TAGS],
        separate_input_output_schemas=False,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "`pilot_<id>_<secret>`"}
    }
    document["security"] = [{"bearer": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["summary"] = _first_sentence(operation["description"])
            if path in _OPEN:
                operation["security"] = []
            for answer in operation["responses"].values():
                if answer["description"] == "Successful Response":
                    answer["description"] = _told(answer, schemas)
    app.openapi_schema = document
    return document


def _first_sentence(words: str) -> str:
    return words.partition("\n")[0].partition(". ")[0].rstrip(".:")


def _told(answer: dict[str, Any], schemas: dict[str, Any]) -> str:
    """What an answer is: as its schema says."""
    for content in answer.get("content", {}).values():
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name in schemas:
            return str(schemas[name].get("description") or "It is as asked.")
    return "It is as asked."
