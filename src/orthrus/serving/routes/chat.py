"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from orthrus.decoding import sequence
from orthrus.decoding.logprobs import TokenLogprobs
from orthrus.serving import prompts
from orthrus.serving.answers import Answer, Delta, collect, follow, format_of, usage
from orthrus.serving.drafts import draft_info
from orthrus.serving.exchange import DONE, Identity, admit, as_json, as_stream, event, prepared, responses
from orthrus.serving.logprobs import chat_logprobs
from orthrus.serving.protocol import chat_answers as out
from orthrus.serving.protocol.chat import ChatRequest, Tool
from orthrus.serving.protocol.common import Usage
from orthrus.serving.service import Service
from orthrus.serving.tickets import Ticket
from orthrus.token_texts import TokenTexts
from orthrus.tool_calls import ToolCallDelta


def router(service: Service) -> APIRouter:
    """The route of chat completions."""
    routes, texts = APIRouter(tags=["chat"]), service.model.token_texts

    @routes.post("/v1/chat/completions", response_model=out.ChatCompletion, responses=responses(out.ChatChunk))
    async def create_chat_completion(body: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        prompts.check_model(body.model, service)
        check(body)
        requests = await prepared(service, http, body, lambda: requests_of(body, service))
        chat = Chat(service, texts, body, requests)
        tickets = await admit(service, http, body, requests)
        if body.stream:
            return await as_stream(chat.chunks(tickets))
        return as_json(await chat.completion(tickets))

    return routes


def check(body: ChatRequest) -> None:
    """Raise APIError for fields that do not go together."""
    prompts.check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise prompts.conflict("top_logprobs", "needs logprobs: true")
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise prompts.conflict("max_tokens", "differs from max_completion_tokens: set one of them")
    if prompts.forces(body.tool_choice) and not body.tools:
        raise prompts.conflict("tool_choice", "needs tools")


def tools_of(body: ChatRequest) -> list[Tool]:
    """The tools that the model is shown: none where it may call none."""
    return list(body.tools or ()) if body.tool_choice != "none" else []


def requests_of(body: ChatRequest, service: Service) -> list[sequence.Request]:
    """A request per choice. Raises ValueError or APIError where something in them is wrong."""
    options = prompts.sampling_options(body, service.model)
    tools, choice = tools_of(body), body.tool_choice
    if tools:
        name = choice if isinstance(choice, str) or choice is None else choice.function.name
        parallel = body.parallel_tool_calls is not False
        options = prompts.tool_options(service.model, tools, name or "auto", options, parallel=parallel)
    options["chat_template_kwargs"] = body.chat_template_kwargs
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    messages = prompts.messages_of(body.messages)
    limit = body.max_completion_tokens or body.max_tokens
    return prompts.choices_of(prompts.make_request(service, messages, options, body, limit), body.n or 1)


class Chat:
    """A request and its answers."""

    def __init__(
        self, service: Service, texts: TokenTexts, body: ChatRequest, requests: Sequence[sequence.Request]
    ) -> None:
        self._model, self._texts, self._body = service.model, texts, body
        self._prompt_tokens = len(requests[0].prompt)
        self._identity = Identity(service, "chatcmpl-")
        form = format_of(
            service.model, requests[0], tools=bool(tools_of(body)), forced=prompts.forces(body.tool_choice)
        )
        self._answers = [Answer(form) for _ in requests]
        self._ends = service.model.limits.end_token_ids | requests[0].stop.stop_token_ids

    async def completion(self, tickets: Sequence[Ticket]) -> out.ChatCompletion:
        """All answers, once they are complete."""
        await collect(tickets, self._answers)
        return out.ChatCompletion(
            object="chat.completion",
            choices=[self._choice(index, answer) for index, answer in enumerate(self._answers)],
            usage=self._usage(),
            **self._identity.fields(),
        )

    def _usage(self) -> Usage:
        """The tokens so far."""
        return usage(self._answers, self._prompt_tokens, len(self._answers))

    def _choice(self, index: int, answer: Answer) -> out.Choice:
        reasoning, content, calls = answer.whole()
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if calls:
            message["content"] = content if content.strip() else None
            message["tool_calls"] = [
                out.ToolCall(
                    id=call.id, type="function", function=out.FunctionCall(name=call.name, arguments=call.arguments)
                )
                for call in calls
            ]
        assert answer.finish_reason is not None
        return out.Choice(
            index=index,
            message=out.AnswerMessage(**message),
            logprobs=self._logprobs(answer.logprobs),
            finish_reason="tool_calls" if calls and answer.finish_reason == "stop" else answer.finish_reason,
        )

    def _logprobs(self, found: Sequence[TokenLogprobs]) -> out.Logprobs | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(found, self._texts, self._ends)

    async def chunks(self, tickets: Sequence[Ticket]) -> AsyncGenerator[str]:
        """The events of a stream: the role of each answer first, then what each pass adds."""
        asked, begun = self._body.stream_options, set[int]()
        with_drafts = asked is not None and bool(asked.include_drafts)
        async for index, step, delta in follow(tickets, self._answers):
            if index not in begun:
                begun.add(index)
                yield self._event(
                    out.ChunkChoice(index=index, delta=out.ChunkDelta(role="assistant", content=""), finish_reason=None)
                )
            choice = out.ChunkChoice(index=index, delta=_delta(delta), finish_reason=None)
            if self._body.logprobs:
                choice.logprobs = self._logprobs(step.logprobs)
            if step.finish_reason is not None:
                answer = self._answers[index]
                called = answer.called and answer.finish_reason == "stop"
                choice.finish_reason = "tool_calls" if called else answer.finish_reason
            more: dict[str, Any] = {"orthrus": draft_info(index, step, self._model.decode)} if with_drafts else {}
            if choice.delta.model_fields_set or choice.finish_reason or choice.logprobs or more:
                if asked is not None and asked.continuous_usage_stats:
                    more["usage"] = self._usage()
                yield self._event(choice, **more)
        if asked is not None and asked.include_usage:
            yield self._event(usage=self._usage())
        yield DONE

    def _event(self, *choices: out.ChunkChoice, **more: Any) -> str:
        return event(
            out.ChatChunk(object="chat.completion.chunk", choices=list(choices), **self._identity.fields(), **more)
        )


def _delta(delta: Delta) -> out.ChunkDelta:
    found: dict[str, Any] = {}
    if delta.content:
        found["content"] = delta.content
    if delta.reasoning:
        found["reasoning_content"] = delta.reasoning
    if delta.calls:
        found["tool_calls"] = [_call(call) for call in delta.calls]
    return out.ChunkDelta(**found)


def _call(call: ToolCallDelta) -> out.ToolCallChunk:
    if call.id is None:
        return out.ToolCallChunk(index=call.index, function=out.FunctionCallDelta(arguments=call.arguments))
    function = out.FunctionCallDelta(name=call.name, arguments=call.arguments)
    return out.ToolCallChunk(index=call.index, id=call.id, type="function", function=function)
