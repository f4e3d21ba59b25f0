"""One streamed request to an OpenAI-compatible server, timed: ours, vLLM's, llama.cpp's, or another.

Times are seconds of `perf_counter`. Token counts are the server's own, from `usage`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import httpx

TEXTS = ("content", "reasoning_content", "reasoning", "text")
"""Where servers put the text of a chunk."""


@dataclass(frozen=True)
class Target:
    """What is asked, and of whom. body: fields that every request carries, beside the prompt."""

    url: str
    model: str
    body: dict[str, Any]
    api_key: str | None = None
    chat: bool = True
    timeout: float = 600.0

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def request(self, prompt: Any) -> tuple[str, dict[str, Any]]:
        """Path and body for a prompt: a string, or messages."""
        common = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}, **self.body}
        if self.chat:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return "/v1/chat/completions", {"messages": messages, **common}
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        return "/v1/completions", {"prompt": text, **common}


@dataclass
class Outcome:
    """What became of a request. arrived: when it was due, which is earlier than it was sent if this program was late.

    chunks: when text came. error: its kind, None if the answer is complete. completion_tokens: None where the server
    reports no usage.
    """

    arrived: float
    chunks: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Generated tokens; without usage, the chunks, of which each has at least one."""
        return len(self.chunks) if self.completion_tokens is None else self.completion_tokens

    @property
    def first_token(self) -> float:
        """Seconds from arrival to the first text."""
        return self.chunks[0] - self.arrived

    @property
    def per_token(self) -> float | None:
        """Mean seconds of a token after the first; None where there is only one."""
        return (self.chunks[-1] - self.chunks[0]) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def latency(self) -> float:
        """Seconds from arrival to the end."""
        return self.ended - self.arrived


async def ask(client: httpx.AsyncClient, target: Target, prompt: Any, arrived: float) -> Outcome:
    """Send a request and read its stream. What goes wrong is in the outcome."""
    outcome = Outcome(arrived)
    path, body = target.request(prompt)
    try:
        async with client.stream(
            "POST", target.url + path, json=body, headers=target.headers, timeout=target.timeout
        ) as response:
            if response.status_code != httpx.codes.OK:
                outcome.error = f"HTTP {response.status_code}"
            else:
                async for data in _events(response):
                    _read(outcome, data)
                outcome.error = outcome.error or _missing(outcome)
    except httpx.TimeoutException:
        outcome.error = "timeout"
    except httpx.HTTPError as error:
        outcome.error = f"connection: {type(error).__name__}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        outcome.error = f"malformed event: {type(error).__name__}"
    outcome.ended = perf_counter()
    return outcome


def _missing(outcome: Outcome) -> str | None:
    """What a stream that has ended lacks."""
    if outcome.finish_reason is None:
        return "incomplete answer"
    return None if outcome.chunks else "empty answer"


class LineSplitter:
    """Splits a stream into lines at line feeds alone: httpx splits at further characters, which JSON may hold."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, chunk: bytes) -> list[str]:
        """The lines that are complete with this chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The data of server-sent events, up to [DONE]."""
    split = LineSplitter()
    async for line in (line async for chunk in response.aiter_bytes() for line in split.add(chunk)):
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield json.loads(data)


def _read(outcome: Outcome, data: dict[str, Any]) -> None:
    """Note what an event says."""
    if data.get("error"):
        outcome.error = f"error event: {data['error'].get('code') or data['error'].get('type')}"
    for choice in data.get("choices") or ():
        delta = choice.get("delta") or choice
        if any(delta.get(name) for name in (*TEXTS, "tool_calls")):
            outcome.chunks.append(perf_counter())
        outcome.finish_reason = choice.get("finish_reason") or outcome.finish_reason
    if usage := data.get("usage"):
        outcome.prompt_tokens, outcome.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


async def model_of(client: httpx.AsyncClient, url: str, api_key: str | None) -> str:
    """The id of the model that a server has. Raises ValueError if it cannot be asked."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = await client.get(f"{url}/v1/models", headers=headers)
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except httpx.ConnectError as error:
        raise ValueError(f"no server answers at {url} ({error}): is it running, and is the address right?") from error
    except (httpx.HTTPError, LookupError, ValueError) as error:
        raise ValueError(f"{url} does not answer like a server of OpenAI's API ({error})") from error


async def counters(client: httpx.AsyncClient, url: str) -> dict[str, float]:
    """The counters of `/metrics` by name, summed over their labels; none where the server has none."""
    try:
        response = await client.get(f"{url}/metrics")
        response.raise_for_status()
    except httpx.HTTPError:
        return {}
    found: dict[str, float] = {}
    for line in response.text.splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name.endswith("_total") and not name.startswith("#"):
            found[name] = found.get(name, 0.0) + float(value)
    return found
