"""The application in a loop of its own thread, for synchronous clients."""

from __future__ import annotations

import asyncio
import threading

import httpx
import openai

from orthrus.serving.app import create_app
from orthrus.serving.service import Service


class InLoop(httpx.BaseTransport):
    """A transport of httpx. `client` is OpenAI's, over it."""

    def __init__(self, model, settings):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        async def make():
            self.service = Service(model, settings)
            return httpx.ASGITransport(create_app(self.service), raise_app_exceptions=False)

        self.inner = self.run(make())
        self.http = httpx.Client(transport=self, base_url="http://localhost")
        self.client = openai.OpenAI(
            base_url="http://localhost/v1", api_key="none", http_client=self.http, max_retries=0
        )

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def handle_request(self, request):
        async def answer():
            response = await self.inner.handle_async_request(request)
            return response.status_code, response.headers, await response.aread()

        status, headers, content = self.run(answer())
        return httpx.Response(status, headers=headers, content=content)

    def end(self):
        self.run(self.service.drain(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
