"""The body of a request to `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orthrus.serving.protocol.common import Body, Metadata, Name, No, Sampling


class TextPart(Body):
    """Text, the one kind of content that the models know."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]


class SystemMessage(Body):
    """Instructions. `developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """A turn of the user."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Body):
    """The function of a call, and its arguments as JSON text."""

    name: Name
    arguments: str


class MessageToolCall(Body):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description="as in streamed calls; without effect")


class AssistantMessage(Body):
    """A turn of the assistant, as it was answered: with its tool calls and its reasoning."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(fail_fast=True)] | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Body):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    """A function that the model may call. Its arguments follow `parameters` where a call is forced (`tool_choice`
    `required` or a name), `strict` or not."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The function to call."""

    name: Name


class NamedToolChoice(Body):
    """The call of one function."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Sampling):
    """A request for an answer to a conversation."""

    PROMPT = "messages"

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="extension: variables of the chat template")

    metadata: Metadata | None = Field(None, max_length=16, description="accepted without effect")
    modalities: list[Literal["text"]] | None = Field(None, min_length=1, max_length=1)
    prompt_cache_key: str | None = Field(None, description="without effect: prefixes are always cached")
    prompt_cache_retention: Literal["in_memory"] | None = None
    safety_identifier: str | None = Field(None, description="accepted without effect")
    service_tier: Literal["auto", "default"] | None = None
    store: No | None = None
    verbosity: Literal["medium"] | None = None

    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: None = None
    reasoning_effort: None = None
    web_search_options: None = None
