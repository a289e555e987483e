"""The OpenAPI document against the server: whatever a generator makes of it, no 5xx, and answers as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from pilot.api.description import PATH
from pilot.domain.access import Scope
from tests.adapters.api_rig import Rig, serving_beside

EXAMPLES = 4
"""Of each operation; the clock of a whole run is what limits them."""
STREAMS = ("/api/v1/events", "/api/v1/executions/{id}/stream")
"""They have no end; test_stream.py has them."""


def told(rig: Rig) -> dict[str, str]:
    return {"authorization": f"Bearer {rig.tokens[Scope.ADMIN]}"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """There is something of everything: a claim under way, one that is done, one that asks, one that waits."""
    with (
        serving_beside(tmp_path_factory.mktemp("served"), server={"port": 0, "rate_limit": 100_000}) as rig,
        httpx2.Client(base_url=f"{rig.url}/api/v1", headers=told(rig), verify=False, timeout=60) as http,
    ):
        for n, project in enumerate(("api", "web")):
            http.post("/executions", json={"project": project, "title": f"T {n}"})
            claim = http.post("/work/claim", json={"worker": "w", "lease_seconds": 3600}).json()["executions"][0]
            said = {"worker": "w", "fence": claim["fence"]}
            http.post(f"/work/{claim['id']}/output", json=said | {"pieces": [{"text": "hi"}]})
            question = {"outcome": "question", "question": {"text": "Which?"}}
            http.post(f"/work/{claim['id']}/complete", json=said | ({} if n else question))
        http.post("/executions", json={"project": "web", "title": "held"})
        http.post("/work/claim", json={"worker": "w", "lease_seconds": 3600})
        yield rig


@pytest.fixture
def schema(rig: Rig) -> Any:
    import schemathesis  # takes long, and every worker of a test run collects this file

    return schemathesis.openapi.from_url(f"{rig.url}{PATH}").exclude(path=list(STREAMS))


def _checks() -> list[Any]:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    return [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]


@pytest.mark.parametrize("valid", [True, False], ids=["positive", "negative"])
def test_the_server_does_as_its_document_says(rig: Rig, schema: Any, valid: bool) -> None:
    from schemathesis import GenerationMode

    mode = GenerationMode.POSITIVE if valid else GenerationMode.NEGATIVE
    checks = _checks()
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if not valid and not (operation.body or operation.query or operation.path_parameters):
            continue  # there is nothing to get wrong

        @seed(5)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            _be_quick(case)
            if valid:
                _aim(case)
            case.call_and_validate(headers=told(rig), checks=checks, timeout=60)

        ask()
        tried += 1
    assert tried >= (28 if valid else 22)


def _be_quick(case: Any) -> None:
    """A claim may wait a minute for work; there is none."""
    wait = case.body.get("wait_seconds") if isinstance(case.body, dict) else None
    if isinstance(wait, (int, float)) and 0 < wait <= 60:
        case.body["wait_seconds"] = 0.01


def _aim(case: Any) -> None:
    """At what there is: nearly every id, project and worker that is made up is nobody's."""
    for place in (case.path_parameters, case.body):
        if isinstance(place, dict):
            for name, known in (("project", "api"), ("name", "api"), ("worker", "w"), ("fence", 1)):
                if name in place and (name != "name" or place is case.path_parameters):
                    place[name] = known
            if isinstance(place.get("id"), int):
                place["id"] = 1 + place["id"] % 4


def test_a_document_that_lies_is_found_out(rig: Rig, schema: Any) -> None:
    schema.raw_schema["components"]["schemas"]["NodesGiven"]["required"].append("more")
    schema.raw_schema["components"]["schemas"]["NodesGiven"]["properties"]["more"] = {"type": "integer"}
    with pytest.raises(BaseException, match="more"):
        schema["/api/v1/nodes"]["GET"].Case().call_and_validate(headers=told(rig), checks=_checks())
