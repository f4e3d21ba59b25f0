"""The dual-view decoder: embeddings, norms, MLPs and head once; attention projections twice. Weights, nothing else.

How its forward passes are laid out and executed is the business of `orthrus.runner`; training runs the same blocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from orthrus.config import DiffusionConfig
from orthrus.decoder_config import DecoderConfig
from orthrus.model.draft_head import DraftHead, typical_inverse_temperature
from orthrus.model.embedding import Embedding
from orthrus.model.layers import DecoderLayer, View
from orthrus.model.linear import Linear
from orthrus.model.norms import Norm
from orthrus.model.ops import soft_cap
from orthrus.model.rope import RopeTable
from orthrus.quantization import StoredMatrix


class Decoder(nn.Module):
    """A frozen backbone with an optional diffusion view. Weights are empty until a checkpoint fills them."""

    def __init__(
        self, config: DecoderConfig, diffusion: DiffusionConfig | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.device = config, dtype, device
        self.diffusion = None if diffusion is None else _checked(diffusion, config)
        self.embedding = Embedding(torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device))
        self.layers = nn.ModuleList(
            DecoderLayer(config, config.layer(index), diffusion is not None, dtype, device)
            for index in range(config.layers)
        )
        self.norm = Norm(config, dtype, device)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self.draft_head: DraftHead | None = None
        self.draft_tokens = self._draft_tokens()
        self.ropes = [RopeTable(rope, device) for rope in config.ropes]
        self.embedding_scale = float(torch.tensor(config.embedding_scale).to(dtype))

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, in order."""
        return cast(list[DecoderLayer], list(self.layers))

    @property
    def mask_token_id(self) -> int:
        """The mask token. Raises ValueError where there is no diffusion view."""
        if self.diffusion is None:
            raise ValueError("this checkpoint has no diffusion view: load an adapter or a published Orthrus checkpoint")
        return self.diffusion.mask_token_id

    def embed(self, tokens_N: Tensor) -> Tensor:
        """The hidden states of tokens [N, D] before the first layer."""
        hidden_ND: Tensor = self.embedding(tokens_N)
        return hidden_ND if self.embedding_scale == 1.0 else hidden_ND * self.embedding_scale

    def capped(self, logits_NV: Tensor) -> Tensor:
        """The products of hidden states and a head as logits: times the scale of the model, below its soft cap."""
        scaled_NV = logits_NV if self.config.logit_scale == 1.0 else logits_NV * self.config.logit_scale
        return soft_cap(scaled_NV, self.config.logit_soft_cap)

    def drafting_head(self) -> Linear:
        """The plain head, of the draft vocabulary alone where there is one: a copy of the rows of these tokens."""
        tokens, stored = self.draft_tokens, self.head.group_quantized
        if tokens is None:
            return self.head
        drafting = self.drafting_shape()
        if isinstance(stored, StoredMatrix):
            drafting.group_quantized = rows = replace(stored, raw=stored.raw[tokens.cpu()])
            weight = rows.values().to(self.device, self.dtype)
        else:
            weight = self.head.weight.detach()[tokens]
        drafting.weight = nn.Parameter(weight, requires_grad=False)
        return drafting

    def drafting_shape(self) -> Linear:
        """The same without weights."""
        outputs = self.config.vocab_size if self.draft_tokens is None else len(self.draft_tokens)
        shape = Linear(self.config.hidden_size, outputs, bias=False, dtype=self.dtype, device=torch.device("meta"))
        shape.quantizable = self.head.quantizable
        return shape

    def over_vocabulary(self, logits_ND: Tensor) -> Tensor:
        """The logits of a `drafting_head` over all tokens [N, V]: minus infinity for those that are not drafted."""
        tokens = self.draft_tokens
        if tokens is None:
            return logits_ND
        logits_NV = logits_ND.new_full((len(logits_ND), self.config.vocab_size), -torch.inf)
        return logits_NV.index_copy_(1, tokens, logits_ND)

    def linears(self) -> dict[str, Linear]:
        """All linear maps by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Linear)}

    def set_view(self, diffusion: DiffusionConfig) -> Decoder:
        """Set block size, mask token and trained rows; a decoder without a diffusion view gets an empty one."""
        self.diffusion = _checked(diffusion, self.config)
        self.draft_tokens = self._draft_tokens()
        for layer in self.decoder_layers:
            if layer.diffusion is None:
                layer.diffusion = View(self.config, self.dtype, self.device)
        return self

    def set_draft_head(self, units: int) -> DraftHead:
        """Give the decoder an empty draft head for the rows of its diffusion view."""
        assert self.diffusion is not None
        rows, D = self.diffusion.trained_rows, self.config.hidden_size
        self.draft_head = DraftHead(D, units, rows, self.dtype, self.device)
        return self.draft_head

    def draft_temperatures(self) -> list[float]:
        """Per row of a block, the temperature at which its probabilities are calibrated for greedy decoding: as
        measured with the draft head, else with the view alone, else typical ones."""
        if self.draft_head is not None:
            return [1 / inverse for inverse in self.draft_head.inverse_temperatures.tolist()]
        assert self.diffusion is not None
        if self.diffusion.inverse_temperatures is not None:
            return [1 / inverse for inverse in self.diffusion.inverse_temperatures]
        return [1 / typical_inverse_temperature(row) for row in range(self.diffusion.trained_rows)]

    def _draft_tokens(self) -> Tensor | None:
        """The ids of the draft vocabulary, where there is one [D]."""
        tokens = None if self.diffusion is None else self.diffusion.draft_vocabulary
        return None if tokens is None else torch.tensor(tokens, device=self.device)


def _checked(diffusion: DiffusionConfig, config: DecoderConfig) -> DiffusionConfig:
    if diffusion.mask_token_id >= config.vocab_size:
        raise ValueError(f"mask_token_id {diffusion.mask_token_id} is outside the vocabulary of {config.vocab_size}")
    last = diffusion.draft_vocabulary[-1] if diffusion.draft_vocabulary else 0
    if last >= config.vocab_size:
        raise ValueError(f"the draft vocabulary holds token {last}, outside the vocabulary of {config.vocab_size}")
    return diffusion
