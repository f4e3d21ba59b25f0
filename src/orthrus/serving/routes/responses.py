"""`/v1/responses`, in its stateless core."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response

from orthrus.decoding import sequence
from orthrus.serving import prompts
from orthrus.serving.answers import Answer, collect, follow, format_of, usage
from orthrus.serving.errors import APIError, as_api_error
from orthrus.serving.exchange import Identity, admit, as_json, as_stream, event, prepared, responses
from orthrus.serving.protocol import response_objects as out
from orthrus.serving.protocol.chat import Function, Tool
from orthrus.serving.protocol.common import JsonObjectFormat
from orthrus.serving.protocol.responses import ResponseRequest, SchemaFormat, Status
from orthrus.serving.response_items import Events, items_of, messages_of
from orthrus.serving.service import Service
from orthrus.serving.tickets import Ticket


def router(service: Service) -> APIRouter:
    """The route of responses."""
    routes = APIRouter(tags=["responses"])

    @routes.post("/v1/responses", response_model=out.ResponseObject, responses=responses(out.ResponseEvent))
    async def create_response(body: ResponseRequest, http: Request) -> Response:
        """Answer a conversation, without keeping it."""
        prompts.check_model(body.model, service)
        if prompts.forces(body.tool_choice) and not body.tools:
            raise prompts.conflict("tool_choice", "needs tools")
        options = options_of(body, service)
        messages = messages_of(body)
        requests = await prepared(
            service,
            http,
            body,
            lambda: [prompts.make_request(service, messages, options, body, body.max_output_tokens)],
        )
        answering = Answering(service, body, options, requests[0])
        answering.check()
        tickets = await admit(service, http, body, requests)
        if body.stream:
            return await as_stream(answering.stream(tickets), answering.failed)
        return as_json(await answering.response(tickets))

    return routes


def tools_of(body: ResponseRequest) -> list[Tool]:
    """The tools that the model is shown, in the form of chat completions: none where it may call none."""
    if body.tool_choice == "none":
        return []
    return [Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}))) for tool in body.tools or ()]


def options_of(body: ResponseRequest, service: Service) -> prompts.Chosen:
    """The options of the model."""
    options = prompts.extension_options(body, service.model)
    options.update(prompts.temperature_options(body.temperature, body.top_p, body.seed, options))
    options["chat_template_kwargs"] = body.chat_template_kwargs
    wanted = body.text.format if body.text else None
    if isinstance(wanted, SchemaFormat):
        options["json_schema"] = wanted.schema_
    elif isinstance(wanted, JsonObjectFormat):
        options["json_object"] = True
    tools, choice = tools_of(body), body.tool_choice
    if tools:
        name = choice if isinstance(choice, str) or choice is None else choice.name
        parallel = body.parallel_tool_calls is not False
        options = prompts.tool_options(service.model, tools, name or "auto", options, parallel=parallel)
    return options


class Answering:
    """A request and its response."""

    def __init__(
        self, service: Service, body: ResponseRequest, options: prompts.Chosen, request: sequence.Request
    ) -> None:
        self._body, self._options, self._prompt_tokens = body, options, len(request.prompt)
        self._identity = Identity(service, "resp_")
        self._answer = Answer(
            format_of(service.model, request, tools=bool(tools_of(body)), forced=prompts.forces(body.tool_choice))
        )
        self._events = Events()

    def check(self) -> None:
        """Raise APIError where the response cannot be written as JSON, since it repeats tools and metadata as given."""
        try:
            self._object("in_progress", []).model_dump_json()
        except ValueError as error:
            raise APIError(f"a field cannot be repeated in the response: {error}", code="invalid_value") from error

    async def response(self, tickets: Sequence[Ticket]) -> out.ResponseObject:
        """The response, once it is complete."""
        await collect(tickets, [self._answer])
        return self._object(self._ending, items_of(*self._answer.whole(), self._ending))

    async def stream(self, tickets: Sequence[Ticket]) -> AsyncGenerator[str]:
        """The events of a stream."""
        begun = False
        async for _, _, delta in follow(tickets, [self._answer]):
            if not begun:
                begun = True
                for name in ("response.created", "response.in_progress"):
                    yield _sent(self._events.event(name, response=self._object("in_progress", [])))
            for each in self._events.add(delta):
                yield _sent(each)
        for each in self._events.close(self._ending):
            yield _sent(each)
        response = self._object(self._ending, self._events.items)
        yield _sent(self._events.event(f"response.{self._ending}", response=response))

    def failed(self, error: Exception) -> str:
        """The event of an error, which ends a stream."""
        detail = as_api_error(error).detail
        return _sent(self._events.event("error", code=detail.code, message=detail.message, param=detail.param))

    @property
    def _ending(self) -> Status:
        return "completed" if self._answer.finish_reason == "stop" else "incomplete"

    def _object(self, status: Status, items: list[out.OutputItem]) -> out.ResponseObject:
        body, cut = self._body, out.IncompleteDetails(reason="max_output_tokens")
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        choice: Any = body.tool_choice or "auto"
        return out.ResponseObject(
            id=self._identity.id, object="response", created_at=self._identity.created, status=status,
            completed_at=int(time()) if status == "completed" else None, error=None,
            incomplete_details=cut if status == "incomplete" else None,
            instructions=body.instructions, max_output_tokens=body.max_output_tokens, model=self._identity.model,
            output=items, parallel_tool_calls=body.parallel_tool_calls is not False, previous_response_id=None,
            background=False, store=False, temperature=self._options["temperature"], top_p=self._options["top_p"],
            text={"format": {"type": "text"}, **text},
            tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
            tools=[tool.model_dump() for tool in body.tools or ()], reasoning={"effort": None, "summary": None},
            truncation="disabled", usage=None if status == "in_progress" else self._usage(),
            metadata=body.metadata or {}, service_tier="default", user=body.user,
        )  # fmt: skip

    def _usage(self) -> out.ResponseUsage:
        found = usage([self._answer], self._prompt_tokens)
        of_prompt, of_answer = found.prompt_tokens_details, found.completion_tokens_details
        return out.ResponseUsage(
            input_tokens=found.prompt_tokens,
            input_tokens_details=out.InputTokensDetails(cached_tokens=of_prompt.cached_tokens, cache_write_tokens=0),
            output_tokens=found.completion_tokens,
            output_tokens_details=out.OutputTokensDetails(**of_answer.model_dump()),
            total_tokens=found.total_tokens,
        )


def _sent(each: out.ResponseEvent) -> str:
    return event(each, each.type)
