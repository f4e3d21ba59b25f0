"""The playground at `/`: a page and its files, served as they lie in the package, without a build step."""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import APIRouter, Request, Response

from orthrus.serving.service import Service

SCRIPTS = (
    "playground", "element", "server", "inline", "markdown", "answer", "tip", "run", "settings", "chats", "chat",
    "race",
)  # fmt: skip
FILES = {
    "index.html": "text/html; charset=utf-8",
    "playground.css": "text/css; charset=utf-8",
    **{f"{name}.js": "text/javascript; charset=utf-8" for name in SCRIPTS},
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Nothing from other sites, no guessing of types, and a check for a newer version before a cached file is used."""


def router(service: Service | None = None) -> APIRouter:
    """The routes of the page, whatever is served. They need no API key: the page asks for one and sends it."""
    routes = APIRouter(include_in_schema=False)
    folder = resources.files("orthrus.serving") / "playground"
    contents = {name: (folder / name).read_bytes() for name in FILES}

    @routes.get("/")
    async def page(request: Request) -> Response:
        return _file(request, "index.html", contents["index.html"])

    @routes.head("/")
    async def alive() -> Response:
        """What clients of Ollama ask to see whether a server is there."""
        return Response(headers=HEADERS)

    @routes.get("/playground/{name}")
    async def asset(request: Request, name: str) -> Response:
        if name not in contents:
            return Response(f"there is no file {name!r} here\n", 404, HEADERS, "text/plain; charset=utf-8")
        return _file(request, name, contents[name])

    return routes


def _file(request: Request, name: str, content: bytes) -> Response:
    """The file, or 304 where the browser has this version of it."""
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=FILES[name])
