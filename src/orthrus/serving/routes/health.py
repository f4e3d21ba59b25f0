"""`/health` and `/version`, which need no key."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

import orthrus
from orthrus.serving.service import Service


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/health", responses={503: {"description": "Draining, a pass hangs, or the engine has died."}})
    async def health() -> JSONResponse:
        """Whether the server takes requests: 200, or 503 while it shuts down, a pass hangs, or its engine has died."""
        status = "draining" if service.draining else "stuck" if service.stuck else "ok" if service.healthy else "dead"
        return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """The version of the server."""
        return {"version": orthrus.__version__}

    return routes
