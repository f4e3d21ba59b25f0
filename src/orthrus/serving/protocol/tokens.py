"""The bodies of `/tokenize`, `/detokenize` and `/tokenizer_info`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from orthrus.serving.protocol.chat import Message, Tool
from orthrus.serving.protocol.common import Body, TokenId


class TokenizeRequest(Body):
    """A text, or messages as the chat template writes them: one of the two."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = Field(None, min_length=1)
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = Field(None, description="of a prompt: the tokenizer's own; true by default")
    return_token_strs: bool | None = None


class TokenizeResponse(BaseModel):
    """Token ids, how many they are, and how many a request may have."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class DetokenizeResponse(BaseModel):
    """Their text, without special tokens."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What clients that encode by this server need to know of its tokenizer."""

    eos_token: str | None
    bos_token: None = None
    pad_token: None = None
    chat_template: str | None
