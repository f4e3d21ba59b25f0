"""Errors as OpenAI's API shows them: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from orthrus.serving.other_names import OTHER_NAMES
from orthrus.serving.service import DrainingError, QueueFullError
from orthrus.serving.tickets import OverdueError, PassFailedError

log = logging.getLogger(__name__)
INVALID, SERVER = "invalid_request_error", "server_error"
OLLAMA_PATHS = "/api/"


class ErrorDetail(BaseModel):
    """What was wrong. `param` is the field, as a path such as `messages[0].content`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer that is an error, and of the event that ends a stream by one."""

    error: ErrorDetail


class APIError(Exception):
    """An error that the client is told as it stands.

    Args:
        message: what was wrong, what was expected, what to do.
        status: of HTTP.
        type: `invalid_request_error` for mistakes of the client; clients tell errors apart by it and by the status.
        param: the field that is wrong.
        code: a fixed word for programs, such as `context_length_exceeded`.
        headers: of HTTP.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.detail = ErrorDetail(message=_printable(message), type=type, param=_printable(param), code=code)


def error_response(error: APIError, path: str) -> JSONResponse:
    """The answer of HTTP that tells an error. Clients of Ollama, whose paths begin with `/api/`, expect its text."""
    shown: ErrorDetail | str = error.detail.message if path.startswith(OLLAMA_PATHS) else error.detail
    body = {"error": shown if isinstance(shown, str) else shown.model_dump()}
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def as_api_error(error: Exception) -> APIError:
    """Any exception as the error that a client may see. The inside of the server is shown in its log alone."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, QueueFullError):
        wait = {"Retry-After": str(error.retry_after)}
        return APIError(str(error), status=429, type="rate_limit_error", code="rate_limit_exceeded", headers=wait)
    if isinstance(error, DrainingError):
        return APIError(str(error), status=503, type=SERVER, code="shutting_down")
    if isinstance(error, OverdueError):
        return APIError(str(error), status=504, type=SERVER, code="timeout")
    if isinstance(error, PassFailedError):
        return APIError(str(error), status=500, type=SERVER, code="pass_failed")
    log.error("a request failed", exc_info=error)
    return APIError("the server failed; its log says why", status=500, type=SERVER, code="internal_error")


def install(app: FastAPI) -> None:
    """Let every error of an app leave in OpenAI's shape. The handlers are coroutines: others would run in threads,
    whose first use imports a library while everything else waits."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return error_response(as_api_error(error), request.url.path)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error.errors(), error.body), request.url.path)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return error_response(http_error(app, request, error), request.url.path)

    for kind in (APIError, QueueFullError, DrainingError, OverdueError, PassFailedError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def http_error(app: FastAPI, request: Request, error: HTTPException) -> APIError:
    """What the router or FastAPI refused, with what the server has instead."""
    if error.status_code == HTTPStatus.BAD_REQUEST:  # the one that FastAPI raises, for a body it cannot parse
        return APIError("the body is not valid JSON in UTF-8, or is nested too deeply", code="invalid_json")
    headers, path = error.headers, request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        paths = app.openapi()["paths"].items()
        routes = sorted(f"{method.upper()} {route}" for route, methods in paths for method in methods)
        message = f"there is nothing at {request.method} {path}; the routes are {', '.join(routes)}"
        return APIError(message, status=error.status_code, code="unknown_route", headers=headers)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and headers and "Allow" in headers:
        message = f"{path} takes {headers['Allow']}, not {request.method}"
        return APIError(message, status=error.status_code, code="method_not_allowed", headers=headers)
    message = f"{error.detail} ({HTTPStatus(error.status_code).phrase})"
    return APIError(message, status=error.status_code, headers=headers)


def validation_error(errors: Sequence[Mapping[str, Any]], body: Any) -> APIError:
    """What pydantic found, as one error: that of the deepest field, since the members of a union that do not fit fail
    higher up. Where several members of a union fail at the same field, each says what it would take."""
    paths = [_path(error["loc"][1:], body) for error in errors]
    deepest = max(paths, key=len)
    found = [error for error, path in zip(errors, paths, strict=True) if path == deepest]
    return _field_error("".join(deepest).removeprefix("."), found)


def _path(location: Sequence[int | str], body: Any) -> list[str]:
    """The steps to a field. Names that stand for the members of a union are left out: the body does not have them."""
    path, value = [], body
    for at, step in enumerate(location):
        if isinstance(value, dict) and step in value:
            path.append(f".{step}")
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path.append(f"[{step}]")
            value = value[step]
        elif at == len(location) - 1 and isinstance(value, dict) and isinstance(step, str):
            path.append(f".{step}")
    return path


def _field_error(path: str, errors: Sequence[Mapping[str, Any]]) -> APIError:
    error = errors[0]
    kind, context, name = error["type"], error.get("ctx", {}), path or "the body"
    if kind == "extra_forbidden":
        instead = f": {OTHER_NAMES[path]}" if path in OTHER_NAMES else ""
        return APIError(f"{name} is not a field that this server knows{instead}", param=path, code="unknown_parameter")
    if kind == "missing":
        return APIError(f"{name} is missing", param=path or None, code="missing_required_parameter")
    if kind == "none_required":
        return APIError(
            f"{name} is not supported by this server: leave it out", param=path, code="unsupported_parameter"
        )
    if kind == "literal_error":
        return APIError(
            f"{name} must be {context['expected']}; other values are not supported",
            param=path,
            code="unsupported_value",
        )
    if kind == "union_tag_invalid":
        field = f"{path}.{_tag(context)}"
        message = f"{field} must be one of {context['expected_tags']}, not {context['tag']!r}"
        return APIError(message, param=field, code="unsupported_value")
    if kind == "json_invalid":
        return APIError(f"the body is not valid JSON: {context.get('error', error['msg'])}", code="invalid_json")
    if kind == "union_tag_not_found":
        field = f"{path}.{_tag(context)}"
        return APIError(f"{field} is missing", param=field, code="missing_required_parameter")
    told = " or ".join(dict.fromkeys(_told(each) for each in errors))
    return APIError(f"{name} should {told}", param=path or None, code="invalid_value")


def _tag(context: Mapping[str, Any]) -> str:
    """The field by which the members of a union differ: `type` where a function reads it, as it may be left out."""
    named = str(context["discriminator"]).strip("'")
    return "type" if named.endswith("()") else named


def _told(error: Mapping[str, Any]) -> str:
    """What was expected, after the word "should"."""
    if error["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return "be a JSON object"
    return re.sub(r"^.*? should ", "", str(error["msg"])).replace(" after validation", "")


def _printable(text: str | None) -> Any:
    """Text that UTF-8 can hold: clients may send lone surrogates as the name of a field."""
    return None if text is None else text.encode("utf-8", "replace").decode()
