"""The bodies of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from orthrus.serving.protocol.common import DraftInfo, Sampling, TokenId, Usage

TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]


class CompletionRequest(Sampling):
    """A request to go on with one or several texts. `max_tokens: 0` needs `echo`: the prompt is scored alone."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=128)]
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=128)]
    )
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="16 by default, as in OpenAI's API")
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=128, description="must equal n")
    suffix: str | None = Field(None, description="what stands after the gap that the answer fills")


class CompletionLogprobs(BaseModel):
    """Four lists with an entry per token. The first token of a prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation, or what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """The continuations, or a chunk of a stream of them. A chunk has usage where it was asked for."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str
    orthrus: DraftInfo | None = None
