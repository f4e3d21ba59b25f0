"""A client of any OpenAI-compatible server, for `orthrus chat --url` and `orthrus batch --url`. It needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthrus.cli._help import LOADING

if TYPE_CHECKING:
    import httpx

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="Use an OpenAI-compatible server, such as http://127.0.0.1:8000, instead of a model.",
        rich_help_panel=LOADING,
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key", envvar="ORTHRUS_API_KEY", help="API key of the server at --url.", rich_help_panel=LOADING
    ),
]
CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0
"""Deadlines: for a connection, and for the next bytes of an answer, before which a prompt may wait in a queue."""


class ServerError(Exception):
    """A server that does not answer, or answers with an error. `status` is 0 without an answer; `code` is the word for
    programs, empty where there is none."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status, self.retry_after, self.code = status, retry_after, code


def bearer(api_key: str | None) -> dict[str, str]:
    """The header with a key. Of several, which `orthrus serve` takes in one variable, it is the first."""
    keys = (api_key or "").split()
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


class ServerClient:
    """Requests to a server. Several threads may share one."""

    def __init__(self, url: str, api_key: str | None = None, connections: int = 4) -> None:
        """Raises ValueError unless `url` is one of http or https."""
        import httpx

        try:
            usable = httpx.URL(url).scheme in ("http", "https")
        except httpx.InvalidURL:
            usable = False
        if not usable:
            raise ValueError(f"--url needs an address such as http://127.0.0.1:8000, not {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(
            base_url=self.url,
            headers=bearer(api_key),
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=connections),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def models(self) -> list[dict[str, Any]]:
        """What `/v1/models` lists. Raises ServerError."""
        listed = self.send("GET", "/v1/models").get("data")
        if not isinstance(listed, list) or not all(isinstance(model, dict) and "id" in model for model in listed):
            raise ServerError(f"{self.url} does not list models as OpenAI's API does: is it such a server?")
        return listed

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and wait for its whole answer, a JSON object. Raises ServerError."""
        import httpx

        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._unanswered(error) from error
        if not response.is_success:
            raise _refusal(response)
        return _object(response.text)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer. Closing the iterator closes the connection. Raises ServerError, also where
        the stream ends before `[DONE]`."""
        import httpx

        try:
            with self._client.stream("POST", path, json=body) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                for line in _lines(response.iter_bytes()):
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    chunk = _object(data)
                    if chunk.get("error"):
                        raise ServerError(_message(chunk) or "the server failed midway")
                    yield chunk
        except httpx.HTTPError as error:
            raise self._unanswered(error) from error
        raise ServerError("the answer broke off: the server closed the connection before its end")

    def _unanswered(self, error: httpx.HTTPError) -> ServerError:
        import httpx

        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServerError(f"no server answers at {self.url} ({error}): is it running, and is the address right?")
        if isinstance(error, httpx.TimeoutException):
            return ServerError(f"{self.url} has sent nothing for {READ_SECONDS:.0f} s")
        return ServerError(f"the connection to {self.url} broke ({error or type(error).__name__})")


def _refusal(response: httpx.Response) -> ServerError:
    status = response.status_code
    try:
        content = response.json()
    except ValueError:
        content = None
    message = _message(content) or f"the server answered {status} {response.reason_phrase}"
    try:
        wait = float(response.headers.get("retry-after", ""))
    except ValueError:
        wait = None
    hint = ""
    if status == 401:
        hint = " (give the key with --api-key or ORTHRUS_API_KEY)"
    elif status in (429, 503):
        hint = f" (try again in {wait:g} s)" if wait else " (try again later)"
    return ServerError(message + hint, status, wait, _code(content))


def _message(content: Any) -> str:
    error = content.get("error") if isinstance(content, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return text if isinstance(text, str) else ""


def _code(content: Any) -> str:
    error = content.get("error") if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerError(f"the server answered what is not a JSON object: {text[:80]!r}")
    return value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    from orthrus.bench.http_client import LineSplitter

    split = LineSplitter()
    for chunk in chunks:
        yield from split.add(chunk)
