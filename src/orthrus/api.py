"""The Python face: load a model, generate, stream."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict, Unpack, overload

import torch

from orthrus.checkpoint import derived, hub
from orthrus.checkpoint.sources import DEMO
from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoding.costs import Costs, measure
from orthrus.decoding.generate import Step, generate
from orthrus.decoding.sequence import Limits, Request, Sequence, Statistics
from orthrus.model.decoder import Decoder

Message = Mapping[str, str]
Prompt = str | Seq[Message] | Seq[int]
MEASURE_AGAIN_AFTER = 300.0
"""Seconds after which a cost table that other work disturbed is measured again."""
log = logging.getLogger(__name__)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Options(TypedDict, total=False):
    """All that `generate` and `stream` take besides the prompt; see `SamplingParams` and `StopConditions`."""

    max_new_tokens: int
    stop: str | Seq[str]
    stop_token_ids: Seq[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    min_new_tokens: int
    seed: int | None
    sample_index: int
    cycle: str
    rule: str
    width: int | None
    candidates: int | None
    batch_size: int
    raw: bool
    system: str | None
    chat_template_kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """One finished prompt. `tokens` holds the generated ids, end token included; `seed` is the one that was used."""

    text: str
    tokens: list[int]
    finish_reason: str
    statistics: Statistics
    seed: int


@dataclass(frozen=True)
class Piece:
    """The text of one token (it may be empty: half a character), and whether it was an accepted draft."""

    text: str
    drafted: bool


@dataclass(frozen=True)
class Chunk:
    """What a cycle added to the text. `result` is set on the last chunk."""

    pieces: list[Piece]
    result: Result | None = None

    @property
    def text(self) -> str:
        """The new text."""
        return "".join(piece.text for piece in self.pieces)


class Model:
    """A loaded checkpoint that generates text, losslessly."""

    def __init__(self, checkpoint: hub.Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.decoder, self.tokenizer = checkpoint.decoder, checkpoint.tokenizer
        config = self.decoder.config
        self._costs: Costs | None = None
        self._costs_lock = Lock()
        self.limits = Limits(config.vocab_size, config.max_positions, checkpoint.end_token_ids)

    @overload
    def generate(self, prompt: str | list[Message] | list[int], **options: Unpack[Options]) -> Result: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[Message]] | list[list[int]] | list[Prompt], **options: Unpack[Options]
    ) -> list[Result]: ...
    def generate(self, prompt: Any, **options: Unpack[Options]) -> Result | list[Result]:
        """Decode one prompt, giving a `Result`, or a list of prompts, giving a list of them in the same order.

        A prompt is a string, a list of chat messages, or a list of token ids. Raises ValueError for bad settings.
        """
        many = isinstance(prompt, list | tuple) and (not prompt or isinstance(prompt[0], str | list | tuple))
        prompts: Seq[Prompt] = prompt if many else [prompt]
        ordered = [result for _, result in self.results(prompts, **options)]
        return ordered if many else ordered[0]

    def results(self, prompts: Seq[Prompt], **options: Unpack[Options]) -> Iterator[tuple[int, Result]]:
        """Decode prompts side by side, yielding (index, result) in input order as soon as order allows."""
        ready: dict[int, Result] = {}
        following = 0
        for step in self._steps(prompts, options):
            if step.sequence.finish_reason is not None:
                ready[step.sequence.index] = result_of(step.sequence)
            while following in ready:
                yield following, ready.pop(following)
                following += 1

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Decode one prompt, yielding text as it becomes certain; the last chunk carries the `Result`."""
        shown = position = 0
        for step in self._steps([prompt], options):
            sequence, text = step.sequence, step.sequence.text
            assert text is not None
            done = sequence.finish_reason is not None
            pieces: list[Piece] = []
            first_new = len(sequence.tokens) - len(step.kept.tokens)
            while position < len(text.ends) and (done or text.ends[position] <= text.safe):
                end = min(text.ends[position], len(text.text))
                drafted = first_new <= position < first_new + step.kept.accepted
                pieces.append(Piece(text.text[shown:end], drafted))
                shown, position = end, position + 1
            if done and shown < len(text.text):
                pieces.append(Piece(text.text[shown:], drafted=False))
            yield Chunk(pieces, result_of(sequence) if done else None)

    def prompt_tokens(self, prompt: Prompt, options: Options) -> tuple[int, ...]:
        """Token ids of a prompt: through the chat template where the tokenizer has one, unless `raw`."""
        if prompt and isinstance(prompt[0], int):
            return tuple(prompt)  # type: ignore[arg-type]
        raw, system = options.get("raw", False), options.get("system")
        if isinstance(prompt, str) and (raw or not self.tokenizer.chat_template):
            if system is not None and not raw:
                raise ValueError("this tokenizer has no chat template, so there is no place for a system message")
            return tuple(self.tokenizer(prompt).input_ids)
        if isinstance(prompt, str) and not prompt.strip():
            raise ValueError("the prompt is empty")
        if not self.tokenizer.chat_template:
            raise ValueError("messages need a chat template and this tokenizer has none; pass the prompt as a string")
        messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        arguments = dict(options.get("chat_template_kwargs") or {})
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **arguments
        )
        return tuple(ids)

    def request(self, prompt: Prompt, options: Options) -> Request:
        """The engine's record of a prompt and its options. Raises ValueError where one of them is impossible."""
        unknown = set(options) - set(Options.__annotations__)
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {f.name: options[f.name] for f in fields(SamplingParams) if f.name in options}  # type: ignore[literal-required]
        if "logit_bias" in values:
            values["logit_bias"] = tuple(sorted(dict(values["logit_bias"]).items()))
        stop = options.get("stop", ())
        conditions = StopConditions(
            options.get("max_new_tokens", StopConditions.max_new_tokens),
            frozenset(options.get("stop_token_ids", ())),
            (stop,) if isinstance(stop, str) else tuple(stop),
        )
        return Request(self.prompt_tokens(prompt, options), SamplingParams(**values), conditions)

    def decode(self, tokens: Seq[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)  # type: ignore[return-value]

    def decoding_config(self, options: Options) -> DecodingConfig:
        """Which cycle runs: the one asked for, else `auto`, or plain decoding where there is no diffusion view."""
        default = DecodingConfig() if self.decoder.diffusion else DecodingConfig(cycle="ar")
        chosen: dict[str, Any] = {
            n: options[n] for n in ("cycle", "rule", "width", "candidates", "batch_size") if n in options
        }
        return replace(default, **chosen)

    def run(self, requests: Iterable[Request], config: DecodingConfig) -> Iterator[Step]:
        """Decode requests as they are, planning by this model's cost table where the cycle is `auto`."""
        costs = self.costs() if config.cycle == "auto" and self.decoder.diffusion else None
        return generate(self.decoder, requests, config, self.limits, self.decode, costs)

    def costs(self, *, anew: bool = False) -> Costs:
        """What passes of this model cost on this device: measured once, in seconds, and kept on disk.

        A table that other work disturbed is measured again by a later run, and the calmer of the two is kept. `anew`
        measures now. Raises ValueError where there is no diffusion view to plan for.
        """
        if self.decoder.diffusion is None:
            raise ValueError("without a diffusion view there is nothing to plan: see --adapter")
        with self._costs_lock:
            if self._costs is None or anew:
                self._costs = self._measured(anew=anew)
            return self._costs

    @property
    def costs_known(self) -> bool:
        """Whether `costs` can answer without measuring first."""
        key = _costs_key(self.decoder)
        return self._costs is not None or derived.age_of(key) < inf

    def _measured(self, *, anew: bool) -> Costs:
        key = _costs_key(self.decoder)
        fresh = anew or not self.costs_known

        def kept(*, again: bool, compute: Callable[[], Costs]) -> Costs:
            found: Costs = derived.cached_json(key, lambda: compute().as_dict(), read=Costs.of, anew=again)
            return found

        found = kept(again=anew, compute=lambda: measure(self.decoder))
        if found.disturbed and not fresh and derived.age_of(key) > MEASURE_AGAIN_AFTER:
            log.info("what passes cost was measured beside other work; it is measured again")
            found = kept(again=True, compute=lambda: min(found, measure(self.decoder), key=lambda costs: costs.spread))
        if found.disturbed:
            log.info("other work disturbed the measuring of what passes cost; a later run measures again")
        return found

    def _steps(self, prompts: Seq[Prompt], options: Options) -> Iterator[Step]:
        requests = [self.request(prompt, options) for prompt in prompts]
        return self.run(requests, self.decoding_config(options))


def _costs_key(decoder: Decoder) -> str:
    """Names a cost table: the shapes, precision, device, threads and version it holds for."""
    gpu = torch.cuda.get_device_name(decoder.device) if decoder.device.type == "cuda" else None
    parts = (
        decoder.config, decoder.diffusion, str(decoder.dtype), gpu or derived.processor_name(),
        torch.get_num_threads(), torch.__version__, decoder.kernels.build,
        sorted({linear.name for linear in decoder.linears().values()}),
        decoder.drafting_head is None,
        [(f.name, f.type) for f in fields(Costs)],
    )  # fmt: skip
    return f"costs-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def result_of(sequence: Sequence) -> Result:
    """The result of a finished sequence."""
    assert sequence.finish_reason is not None and sequence.text is not None
    return Result(sequence.text.text, list(sequence.tokens), sequence.finish_reason, sequence.statistics, sequence.seed)


def load(
    name: str = DEMO,
    *,
    adapter: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    cheap_drafts: bool = True,
    revision: str | None = None,
    allow_other_backbone: bool = False,
) -> Model:
    """Load `smollm2-demo`, a checkpoint directory, a GGUF file, or a hub id, with an optional adapter.

    Args:
        name: what to load.
        adapter: directory of a trained diffusion view.
        dtype: "bfloat16" (default) or "float32".
        device: where to run.
        quantize: "int8" for int8 weights and activations in all linear maps: another model, faster, to which lossless
            then refers.
        cheap_drafts: draft by cheaper forms of the weights (the view in four bits, copies for integer products) where
            they are faster and memory allows: no token changes.
        revision: hub revision.
        allow_other_backbone: load an adapter whose backbone had other weights (same shapes and tokenizer).

    Raises:
        ValueError: naming the file, tensor, family or setting that is wrong.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        dtype = DTYPES[dtype]
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be int8, not {quantize!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    checkpoint = hub.load(
        name, adapter=adapter, dtype=dtype, device=device, revision=revision, allow_other_backbone=allow_other_backbone
    )
    return Model(hub.prepare(checkpoint, int8=quantize == "int8", cheap_drafts=cheap_drafts))
