"""The bodies of `/infill`, as llama.cpp's server has it and llama.vim speaks it. Times are in milliseconds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from orthrus.serving.protocol.common import Body, Extensions, StopString

Sampler = Literal["top_k", "top_p", "min_p", "temperature", "penalties", "infill", "typ_p", "xtc", "dry", "top_n_sigma"]


class OtherFile(Body):
    """A part of another file."""

    text: str
    filename: str = "tmp"
    time: Any = Field(None, description="without effect")


class InfillRequest(Extensions):
    """A request to fill the gap at a cursor. The text before it is `input_prefix` and then `prompt`. What is left open
    of sampling is the model's own."""

    PROMPT: ClassVar[str] = "input_prefix"

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[OtherFile], Field(fail_fast=True)] | None = Field(None, max_length=256)
    prompt: str = ""
    model: str | None = Field(None, description="the served model; empty as if left out")
    n_predict: int | None = Field(None, ge=-1, lt=2**31, description="0 reads the prompt into the cache alone")
    n_indent: int | None = Field(None, ge=0, lt=2**31, description="end before a line that is indented less")
    t_max_predict_ms: int | None = Field(
        None, ge=-1, lt=2**53, description="end at a pass so late after the first token, once there is a line"
    )
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=64)] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-1, lt=2**64)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    response_fields: Annotated[list[str], Field(max_length=64)] | None = Field(
        None, description="the fields of the answer, `/` between the names of nested ones"
    )

    samplers: Annotated[list[Sampler], Field(max_length=16)] | None = Field(None, description="without effect")
    cache_prompt: Literal[True] | None = Field(None, description="prefixes are always cached")
    id_slot: int | None = Field(None, description="without effect: any place serves any client")
    t_max_prompt_ms: int | None = Field(None, description="without effect, as in llama.cpp")


class Timings(BaseModel):
    """Tokens of the prompt in the cache, tokens that were read, tokens that were generated, and what they took."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class Infilled(BaseModel):
    """The text of the gap, or what is new in it. The fields after `stop` are those of the whole answer. truncated:
    whether texts were cut to fit."""

    index: int = 0
    content: str
    stop: bool
    model: str | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    tokens_cached: int | None = None
    has_new_line: bool | None = None
    truncated: bool | None = None
    stop_type: Literal["eos", "limit"] | None = None
    timings: Timings | None = None
