"""Ollama through its HTTP API, on the same GGUF file, which is copied into its store and deleted from it at the end."""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REQUIREMENTS: list[str] = []
VARIANTS: dict[str, dict[str, Any]] = {"ollama, the file as it is": {"file": "gguf"}}
TEXT = True
"""It takes and gives text, not tokens."""
HOST, PORT = "127.0.0.1", 11434


def address() -> str:
    """The server's address: that of `OLLAMA_HOST`, or Ollama's default."""
    named = os.environ.get("OLLAMA_HOST") or HOST
    scheme, _, rest = named.rpartition("://")
    host, _, port = rest.rstrip("/").partition(":")
    return f"{scheme or 'http'}://{HOST if host in ('', '0.0.0.0') else host}:{port or PORT}"


def version() -> str:
    """The version of the server. Raises RuntimeError where none answers."""
    return str(_ask("GET", "/api/version")["version"])


class Ollama:
    """A model of the server with the weights of one file."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        version()  # says what to do where there is no server
        with file.open("rb") as opened:
            digest = "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()
        self._name, self._settings = f"orthrus-bench-{digest[7:19]}", settings
        self._deletes = not _exists(self._name)
        if self._deletes:
            _upload(file, digest)
            _ask("POST", "/api/create", {"model": self._name, "files": {file.name: digest}, "stream": False})

    def __call__(self, text: str, count: int) -> dict[str, Any]:
        """Continue a text greedily: the new text, the number of its tokens, and whether the model ended it."""
        asked = {"model": self._name, "prompt": text, "raw": True, "stream": False,
                 "options": {**self._settings, "num_predict": count}}  # fmt: skip
        answer = _ask("POST", "/api/generate", asked)
        return {"text": answer["response"], "count": answer["eval_count"], "ended": answer["done_reason"] == "stop"}

    def before(self) -> None:
        """Replace the prompt that the server keeps: otherwise the same prompt would not be read again."""
        self("\n", 1)

    def close(self) -> None:
        """Delete the model, unless it was there before."""
        if self._deletes:
            _ask("DELETE", "/api/delete", {"model": self._name})


def load(weights: dict[str, str], options: dict[str, Any], threads: int, device: str) -> Ollama:
    """Greedy decoding of a GGUF file."""
    settings = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "seed": 0, "num_ctx": options["context"],
                "num_thread": threads}  # fmt: skip
    return Ollama(Path(weights[options["file"]]), settings | ({"num_gpu": 0} if device == "cpu" else {}))


def _exists(name: str) -> bool:
    return any(model["name"].split(":")[0] == name for model in _ask("GET", "/api/tags")["models"])


def _upload(file: Path, digest: str) -> None:
    """Copy the file into the server's store, unless it is there."""
    try:
        _open("HEAD", f"/api/blobs/{digest}", None, {})
    except FileNotFoundError:
        with file.open("rb") as opened:
            _open("POST", f"/api/blobs/{digest}", opened, {"Content-Length": str(file.stat().st_size)})


def _ask(method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object that the server answers with; empty where it answers with nothing."""
    data = None if content is None else json.dumps(content).encode()
    answer: dict[str, Any] = json.loads(_open(method, path, data, {"Content-Type": "application/json"}) or b"{}")
    return answer


def _open(method: str, path: str, data: Any, headers: dict[str, str]) -> bytes:
    """The body of an answer. Raises FileNotFoundError for 404, RuntimeError for other failures, with what to do."""
    request = urllib.request.Request(address() + path, data, headers, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
    try:
        with direct.open(request) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        told = error.read().decode(errors="replace")[:200]
        kind = FileNotFoundError if error.code == http.client.NOT_FOUND else RuntimeError
        raise kind(f"Ollama answers {method} {path} with {error.code}: {told}") from error
    except (urllib.error.URLError, OSError) as error:
        raise RuntimeError(
            f"no Ollama server answers at {address()}: start it (`ollama serve`), or name it by OLLAMA_HOST"
        ) from error
