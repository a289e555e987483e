"""The fake GitHub's GraphQL: GitHub's own schema (npm `@octokit/graphql-schema`), cut to what is asked for."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphql import GraphQLError, GraphQLSchema, build_ast_schema, graphql_sync, parse
from graphql.language import DefinitionNode, DocumentNode, InterfaceTypeDefinitionNode, ObjectTypeDefinitionNode

from tests.e2e.github_routes import Reply
from tests.e2e.github_state import Item

if TYPE_CHECKING:
    from tests.e2e.github_routes import Call

SCHEMA = Path(__file__).parents[1] / "adapters/node_modules/@octokit/graphql-schema/schema.graphql"
KEPT: Mapping[str, tuple[str, ...]] = {
    "Query": ("repository",),
    "Repository": ("issue",),
    "Issue": ("userContentEdits",),
    "UserContentEditConnection": ("nodes", "pageInfo"),
    "UserContentEdit": ("editedAt", "editor"),
    "PageInfo": ("endCursor", "hasNextPage"),
    "Actor": ("login",),
    "User": ("login", "databaseId"),
    "Bot": ("login", "databaseId"),
    "DateTime": (),
}


def answer(call: Call) -> Reply:
    """Run a query. Raises AssertionError when GitHub's schema does not have it."""
    done = graphql_sync(_schema(), call.body["query"], _Query(call), variable_values=call.body["variables"])
    if any(not isinstance(error.original_error, _NotFound) for error in done.errors or ()):
        raise AssertionError(f"request POST /graphql: {done.errors}")
    if done.errors:
        errors = [{"type": "NOT_FOUND", "path": error.path, "message": error.message} for error in done.errors]
        return Reply(200, {"data": done.data, "errors": errors})
    return Reply(200, {"data": done.data})


class _NotFound(GraphQLError):
    pass


class _Query:
    def __init__(self, call: Call) -> None:
        self._call = call

    def repository(self, info: Any, owner: str, name: str, **more: Any) -> _Repository:
        full = f"{owner}/{name}"
        self._call.repo = self._call.fake.repos.get(full) or self._call.fake.moved.get(full)
        if self._call.repo is None or not self._call.may("read"):
            raise _NotFound(f"Could not resolve to a Repository with the name '{full}'.")
        return _Repository(self._call)


class _Repository:
    def __init__(self, call: Call) -> None:
        self._call = call

    def issue(self, info: Any, number: int) -> _Issue:
        item = self._call.here.items.get(number)
        if item is None or item.pull:
            raise _NotFound(f"Could not resolve to an issue or pull request with the number of {number}.")
        return _Issue(item)


class _Issue:
    def __init__(self, item: Item) -> None:
        self._item = item

    def userContentEdits(self, info: Any, first: int, after: str | None = None) -> dict[str, Any]:  # noqa: N802  GitHub's
        start = int(after or 0)
        newest_first = self._item.edits[::-1]
        nodes = [
            {
                "editedAt": at,
                "editor": {
                    "__typename": user.kind,
                    "login": user.login.removesuffix("[bot]"),
                    "databaseId": user.id,
                },
            }
            for user, at in newest_first[start : start + first]
        ]
        more = start + first < len(newest_first)
        return {"nodes": nodes, "pageInfo": {"hasNextPage": more, "endCursor": str(start + first) if more else None}}


@functools.cache
def _schema() -> GraphQLSchema:
    """Only the definitions in `KEPT`, with those fields: the whole takes seconds to read."""
    whole = SCHEMA.read_text()
    found: list[DefinitionNode] = []
    for name, fields in KEPT.items():
        text = re.search(rf"^(?:type|interface) {name}\b.*?^}}", whole, re.MULTILINE | re.DOTALL)
        definition = parse(text[0] if text else f"scalar {name}", no_location=True).definitions[0]
        if isinstance(definition, ObjectTypeDefinitionNode | InterfaceTypeDefinitionNode):
            kept = tuple(each for each in definition.fields or () if each.name.value in fields)
            over = tuple(each for each in definition.interfaces or () if each.name.value in KEPT)
            assert len(kept) == len(fields), name
            definition = type(definition)(name=definition.name, fields=kept, interfaces=over)
        assert isinstance(definition, DefinitionNode)
        found.append(definition)
    return build_ast_schema(DocumentNode(definitions=tuple(found)))
