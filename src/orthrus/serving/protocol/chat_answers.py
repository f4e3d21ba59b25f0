"""The answers of `/v1/chat/completions`: a completion, or its chunks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from orthrus.serving.protocol.common import DraftInfo, Usage

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(BaseModel):
    """A token and its log probability. `bytes` are those of its text, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, with the most likely ones in its place."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log probabilities of the model itself, before temperature, penalties and constraints."""

    content: list[TokenLogprob] | None
    refusal: None = None


class FunctionCall(BaseModel):
    """A function and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(BaseModel):
    """The turn of the assistant."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answers to a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    service_tier: Literal["default"] | None = None


class FunctionCallDelta(BaseModel):
    """The name comes once, arguments are appended."""

    name: str | None = None
    arguments: str | None = None


class ToolCallChunk(BaseModel):
    """A piece of the call with this index; the first has its id and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


class ChunkDelta(BaseModel):
    """What is new in a choice."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallChunk] | None = None


class ChunkChoice(BaseModel):
    """What is new in the choice with this index."""

    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """An event of a stream. The last but `[DONE]` has the usage and no choice, where usage was asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str
    orthrus: DraftInfo | None = None
