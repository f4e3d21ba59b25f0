"""The bodies and answers of `/api`, a subset of the API of Ollama. Times are in nanoseconds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from orthrus.serving.protocol.chat import Tool
from orthrus.serving.protocol.common import Body, Name, No, StopString

Empty = Annotated[list[Any], Field(max_length=0)]
Duration = str | int | float


class OllamaOptions(Body):
    """How to sample and when to stop. What is left open is the model's own. The last group belongs to how Ollama loads
    a model, and is without effect."""

    num_predict: int | None = Field(None, ge=-(2**31), lt=2**31, description="not positive: up to the context")
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=64)] | None = None
    repeat_penalty: float | None = Field(None, ge=0.01, le=100, description="counts prompt and answer")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    num_ctx: int | None = Field(None, ge=1, lt=2**31, description="the most tokens of prompt and answer together")

    repeat_last_n: Literal[-1] | None = None
    mirostat: Literal[0] | None = None
    tfs_z: Literal[1] | None = None
    typical_p: Literal[1] | None = None

    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    low_vram: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    numa: bool | None = None


class OllamaRequest(Body):
    """What the two requests share. `keep_alive` is without effect: the model stays loaded."""

    FORMAT = "format"

    model: str | None = Field(None, description="the served model, which is the default; with or without `:latest`")
    stream: bool | None = Field(None, description="true by default")
    format: Literal["", "json"] | dict[str, Any] | None = Field(None, description="a JSON schema, or `json`")
    options: OllamaOptions | None = None
    keep_alive: Duration | None = None
    think: bool | None = Field(None, description="for models whose chat template knows it")
    logprobs: No | None = None
    top_logprobs: Literal[0] | None = None


class GenerateRequest(OllamaRequest):
    """A request to answer a prompt; with `suffix` to fill the gap before it, with `raw` to continue the text as it is.
    Without either it is a turn of a chat."""

    prompt: str = ""
    suffix: str | None = None
    raw: bool | None = None
    system: str | None = None
    template: Literal[""] | None = None
    context: Empty | None = None
    images: Empty | None = None


class OllamaFunction(Body):
    """A function and its arguments as an object."""

    name: Name
    arguments: dict[str, Any]
    index: int | None = None
    description: str | None = None


class OllamaToolCall(Body):
    """A call of a function."""

    function: OllamaFunction
    id: str | None = None
    type: Literal["function"] | None = None


class OllamaMessage(Body):
    """A turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    tool_calls: Annotated[list[OllamaToolCall], Field(fail_fast=True)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: Empty | None = None


class OllamaChatRequest(OllamaRequest):
    """A request for an answer to a conversation."""

    PROMPT = "messages"

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True)] = Field(default_factory=list)
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = Field(None, max_length=128)


class ShowRequest(Body):
    """Which model to describe; `name` is the older name of the field."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    system: Literal[""] | None = None
    template: Literal[""] | None = None
    options: OllamaOptions | None = None


class Timed(BaseModel):
    """What every answer has, and at its end the counts and times."""

    model: str
    created_at: str
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class Generated(Timed):
    """The answer to a prompt, or what is new in it."""

    response: str
    thinking: str | None = None


class AnsweredFunction(BaseModel):
    """A function and its arguments."""

    name: str
    arguments: dict[str, Any]


class AnsweredCall(BaseModel):
    """A call of the answer."""

    function: AnsweredFunction


class AnsweredMessage(BaseModel):
    """The turn of the assistant, or what is new in it."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[AnsweredCall] | None = None


class Chatted(Timed):
    """The answer to a conversation, or what is new in it."""

    message: AnsweredMessage


class Details(BaseModel):
    """What kind of model it is."""

    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Listed(BaseModel):
    """The served model. size: bytes of its parameters in the precision in which it computes."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    modified_at: str | None = None
    expires_at: str | None = None
    size_vram: int | None = None
    context_length: int | None = None


class ModelsListed(BaseModel):
    """The one model."""

    models: list[Listed]


class Shown(BaseModel):
    """What the model can do. template: only its part for `suffix`, as Ollama writes it."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(BaseModel):
    """The version of Ollama whose API this is a subset of."""

    version: str


class OllamaError(BaseModel):
    """The body of every answer that is an error, and the last line of a stream that ends by one."""

    error: str
