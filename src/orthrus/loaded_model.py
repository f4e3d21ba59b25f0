"""A loaded checkpoint below text in and text out: its tokens, its requests, its engines and their costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, Self, Unpack

import torch

from orthrus.checkpoint import hub
from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoding.constraints import Grammars
from orthrus.decoding.cycle import Step
from orthrus.decoding.engine import Engine, generate
from orthrus.decoding.planning.calibration import Calibration
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.sequence import Limits, Request
from orthrus.fill_in_middle import FillInMiddle
from orthrus.model.decoder import Decoder
from orthrus.options import Options, Settings
from orthrus.requests import Requests
from orthrus.runner import prepare
from orthrus.runner.memory import return_freed
from orthrus.runner.runner import Runner
from orthrus.token_texts import TokenTexts
from orthrus.tokenization import Prompt, Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LoadedModel:
    """A checkpoint and the runner that decodes it. Several threads may use it at once."""

    def __init__(self, checkpoint: hub.Checkpoint, runner: Runner, ctx_size: int | None = None) -> None:
        self.checkpoint, self.runner = checkpoint, runner
        self.decoder = checkpoint.decoder
        config = self.decoder.config
        self.calibration = Calibration(runner)
        self._tokenization = Tokenization(checkpoint.text, checkpoint.fim)
        if ctx_size is not None and ctx_size > config.max_positions:
            raise ValueError(f"context size {ctx_size} is beyond the model's context of {config.max_positions} tokens")
        ends, text = checkpoint.end_token_ids, checkpoint.text
        grammars = Grammars(text.backend_json, config.vocab_size, ends)
        self.limits = Limits(config.vocab_size, ctx_size or config.max_positions, ends, grammars)
        self.token_texts = TokenTexts(self._tokenization.decode, text.vocabulary)
        self._requests = Requests(self._tokenization, self.limits)

    def close(self) -> None:
        """Give up weights, caches and tokenizer, and return their memory to the system.

        Streams and engines of this model that are still in use keep it until they end. Whatever is asked of a closed
        model raises ValueError, except to close it again.
        """
        device = self.__dict__["decoder"].device if self.__dict__ else None
        self.__dict__.clear()
        if device is not None:
            return_freed(device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    if not TYPE_CHECKING:  # for a type checker every attribute exists, those that do not exist at all are errors

        def __getattr__(self, name: str) -> Any:
            """Called for missing attributes alone: those of a closed model."""
            if self.__dict__ or name.startswith("__"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise ValueError("this model is closed: load it again with orthrus.load")

    def __repr__(self) -> str:
        if not self.__dict__:
            return "<orthrus.Model, closed>"
        decoder, config, parameters = self.decoder, self.decoder.config, self.parameters
        view = f"{self.checkpoint.view}, blocks of {decoder.diffusion.block_size}" if decoder.diffusion else "none"
        return (
            f"<orthrus.Model {self.checkpoint.backbone.id}: {config.family}, {config.layers} layers, hidden size"
            f" {config.hidden_size}, {parameters / 1e6:.1f} M parameters; {str(decoder.dtype).removeprefix('torch.')}"
            f" on {decoder.device}; diffusion view: {view}; kernels: {self.kernels}>"
        )

    @property
    def parameters(self) -> int:
        """The number of parameters of the backbone."""
        sizes = Decoder(self.decoder.config, None, self.decoder.dtype, torch.device("meta")).parameters()
        return sum(parameter.numel() for parameter in sizes)

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

    def engine(self, **options: Unpack[Options]) -> Engine:
        """An engine for requests of this model, which join and leave at any pass.

        The options that count are `cycle`, `rule`, `width`, `candidates`, `tree_nodes` and `batch_size`, the most per
        pass. Requests are made by `request`. Raises ValueError where the cache does not fit into memory.
        """
        config = self.decoding_config(options)
        return Engine(self.runner, config, self.limits, decode=self._tokenization.decode, costs=self._costs_for(config))

    def prompt_tokens(self, prompt: Prompt, options: Options) -> tuple[int, ...]:
        """Token ids of a prompt: through the chat template where the tokenizer has one, unless `raw`."""
        return self._tokenization.encode(prompt, Settings.of(options))

    def request(self, prompt: Prompt, options: Options, sampling_params: SamplingParams | None = None) -> Request:
        """The engine's record of a prompt and its options. Raises ValueError where one of them is impossible."""
        return self._requests.one(prompt, options, sampling_params)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text as it stands: no chat template, but the special tokens that the tokenizer adds."""
        return self._tokenization.encode_text(text, special_tokens=special_tokens)

    @property
    def fill_in_middle(self) -> FillInMiddle:
        """What makes prompts that fill in the middle of a text.

        Raises ValueError where the vocabulary has no tokens for that.
        """
        return self._tokenization.fill_in_middle

    @property
    def longest_token(self) -> int:
        """Characters of the longest token of the tokenizer."""
        return self._tokenization.longest_token

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
        return generate(self.runner, requests, config, self.limits, self._tokenization.decode, self._costs_for(config))

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
