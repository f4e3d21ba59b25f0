"""What the requests and answers of several endpoints share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _exactly_false(value: Any) -> Any:
    """0 equals False, and would pass for it."""
    if value is not False:
        raise PydanticCustomError("literal_error", "must be false", {"expected": "false"})
    return value


No = Annotated[Literal[False], BeforeValidator(_exactly_false)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class Body(BaseModel):
    """A part of a request: unknown fields are refused, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    PROMPT: ClassVar[str] = "prompt"
    FORMAT: ClassVar[str] = "response_format"
    """The fields that hold the prompt and the format of the text, for errors that are about them."""


class Extensions(Body):
    """Fields beyond OpenAI's, named as in vLLM. `drafts` and `priority` are the engine's: without drafts a request is
    decoded plainly, with the same tokens; of the requests that wait, those with the lowest priority value run first."""

    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 and -1 are off")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(None, max_length=64)
    ignore_eos: bool | None = Field(None, description="Choose no end token before `max_tokens`: for load tests")
    drafts: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)


class StreamOptions(Body):
    """Extensions: `include_drafts` adds statistics of the pass to each chunk, `continuous_usage_stats` (of vLLM) the
    usage so far."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_drafts: bool | None = None
    include_obfuscation: No | None = None


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A JSON schema, which is enforced whether `strict` or not."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Body):
    """Extension: text that matches a regular expression as a whole."""

    type: Literal["regex"]
    regex: str = Field(min_length=1)


class GrammarFormat(Body):
    """Extension: text of a Lark grammar, as llguidance reads it."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
]


class Sampling(Extensions):
    """What chat and text completions have in common. Where neither the request nor the model's generation config says
    otherwise, temperature and top_p are 1."""

    model: str | None = Field(None, description="the served model, which is the default")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenIdText, Bias] | None = Field(None, max_length=1024)
    n: int | None = Field(None, ge=1, le=128)
    response_format: ResponseFormat | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    user: str | None = Field(None, description="accepted without effect")


class PromptTokensDetails(BaseModel):
    """Of the tokens of the prompt, those that were found in the cache."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Drafts that were accepted and refused, and tokens of reasoning."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens of a request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class DraftPiece(BaseModel):
    """Text and where it came from: an accepted draft, an accepted looked-up token, the token after drafts, or a token
    of a pass without drafts."""

    text: str
    source: Literal["draft", "lookup", "bonus", "plain"]


class DraftInfo(BaseModel):
    """Extension: the pass behind a chunk. `rows` are the rows that it verified, `rejected` the texts of the drafts that
    it refused, `confidence` that of each draft."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    index: int
    pass_: int = Field(alias="pass")
    kind: str
    rows: int
    pieces: list[DraftPiece]
    rejected: list[str]
    confidence: list[float]
