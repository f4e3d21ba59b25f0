"""The answers of `/v1/responses`: a response with its items, and the events of a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orthrus.serving.protocol.responses import Status


class OutputText(BaseModel):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(BaseModel):
    """The answer."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call of a function."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class OutputReasoningText(BaseModel):
    """A part of the reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(BaseModel):
    """What a thinking model wrote before its answer."""

    type: Literal["reasoning"]
    id: str
    summary: list[Any]
    content: list[OutputReasoningText]
    status: Status


OutputItem = Annotated[OutputMessage | OutputCall | OutputReasoning, Field(discriminator="type")]


class InputTokensDetails(BaseModel):
    """Of the tokens of the prompt, those that were found in the cache."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    """Of the tokens of the answer, those of reasoning; and drafts that were accepted and refused."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class ResponseUsage(BaseModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer was cut off."""

    reason: Literal["max_output_tokens"]


class ResponseObject(BaseModel):
    """A response. The fields of the request are given back."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    completed_at: int | None = None
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    background: Literal[False]
    store: Literal[False]
    temperature: float
    top_p: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    reasoning: dict[str, None]
    truncation: Literal["disabled"]
    usage: ResponseUsage | None = None
    metadata: dict[str, str]
    service_tier: Literal["default"]
    user: str | None = None


class ResponseEvent(BaseModel):
    """An event of a stream: its type, its number, and what OpenAI's API says events of the type hold."""

    model_config = ConfigDict(extra="allow")

    type: str
    sequence_number: int
