"""The OpenAPI schema is true: what it allows is answered as it says, and what it does not is refused.

A few examples per route. For thousands of them: `schemathesis run http://127.0.0.1:8000/openapi.json`.
"""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
import uvicorn

from orthrus.serving.app import create_app
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings

hypothesis = pytest.importorskip("hypothesis")
schemathesis = pytest.importorskip("schemathesis")
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@pytest.fixture(scope="module")
def url(model):
    """A server on a free port."""
    listening = socket.create_server(("127.0.0.1", 0))
    started, made = threading.Event(), []

    async def main():
        service = Service(model, ServeSettings(served_model_name="tiny", max_queue=100, cycle="one-pass"))
        made.append(uvicorn.Server(uvicorn.Config(create_app(service), log_level="error", lifespan="off")))
        started.set()
        await made[0].serve([listening])
        await service.drain(5)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    started.wait()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    made[0].should_exit = True
    thread.join()


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_answers_are_as_the_schema_says(url, mode):
    """Of the served model, and short."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = schema.config.checks
    checks.positive_data_acceptance.enabled = False  # fields that are right alone may be wrong together
    paths = []
    for found in schema.get_all_operations():
        operation = found.ok()
        paths.append(operation.path)
        try:
            cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
            answered(cases)
        except hypothesis.errors.Unsatisfiable:  # a route without parameters has no wrong ones
            assert mode == "negative" and operation.method == "get"
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/tokenize"} <= {*paths}


def answered(cases):
    @hypothesis.seed(1)
    @hypothesis.settings(
        max_examples=3, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(cases)
    def check(case):
        if isinstance(case.body, dict):
            if isinstance(case.body.get("model"), str):
                case.body["model"] = "tiny"
            case.body.update({name: 4 for name in LIMITS if type(case.body.get(name)) is int and case.body[name] > 4})
        case.call_and_validate()

    check()


def test_the_schema_says_which_paths_need_a_key(model):
    def secured(*keys):
        paths = create_app(Service(model, ServeSettings(api_keys=keys))).openapi()["paths"]
        return {path for path, operations in paths.items() if any("security" in each for each in operations.values())}

    assert secured() == set()
    assert {"/v1/chat/completions", "/v1/models/{model}", "/tokenize"} <= secured("a")
    assert not {"/health", "/version", "/metrics"} & secured("a")
