"""What the body of a request asks of the model: messages for the chat template, and options of `Model.request`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from orthrus.decoding.sequence import Request, check_but_constraint
from orthrus.options import Options
from orthrus.serving.errors import APIError
from orthrus.serving.protocol import chat
from orthrus.serving.protocol.common import (
    Body,
    Extensions,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
    Sampling,
)
from orthrus.tool_calls import END

if TYPE_CHECKING:
    from orthrus.api import Model
    from orthrus.serving.service import Service
    from orthrus.tokenization import Prompt

Chosen = dict[str, Any]
"""Options of `Model.request`, which checks them."""
FORMATS, PROMPTS = ("json_schema", "json_object", "regex", "grammar"), ("the prompt", "message ", "the chat template")
FIELDS = {
    "stop token": "stop_token_ids", "min_new_tokens": "min_tokens",
    **{name: name for name in ("logit_bias", "chat_template_kwargs", "tools", "tool_choice", "logprobs", "suffix")},
}  # fmt: skip
"""The field that an error is about, by how the error of an option begins."""


def messages_of(messages: Iterable[chat.Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: plain text, `developer` as system, arguments of calls as values."""
    return [_message(message) for message in messages]


def _message(message: chat.Message) -> dict[str, Any]:
    plain = message.model_dump(exclude_none=True, exclude={"annotations"})
    if message.role == "developer":
        plain["role"] = "system"
    if isinstance(message, chat.AssistantMessage) and message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": called(call.function.name, call.function.arguments)}
            for call in message.tool_calls
        ]
        plain.setdefault("content", "")
    return plain


