"""The requests of a batch file: lines as in OpenAI's batch API, or prompts as `orthrus generate --file` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orthrus.prompt_files import lines, messages_of

PATHS = ("/v1/chat/completions", "/v1/completions")
CHAT = PATHS[0]


@dataclass(frozen=True)
class BatchRequest:
    """A request, and the id under which its answer is found."""

    custom_id: str
    path: str
    body: Mapping[str, Any]


def requests_of(data: bytes, where: str, defaults: Mapping[str, Any]) -> list[BatchRequest]:
    """The requests of a file. `defaults` are fields of the body for lines that are only prompts.

    Raises ValueError naming the line that is wrong, or where two lines have the same id.
    """
    found: dict[str, BatchRequest] = {}
    for number, record in lines(data, where):
        place = f"{where}, line {number}"
        request = _request(record, number, place, defaults)
        if request.custom_id in found:
            raise ValueError(f"{place}: the custom_id {request.custom_id!r} occurs twice")
        found[request.custom_id] = request
    if not found:
        raise ValueError(f"{where}: no requests in it")
    return list(found.values())


def _request(record: dict[str, Any], number: int, place: str, defaults: Mapping[str, Any]) -> BatchRequest:
    if "body" not in record and "url" not in record:
        name = record.get("custom_id", record.get("id", f"line-{number}"))
        return BatchRequest(str(name), CHAT, {**defaults, "messages": messages_of(record, place)})
    name, method, path, body = (record.get(field) for field in ("custom_id", "method", "url", "body"))
    if not isinstance(name, str) or not name:
        raise ValueError(f"{place}: needs a custom_id, a string")
    if method != "POST":
        raise ValueError(f"{place}: the method is {method!r}; expected 'POST'")
    if path not in PATHS:
        raise ValueError(f"{place}: the url is {path!r}; expected one of {', '.join(PATHS)}")
    if not isinstance(body, dict):
        raise ValueError(f"{place}: needs a body, an object")  # noqa: TRY004
    return BatchRequest(name, path, body)
