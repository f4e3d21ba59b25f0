"""Requests of Ollama's API as those of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orthrus.decoding.sequence import Request
from orthrus.serving import prompts
from orthrus.serving.errors import APIError
from orthrus.serving.protocol import ollama as protocol
from orthrus.serving.protocol.common import JsonObjectFormat, JsonSchema, JsonSchemaFormat, ResponseFormat, Sampling

if TYPE_CHECKING:
    from orthrus.serving.service import Service
    from orthrus.tokenization import Prompt

LATEST = ":latest"
"""The tag that a name without a tag has."""


class _GenerateSampling(Sampling):
    """The same request in the fields of OpenAI's, with the names of Ollama's in errors."""

    FORMAT = "format"


class _ChatSampling(_GenerateSampling):
    PROMPT = "messages"


def check_model(name: str | None, service: Service) -> None:
    """Raise a 404 for a model that is not served."""
    if name:
        prompts.check_model(service.model_name if _same(name, service.model_name) else name, service)


def generate_requests(body: protocol.GenerateRequest, service: Service) -> list[Request]:
    """The request of a prompt. Raises ValueError or APIError where something in it is wrong."""
    options, sampling = _options(body, service), _sampling(body, _GenerateSampling)
    prompt: Prompt = body.prompt
    if body.suffix:
        prompts.check_size(service, [body.prompt, body.suffix], sampling)
        tokens = min(service.settings.infill_tokens, _context(body, service) // 2)
        prompt, options["suffix"] = service.model.fill_in_middle.window(body.prompt, body.suffix, tokens)
    elif body.raw:
        prompts.check_size(service, body.prompt, sampling)
        prompt = service.model.encode(body.prompt)
    else:
        options["system"] = body.system or None
    if body.system and (body.suffix or body.raw):
        raise prompts.conflict(
            "system", "has no place in a prompt without a chat template: leave it, suffix or raw out"
        )
    return [_made(service, prompt, options, body, sampling)]


def chat_requests(body: protocol.OllamaChatRequest, service: Service) -> list[Request]:
    """The request of a conversation. Raises ValueError or APIError where something in it is wrong."""
    options, sampling = _options(body, service), _sampling(body, _ChatSampling)
    if body.tools:
        options = prompts.tool_options(service.model, body.tools, "auto", options, parallel=True)
    return [_made(service, [_message(message) for message in body.messages], options, body, sampling)]


def _message(message: protocol.OllamaMessage) -> dict[str, Any]:
    """A message as chat templates read it."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        calls = [{"name": call.function.name, "arguments": call.function.arguments} for call in message.tool_calls]
        plain["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    names = {"name": message.tool_name, "tool_call_id": message.tool_call_id, "reasoning_content": message.thinking}
    return {**plain, **{name: value for name, value in names.items() if value}}


def _made(
    service: Service, prompt: Prompt, options: prompts.Chosen, body: protocol.OllamaRequest, sampling: Sampling
) -> Request:
    given = body.options or protocol.OllamaOptions.model_construct()
    limit = given.num_predict if given.num_predict and given.num_predict > 0 else None
    request = prompts.make_request(service, prompt, options, sampling, limit)
    room = _context(body, service) - len(request.prompt)
    if room < 1:
        raise APIError(
            f"the prompt has {len(request.prompt)} tokens, which leaves no room for an answer in options.num_ctx,"
            f" {given.num_ctx}: raise it or shorten the prompt",
            param=body.PROMPT, code="context_length_exceeded",
        )  # fmt: skip
    return replace(request, stop=replace(request.stop, max_new_tokens=min(room, request.stop.max_new_tokens)))


def _context(body: protocol.OllamaRequest, service: Service) -> int:
    """The most tokens of prompt and answer together."""
    asked = None if body.options is None else body.options.num_ctx
    return min(asked or service.max_model_len, service.max_model_len)


def _options(body: protocol.OllamaRequest, service: Service) -> prompts.Chosen:
    options = prompts.sampling_options(_sampling(body, Sampling), service.model)
    if body.think is not None:
        knows = "enable_thinking" in str(service.model.checkpoint.text.chat_template)
        if body.think and not knows:
            raise prompts.conflict("think", "is not for this model, whose chat template does not know it: leave it out")
        if knows:
            options["chat_template_kwargs"] = {"enable_thinking": body.think}
    return options


def _sampling(body: protocol.OllamaRequest, kind: type[Sampling]) -> Sampling:
    given = body.options or protocol.OllamaOptions.model_construct()
    return kind.model_construct(
        temperature=given.temperature, top_k=given.top_k, top_p=given.top_p, min_p=given.min_p,
        seed=None if given.seed == -1 else given.seed, stop=given.stop, repetition_penalty=given.repeat_penalty,
        presence_penalty=given.presence_penalty, frequency_penalty=given.frequency_penalty,
        response_format=_format(body.format),
    )  # fmt: skip


def _format(wanted: str | dict[str, Any] | None) -> ResponseFormat | None:
    if isinstance(wanted, dict):
        schema = JsonSchema.model_construct(name="format", schema_=wanted)
        return JsonSchemaFormat(type="json_schema", json_schema=schema)
    return JsonObjectFormat(type="json_object") if wanted else None


def _same(name: str, served: str) -> bool:
    names: Sequence[str] = [each if ":" in each else each + LATEST for each in (name, served)]
    return names[0] == names[1]