def called(name: str, arguments: str) -> dict[str, Any]:
    """A function call for a template, which writes its arguments as JSON: a string would be quoted."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = arguments
    return {"name": name, "arguments": value if isinstance(value, dict) else arguments}


def sampling_options(body: Sampling, model: Model) -> Chosen:
    """The options that chat and text completions share. What the request leaves open is the model's."""
    options = extension_options(body, model)
    options.update(temperature_options(body.temperature, body.top_p, body.seed, options))
    options["presence_penalty"], options["frequency_penalty"] = body.presence_penalty, body.frequency_penalty
    if body.logit_bias:
        options["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
    options["stop"] = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    options.update(format_options(body.response_format))
    return options


def temperature_options(temperature: float | None, top_p: float | None, seed: int | None, own: Chosen) -> Chosen:
    """What a request says, then the model's `own`. Seeds may be negative in OpenAI's API."""
    return {
        "temperature": _first(temperature, own["temperature"]),
        "top_p": _first(top_p, own.get("top_p"), 1.0),
        "seed": None if seed is None else seed % 2**64,
    }


def extension_options(body: Extensions, model: Model) -> Chosen:
    """The fields beyond OpenAI's, with the model's default sampling where they are left open."""
    own: Mapping[str, Any] = model.checkpoint.default_sampling
    options: Chosen = {
        **own,
        "min_new_tokens": body.min_tokens,
        "stop_token_ids": body.stop_token_ids,
    }
    given = {"top_k": body.top_k, "min_p": body.min_p, "repetition_penalty": body.repetition_penalty}
    options.update({name: value for name, value in given.items() if value is not None})
    if options.get("top_k") == -1:
        options["top_k"] = 0
    return options


def format_options(wanted: ResponseFormat | None) -> Chosen:
    """The constraint on the text."""
    if isinstance(wanted, JsonObjectFormat):
        return {"json_object": True}
    if isinstance(wanted, JsonSchemaFormat):
        return {"json_schema": wanted.json_schema.schema_}
    if isinstance(wanted, RegexFormat):
        return {"regex": wanted.regex}
    if isinstance(wanted, GrammarFormat):
        return {"grammar": wanted.grammar}
    return {}


def forces(choice: object) -> bool:
    """Whether a `tool_choice` demands a call."""
    return choice not in (None, "none", "auto")


def tool_options(model: Model, tools: Seq[chat.Tool], choice: str | None, options: Chosen, *, parallel: bool) -> Chosen:
    """The options with tools. choice: `auto`, `required` or the name of a function. Without `parallel` the answer ends
    after its first call."""
    names = [tool.function.name for tool in tools]
    if choice not in ("auto", "required") and choice not in names:
        raise conflict("tool_choice", f"names {choice!r}, which is not among the tools: {', '.join(names)}")
    more: Chosen = {"tools": [tool.model_dump(exclude_none=True) for tool in tools]}
    if choice == "auto" and "tools" not in str(model.checkpoint.text.chat_template):
        raise conflict("tools", "cannot be shown to this model, whose chat template does not know them: force a call")
    if choice != "auto":
        if options.keys() & {"json_schema", "json_object", "regex", "grammar"}:
            raise conflict("response_format", "does not go with a forced tool call: set one of the two")
        named = {"type": "function", "function": {"name": choice}}
        more["tool_choice"] = "required" if choice == "required" else named
    stops = options.get("stop") or ()
    more["stop"] = [*([stops] if isinstance(stops, str) else stops), *([] if parallel else [END])]
    return {**options, **more}


def conflict(field: str, problem: str) -> APIError:
    """The error of a field that does not go with others."""
    return APIError(f"{field} {problem}", param=field, code="invalid_value")


def check_stream_options(body: Sampling) -> None:
    """Raise APIError for options of a stream where none is asked for."""
    if body.stream_options is not None and not body.stream:
        raise conflict("stream_options", "needs stream: true")


def check_model(name: str | None, service: Service) -> None:
    """Raise a 404 for a model that is not served."""
    if name is not None and name != service.model_name:
        raise APIError(f"the model {name!r} is not served here, only {service.model_name!r}", status=404,
                       param="model", code="model_not_found")  # fmt: skip


def make_request(
    service: Service, prompt: Prompt, options: Chosen, body: Extensions, max_tokens: int | None
) -> Request:
    """The engine's record of a prompt. max_tokens: None for the rest of the context, which ends every answer.

    Raises APIError where the prompt leaves no room, ValueError where an option is wrong.
    """
    check_size(service, [prompt, options.get("tools"), options.get("suffix")], body)
    chosen = {**options, "max_new_tokens": min(max_tokens or service.max_model_len, service.max_model_len)}
    request = service.model.request(prompt, cast("Options", chosen))
    room = service.max_model_len - len(request.prompt)
    if room < 1:
        raise APIError(
            f"the prompt has {len(request.prompt)} tokens, which leaves no room for an answer: prompt and answer may"
            f" have {service.max_model_len} together. Shorten the prompt.",
            param=body.PROMPT, code="context_length_exceeded",
        )  # fmt: skip
    stop = replace(request.stop, max_new_tokens=min(room, request.stop.max_new_tokens))
    if body.ignore_eos:
        request = replace(request, sampling=replace(request.sampling, min_new_tokens=stop.max_new_tokens))
    made = replace(request, stop=stop, drafts=body.drafts is not False, priority=body.priority or 0)
    check_but_constraint(made, service.model.limits, service.model.decode)  # what the engine would refuse, here and now
    return made


def check_size(service: Service, given: object, body: Extensions) -> None:
    """Raise APIError for texts that are longer than the context can be, before they are encoded: that takes a second
    and a hundred megabytes for some megabytes of text. given: a text, or what holds texts."""
    characters, most = _characters(given), service.longest_prompt
    if characters > most:
        raise APIError(
            f"the prompt has {characters} characters, more than the {service.max_model_len} tokens of the context can"
            f" have ({most}): shorten the prompt",
            param=body.PROMPT, code="context_length_exceeded",
        )  # fmt: skip


def _characters(given: object) -> int:
    if isinstance(given, str):
        return len(given)
    values = given.values() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else ()
    return sum(map(_characters, values))


def choices_of(request: Request, n: int) -> list[Request]:
    """The request once per choice, each with noise of its own."""
    return [replace(request, sampling=replace(request.sampling, sample_index=index)) for index in range(n)]


def told_to_client(error: ValueError, body: Body) -> APIError:
    """What the model says about a prompt or an option, as a 400 of the field of the body."""
    message, fields = str(error), dict(FIELDS)
    fields.update(dict.fromkeys(PROMPTS, body.PROMPT))
    of_tools = getattr(body, "tools", None) and not getattr(body, body.FORMAT.partition(".")[0], None)
    fields.update(dict.fromkeys(FORMATS, "tools" if of_tools else body.FORMAT))
    field = next((field for start, field in fields.items() if message.startswith(start)), None)
    return APIError(message, param=field, code="invalid_value")


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
