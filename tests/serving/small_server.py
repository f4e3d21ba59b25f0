"""A server on a free port of this machine, with two small routes that decode, for tests of what lies around routes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from orthrus.serving import limits
from orthrus.serving.http import Server, bind
from orthrus.serving.routes import health, metrics
from orthrus.serving.service import QueueFullError, Service
from orthrus.serving.settings import ServeSettings


def app_of(service):
    app = FastAPI()
    limits.install(app, service)
    app.include_router(health.router(service))
    app.include_router(metrics.router(service))

    def tickets(request, body):
        options = {"max_new_tokens": body["new"], "seed": 1}
        return service.submit([service.model.request(body["prompt"], options)], request.state.context)

    @app.post("/v1/whole")
    async def whole(request: Request):
        try:
            [ticket] = tickets(request, await request.json())
        except QueueFullError as error:
            return JSONResponse({}, 429, {"retry-after": str(error.retry_after)})
        return {"tokens": [token async for step in ticket.steps() for token in step.kept.tokens]}

    @app.post("/v1/stream")
    async def stream(request: Request):
        [ticket] = tickets(request, await request.json())

        async def lines():
            async for step in ticket.steps():
                yield f"{step.kept.tokens}\n"

        return StreamingResponse(lines())

    @app.get("/flood")
    async def flood():
        async def endless():
            try:
                while True:
                    yield b"x" * 2**16
                    await asyncio.sleep(0)  # sending to a client that has gone does not wait
            finally:
                app.state.flooded = True

        return StreamingResponse(endless())

    return app


@asynccontextmanager
async def serving(model, make_app=app_of, **settings):
    """A service behind HTTP: yields the service and a client. At the end the server drains, and holds no page."""
    service = Service(model, ServeSettings(port=0, **{"cycle": "one-pass", "drain_timeout": 0.0, **settings}))
    bound = bind(service.settings)
    service.app = make_app(service)  # for tests that look into them
    server = service.server = Server(service.app, service)
    task = asyncio.create_task(server.serve([bound]))
    while not server.started:
        await asyncio.sleep(0.005)
    url = "http://{}:{}".format(*bound.getsockname())
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield service, client
    finally:
        server.drain()
        await task
    assert service.unfinished == service.engine.unfinished == service.engine.cache.pages_in_use == 0
