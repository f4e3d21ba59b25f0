"""The body of a request to `/v1/responses`, in its stateless core."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from orthrus.serving.protocol.common import Body, Extensions, JsonObjectFormat, Metadata, Name, No, TextFormat

Status = Literal["in_progress", "completed", "incomplete"]
Nothing = Annotated[list[Any], Field(max_length=0)]


class InputText(Body):
    """Text that goes in, or an earlier answer."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Nothing | None = None
    logprobs: list[Any] | None = Field(None, description="of an earlier answer; without effect")


Content = str | Annotated[list[InputText], Field(fail_fast=True, min_length=1)]


class MessageItem(Body):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Body):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: Name
    arguments: str
    id: str | None = None
    status: Status | None = None


class CallOutputItem(Body):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: Status | None = None


class ReasoningText(Body):
    """A part of the reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Body):
    """The reasoning before an earlier answer."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Nothing = Field(default_factory=list)
    content: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None
    encrypted_content: None = None
    status: Status | None = None


def _kind(item: Any) -> str:
    """The kind of an item: a message may leave it out."""
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "")
    return kind if isinstance(kind, str) else ""


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Body):
    """The call of one function."""

    type: Literal["function"]
    name: Name


class SchemaFormat(Body):
    """JSON of a schema, which is enforced whether `strict` or not."""

    type: Literal["json_schema"]
    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """The format of the text."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    """Accepted where it asks for nothing."""

    effort: None = None
    summary: None = None
    generate_summary: None = None
    context: None = None
    mode: None = None


class ResponseStreamOptions(Body):
    """Accepted where they ask for nothing."""

    include_obfuscation: No | None = None


class ResponseRequest(Extensions):
    """A request for a response. Nothing is stored, so there is no response to go on from."""

    PROMPT = "input"
    FORMAT = "text.format"

    input: str | Annotated[list[Item], Field(fail_fast=True, min_length=1)]
    model: str | None = Field(None, description="the served model, which is the default")
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    text: TextConfig | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = Field(None, max_length=128)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="extension")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="extension: variables of the chat template")

    metadata: Metadata | None = Field(None, max_length=16, description="given back, without effect")
    prompt_cache_key: str | None = Field(None, description="without effect: prefixes are always cached")
    prompt_cache_retention: Literal["in_memory"] | None = None
    reasoning: Reasoning | None = None
    safety_identifier: str | None = Field(None, description="accepted without effect")
    service_tier: Literal["auto", "default"] | None = None
    store: No | None = None
    stream_options: ResponseStreamOptions | None = None
    top_logprobs: int | None = Field(None, ge=0, le=0)
    truncation: Literal["disabled"] | None = None
    user: str | None = Field(None, description="accepted without effect")
    background: No | None = None
    include: Nothing | None = None

    access_programs: None = None
    background_options: None = None
    context_management: None = None
    conversation: None = None
    image: None = None
    max_tool_calls: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    prompt_cache_options: None = None
