"""The server of `orthrus serve` in this process and without a socket: a body means in a batch what it means there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from orthrus.serving.app import create_app
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings

if TYPE_CHECKING:
    from orthrus.api import Model

NO_DEADLINE = 30 * 24 * 3600.0
LARGEST_BODY = 256 * 2**20
QUEUE = 4096
"""Places for the choices of requests with a large `n`."""


@asynccontextmanager
async def local_client(
    model: Model, *, batch_size: int, cycle: str | None, rule: str, name: str | None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of this model, which bodies call by `name` (None: its own id).

    Leaving it cancels what is being decoded.
    """
    settings = ServeSettings(
        served_model_name=name, max_num_seqs=batch_size, max_queue=QUEUE, request_timeout=NO_DEADLINE,
        client_timeout=NO_DEADLINE, max_body_bytes=LARGEST_BODY, cycle=cycle, rule=rule,
    )  # fmt: skip
    service = Service(model, settings)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            yield client
    finally:
        await service.drain(0.0)
