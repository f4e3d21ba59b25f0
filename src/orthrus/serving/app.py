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
    schema = app.openapi

    def openapi() -> dict[str, Any]:
        return without_422(schema())

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def without_422(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's own answer to wrong bodies, which is a 400 here, taken out of a schema."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema
