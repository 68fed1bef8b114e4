"""/openapi.json is true: requests made from it by schemathesis get replies that it describes, and no 5xx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("default"),  # schemathesis' own
]
NAME = "tiny"
Idle = Callable[[], None]
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def plausible(body: Any) -> Any:
    """A generated body, but about the model that is there, and for a short reply."""
    if isinstance(body, dict):
        if "model" in body:
            body["model"] = NAME
        for name in LENGTHS:
            if isinstance(body.get(name), int) and body[name] > 4:
                body[name] = 4
        if isinstance(body.get("n"), int) and body["n"] > 2:
            body["n"] = 2
    return body


def explore(url: str, num_cases: int) -> Counter[tuple[str, int]]:
    """So many requests to each route; how often each got which status."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    counts: Counter[tuple[str, int]] = Counter()
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()

        @seed(1)
        @settings(
            max_examples=num_cases,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.body = plausible(case.body)
            response = case.call(timeout=60)
            counts[case.operation.path, response.status_code] += 1
            case.validate_response(response, checks=checks)

        check()
    return counts


def test_generated_requests_get_the_replies_that_the_schema_promises(url: str, idle: Idle) -> None:
    counts = explore(url, 6)
    routes = {path for path, _ in counts}
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"} <= routes
    assert {status for _, status in counts} <= {200, 400, 404}
    assert sum(num for (_, status), num in counts.items() if status == 200) > 10


@pytest.mark.slow
def test_ten_thousand_generated_requests(url: str, idle: Idle) -> None:
    counts = explore(url, 1150)
    assert sum(counts.values()) >= 10_000
    assert {status for _, status in counts} <= {200, 400, 404, 413}


def test_the_schema_names_every_route_and_the_shape_of_errors(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for told in methods.values():
            assert {"200", "4XX", "5XX"} == told["responses"].keys(), path
    chat = schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"application/json", "text/event-stream"} == chat["200"]["content"].keys()
    error = chat["4XX"]["content"]["application/json"]["schema"]["properties"]["error"]
    assert set(error["required"]) == {"message", "type", "param", "code"}
