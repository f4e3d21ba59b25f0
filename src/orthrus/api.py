"""The Python face: load a model, generate, stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import torch

from orthrus.checkpoint import hub
from orthrus.checkpoint.sources import DEMO
from orthrus.config import DecodingConfig
from orthrus.decoding.batch_size import affordable_batch
from orthrus.decoding.constraints import Grammars
from orthrus.decoding.cycle import Step
from orthrus.decoding.engine import Engine, generate
from orthrus.decoding.planning.calibration import Calibration
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.sequence import Limits, Request, Sequence
from orthrus.decoding.text import Piece
from orthrus.load_options import DTYPES, LoadOptions, LoadSettings
from orthrus.model.decoder import Decoder
from orthrus.options import Options, Settings, check_type
from orthrus.progress import AnswerProgress
from orthrus.results import Chunk, Result, chunks, in_order, result_of
from orthrus.runner import prepare
from orthrus.runner.runner import Runner
from orthrus.tokenization import Message, Prompt, Tokenization, map_prompts, prompt_list, prompts_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DTYPES", "Chunk", "Message", "Model", "Options", "Piece", "Prompt", "Result", "load", "result_of"]


class Model:
    """A loaded checkpoint that generates text, losslessly. Several threads may use it at once."""

    def __init__(self, checkpoint: hub.Checkpoint, runner: Runner, ctx_size: int | None = None) -> None:
        self.checkpoint, self.runner = checkpoint, runner
        self.decoder = checkpoint.decoder
        config = self.decoder.config
        self.calibration = Calibration(runner)
        self._tokenization = Tokenization(checkpoint.text)
        if ctx_size is not None and ctx_size > config.max_positions:
            raise ValueError(f"context size {ctx_size} is beyond the model's context of {config.max_positions} tokens")
        ends, text = checkpoint.end_token_ids, checkpoint.text
        grammars = Grammars(text.backend_json, config.vocab_size, ends)
        self.limits = Limits(config.vocab_size, ctx_size or config.max_positions, ends, grammars)

    def __repr__(self) -> str:
        decoder, config = self.decoder, self.decoder.config
        sizes = Decoder(config, None, decoder.dtype, torch.device("meta")).parameters()
        parameters = sum(parameter.numel() for parameter in sizes)
        view = f"{self.checkpoint.view}, blocks of {decoder.diffusion.block_size}" if decoder.diffusion else "none"
        return (
            f"<orthrus.Model {self.checkpoint.backbone.id}: {config.family}, {config.layers} layers, hidden size"
            f" {config.hidden_size}, {parameters / 1e6:.1f} M parameters; {str(decoder.dtype).removeprefix('torch.')}"
            f" on {decoder.device}; diffusion view: {view}; kernels: {self.kernels}>"
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of `transformers`, which is imported on first use: generating needs none of it."""
        return self.checkpoint.tokenizer

    @property
    def warnings(self) -> list[str]:
        """What a user of this model should know: another backbone, slow kernels."""
        return [*self.checkpoint.warnings, *prepare.warnings(self.runner)]

    @property
    def kernels(self) -> str:
        """The matrix products that an AR pass runs, by name."""
        return " + ".join(self.runner.linear_kernels)

    @overload
    def generate(
        self, prompt: str | list[Message] | list[int], *, progress: bool | None = None, **options: Unpack[Options]
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[Message]] | list[list[int]] | list[Prompt],
        *,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> list[Result]: ...
    def generate(
        self, prompt: Any, *, progress: bool | None = None, **options: Unpack[Options]
    ) -> Result | list[Result]:
        """Decode one prompt, giving a `Result`, or a list of prompts, giving a list of them in the same order.

        A prompt is a string, a list of chat messages, or a list of token ids. Several are decoded together, as many as
        memory has room for, unless `batch_size` says otherwise; each gets the tokens that it gets alone.

        progress: whether a bar is shown on stderr; None shows it on a terminal. Raises ValueError naming the option or
        the prompt that is wrong.
        """
        prompts, many = prompts_in(prompt)
        bar = AnswerProgress(len(prompts), shown=progress)
        ordered = [result for _, result in in_order(self._steps(prompts, options), bar)]
        return ordered if many else ordered[0]

    def results(
        self, prompts: Iterable[Prompt], *, progress: bool | None = None, **options: Unpack[Options]
    ) -> Iterator[tuple[int, Result]]:
        """Decode prompts together as `generate` does, yielding (index, result) in input order as soon as order allows.

        progress: whether a bar is shown on stderr until the next result is there; None shows it on a terminal. Raises
        ValueError when called, before anything is decoded.
        """
        listed = prompt_list(prompts)
        return in_order(self._steps(listed, options), AnswerProgress(len(listed), shown=progress))

    def stream(self, prompt: Prompt, *, engine: Engine | None = None, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Decode one prompt, yielding text as it becomes certain; the last chunk carries the `Result`.

        engine: one made by `engine()`. It keeps its cache from call to call: of a prompt that starts like an earlier
        one, such as the next turn of a chat, only the new tokens are computed.

        Raises ValueError when called, before anything is decoded.
        """
        if engine is None:
            return chunks(self._steps([prompt], options))
        return chunks(engine.follow(engine.add(self.request(prompt, options))))

    def engine(self, **options: Unpack[Options]) -> Engine:
        """An engine for requests of this model, which join and leave at any pass.

        The options that count are `cycle`, `rule`, `width`, `candidates`, `tree_nodes` and `batch_size`, the most per
        pass. Requests are made by `request`. Raises ValueError where the cache does not fit into memory.
        """
        config = self.decoding_config(options)
        return Engine(self.runner, config, self.limits, decode=self.decode, costs=self._costs_for(config))

    def prompt_tokens(self, prompt: Prompt, options: Options) -> tuple[int, ...]:
        """Token ids of a prompt: through the chat template where the tokenizer has one, unless `raw`."""
        return self._tokenization.encode(prompt, Settings.of(options))

    def request(self, prompt: Prompt, options: Options) -> Request:
        """The engine's record of a prompt and its options. Raises ValueError where one of them is impossible."""
        settings = Settings.of(options)
        return Request(self._tokenization.encode(prompt, settings), settings.sampling, settings.stop)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text as it stands: no chat template, but the special tokens that the tokenizer adds."""
        return self._tokenization.encode_text(text, special_tokens=special_tokens)

    def decode(self, tokens: Seq[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._tokenization.decode(tokens)

    def decoding_config(self, options: Options) -> DecodingConfig:
        """Which cycle runs: the one asked for, else `auto`, or plain decoding where there is no diffusion view.

        Raises ValueError where this checkpoint cannot be decoded so.
        """
        view = self.decoder.diffusion
        config = Settings.of(options, cycle="auto" if view else "ar").decoding
        if view is None and config.cycle != "ar":
            raise ValueError(
                f"cycle {config.cycle!r} needs a diffusion view; this checkpoint has none: use --cycle ar, or"
                " give it one (--adapter, or a published Orthrus checkpoint)"
            )
        if view is not None and config.width is not None and config.width > view.block_size:
            raise ValueError(f"width {config.width} is beyond the block size {view.block_size} of this checkpoint")
        return config

    def run(self, requests: Iterable[Request], config: DecodingConfig) -> Iterator[Step]:
        """Decode requests as they are, planning by this model's cost table where the cycle is `auto`."""
        return generate(self.runner, requests, config, self.limits, self.decode, self._costs_for(config))

    def _costs_for(self, config: DecodingConfig) -> CostModel | None:
        return self.calibration.costs() if config.cycle == "auto" and self.decoder.diffusion else None

    def costs(self, *, refresh: bool = False) -> CostModel:
        """What passes of this model cost on this device: measured once, in seconds, and kept on disk.

        `refresh` measures again. Raises ValueError where there is no diffusion view to plan for.
        """
        return self.calibration.costs(refresh=refresh)

    def assume_costs(self) -> bool:
        """Plan by an assumed cost table until `costs(refresh=True)` measures it. Returns whether there was none."""
        return self.calibration.assume()

    def _steps(self, prompts: Seq[Prompt], options: Options) -> Iterator[Step]:
        """Check everything now, and decode when asked."""

        def checked(prompt: Prompt) -> Request:
            request = self.request(prompt, options)
            return Sequence(0, request, self.limits, self.decode).request

        config = self.decoding_config(options)
        requests = map_prompts(prompts, checked)
        if options.get("batch_size") is None:
            config = replace(config, batch_size=affordable_batch(self.runner, requests, config, self.limits))
        return self.run(requests, config)


def load(name: str | Path = DEMO, **options: Unpack[LoadOptions]) -> Model:
    """Load `smollm2-demo`, a checkpoint directory, a GGUF file, or a hub id, with an optional adapter.

    Args:
        name: what to load.
        **options: as follows.
            adapter: directory of a trained diffusion view.
            dtype: "bfloat16" (default) or "float32".
            device: where to run, "cpu" by default.
            quantize: "int8" for int8 weights and activations in all linear maps: another model, faster, to which
                lossless then refers.
            low_precision_drafts: draft by low-precision weights (the diffusion view in four bits, int8 copies of the
                others) where they are faster and memory allows: no token changes. True by default.
            revision: hub revision.
            allow_other_backbone: load an adapter whose backbone had other weights (same shapes and tokenizer).
            ctx_size: the most tokens of a sequence, prompt included; by default the model's whole context.
            cache: keep the packed weights and the findings of the probes on disk, and read them from there. True by
                default. See `orthrus.tensor_cache` for where, and how much.

    Raises:
        ValueError: naming the file, tensor, family or setting that is wrong.
    """
    check_type("name", name, (str, Path), "a string or a path")
    given = LoadSettings.of(options)
    checkpoint = hub.load(
        str(name),
        adapter=given.adapter,
        dtype=given.dtype,
        device=given.device,
        revision=given.revision,
        allow_other_backbone=given.allow_other_backbone,
        lazily=torch.device(given.device).type == "cpu",
    )
    kinds = {"int8": given.quantize == "int8", "low_precision_drafts": given.low_precision_drafts}
    decoder, unread = checkpoint.decoder, checkpoint.unread
    if unread is None:
        runner = prepare.prepare(decoder, **kinds)
    else:
        runner = prepare.prepare_unread(decoder, unread.read, unread.identity, cache=given.cache, **kinds)
    return Model(replace(checkpoint, unread=None), runner, given.ctx_size)
