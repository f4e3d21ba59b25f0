"""The HTTP application: the routes of `routes/`, a file each, errors in OpenAI's shape, and a schema that is true."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from fastapi import FastAPI

from orthrus import __version__
from orthrus.serving import errors, limits, routes
from orthrus.serving.service import Service

DESCRIPTION = "Lossless parallel token generation, behind the API of OpenAI."


def create_app(service: Service) -> FastAPI:
    """The application that serves a model. Whoever runs it ends the service with `Service.drain`."""
    app = FastAPI(
        title="Orthrus", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None,
        separate_input_output_schemas=False,  # what has a default may be left out of an answer
    )  # fmt: skip
    errors.install(app)
    limits.install(app, service)
    for name in sorted(module.name for module in pkgutil.iter_modules(routes.__path__)):
        app.include_router(importlib.import_module(f"{routes.__name__}.{name}").router(service))
    app.openapi = _Schema(app, keys=bool(service.settings.api_keys))  # type: ignore[method-assign]
    return app


class _Schema:
    """The OpenAPI schema of an app, made when it is first asked for."""

    def __init__(self, app: FastAPI, *, keys: bool) -> None:
        self._made, self._keys = app.openapi, keys

    def __call__(self) -> dict[str, Any]:
        """The schema."""
        schema = without_422(self._made())
        return with_keys(schema) if self._keys else schema


def with_keys(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that says which paths need an API key."""
    bearer = {"type": "http", "scheme": "bearer", "description": "an API key of the server"}
    schema.setdefault("components", {})["securitySchemes"] = {"key": bearer}
    for path, operations in schema["paths"].items():
        if path not in limits.OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{"key": []}]
    return schema


def without_422(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's own answer to wrong bodies, which is a 400 here, taken out of a schema."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema
