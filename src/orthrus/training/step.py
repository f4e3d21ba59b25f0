"""Loss and gradients of a training step: the AR view of the frozen backbone teaches the diffusion view.

The frozen pass runs once over the packed text and returns the keys and values of every layer and the hidden states of
the teacher. Then the rows of all blocks run in one diffusion pass; each row attends to the AR keys of its document
strictly before its root, and to its own block (arXiv 2605.12825, section 3). Only the projections and norms of the
diffusion view have gradients, and the draft head, which learns from the hidden states of the same rows. The view may
learn from the loss of the head too, so that its hidden states tell what follows each token that may stand before a row.
Logits are computed in chunks of rows.

Shapes: T tokens of the packed text, S roots, K block, N = S * K rows; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from orthrus.decoder_config import DecoderConfig
from orthrus.model.decoder import Decoder
from orthrus.model.layers import DecoderLayer, View
from orthrus.model.norms import rms_norm
from orthrus.training.attention import BlockAttention, Scores, causal_attention
from orthrus.training.blocks import Blocks
from orthrus.training.draft_head import head_loss as draft_head_loss
from orthrus.training.objectives import Objective
from orthrus.training.ops import Ops
from orthrus.training.ops import load as load_ops
from orthrus.training.rows import Collected, HeadRows, States, linked
from orthrus.training.vocabulary import Head, Rules, Targets, VocabularyLoss


@dataclass(frozen=True)
class Outcome:
    """The result of a step.

    loss: that of the objective, weighted by offset. rows_M: trained rows per offset. agreed_M: those of them whose
    argmax equals that of the teacher. head_loss: that of the draft head, if it is trained.
    """

    loss: Tensor
    rows_M: Tensor
    agreed_M: Tensor
    head_loss: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """What is minimised: the losses of view and head."""
        return self.loss if self.head_loss is None or self.head_loss is self.loss else self.loss + self.head_loss

    @property
    def rows(self) -> int:
        """The number of supervised rows."""
        return int(self.rows_M.sum())


class DraftHeadRule(NamedTuple):
    """How the draft head learns: its objective, and the weight of its loss in the gradient of the view."""

    objective: Objective
    gradient: float = 0.0


class FrozenPass(NamedTuple):
    """What the AR view computes for a text: normed final hidden states [T, D], and K and V [T, G, E] of every layer."""

    teacher_TD: Tensor
    memory: list[tuple[Tensor, Tensor]]


def step(
    decoder: Decoder,
    blocks: Blocks,
    objective: Objective,
    ops: Ops | None = None,
    *,
    decay: float = 1.0,
    head: Head | None = None,
    draft_head: DraftHeadRule | None = None,
    frozen: FrozenPass | None = None,
) -> Outcome:
    """The loss of an unprepared decoder, differentiable with respect to its parameters that require gradients.

    `ops` None selects the fastest. The weight of a row is `decay` times that of the row before it in its block. head:
    that of the decoder, where the caller keeps its transposed weights. Both views are compared over the tokens that are
    drafted, and a row whose target is none of them has no weight. draft_head: how that learns; by default
    by the same objective, and the view learns nothing from it. frozen: what `frozen_pass` computed for these blocks,
    where it is known.
    """
    ops, blocks = ops or load_ops(decoder.dtype, decoder.device), blocks.to(decoder.device)
    head = head or Head.of(decoder)
    states, trained_SM = states_of(decoder, blocks, ops, frozen), blocks.trained_SM
    offsets_N = torch.arange(blocks.trained_rows, device=decoder.device).expand_as(trained_SM)[trained_SM]
    targets_N = blocks.targets_SM[trained_SM]
    places_N = head.places_of(blocks.tokens_T[targets_N])
    trains_head = decoder.draft_head is not None and decoder.draft_head.bias.requires_grad
    collected = Collected(states, (1.0,), ops, head) if trains_head else None
    loss, agreed_N = VocabularyLoss.apply(  # type: ignore[no-untyped-call]
        states.hidden_SKD[:, : blocks.trained_rows][trained_SM],
        states.teacher_TD,
        head,
        Targets(targets_N, places_N),
        Rules(
            partial(objective.rows, ops=ops),
            partial(objective.over_blocks, weights_N=decay**offsets_N * (places_N >= 0), inside_SM=trained_SM),
            collected.add if collected else None,
        ),
        ops,
    )
    head_loss = None
    if collected is not None:
        rows, rule = collected.rows, draft_head or DraftHeadRule(objective)
        if rule.gradient:
            rows = linked(rows, states, head, rule.gradient)
        head_loss = draft_head_loss(decoder, rows, rule.objective, decay)[0]
    rows_M, agreed_M = _counts(blocks.trained_rows, offsets_N, agreed_N)
    return Outcome(loss, rows_M, agreed_M, head_loss)


def head_step(decoder: Decoder, rows: HeadRows, objective: Objective, *, decay: float = 1.0) -> Outcome:
    """The same for the draft head alone, on a frozen view: its loss, the rows that it corrects, and its agreement."""
    loss, offsets_N, agreed_N = draft_head_loss(decoder, rows, objective, decay)
    rows_M, agreed_M = _counts(rows.chosen_SM.shape[1], offsets_N, agreed_N)
    return Outcome(loss, rows_M, agreed_M, loss)


def states_of(decoder: Decoder, blocks: Blocks, ops: Ops | None = None, frozen: FrozenPass | None = None) -> States:
    """The final hidden states of both views for a packed text on the device of the decoder."""
    ops = ops or load_ops(decoder.dtype, decoder.device)
    frozen = frozen or frozen_pass(decoder, blocks, ops)
    hidden_ND = _diffusion_pass(decoder, blocks, frozen.memory, ops)
    return States(blocks, hidden_ND.unflatten(0, (-1, blocks.block_size)), frozen.teacher_TD)


def _counts(trained_rows: int, offsets_N: Tensor, agreed_N: Tensor) -> Tensor:
    """Rows per offset, and those that agree: [2, M]."""
    counts = torch.zeros(2, trained_rows, device=offsets_N.device)
    counts[0].index_add_(0, offsets_N, torch.ones_like(agreed_N, dtype=torch.float32))
    counts[1].index_add_(0, offsets_N, agreed_N.float())
    return counts


@torch.no_grad()
def frozen_pass(decoder: Decoder, blocks: Blocks, ops: Ops | None = None) -> FrozenPass:
    """The AR pass over the whole text, on the device of the decoder."""
    ops = ops or load_ops(decoder.dtype, decoder.device)
    offsets_T = blocks.offsets_T
    ropes = [rope.rows(offsets_T, len(offsets_T)) for rope in decoder.ropes]
    borders = (*blocks.starts[1:], len(blocks.tokens_T))
    memory: list[tuple[Tensor, Tensor]] = []

    def causal(layer: DecoderLayer, normed_TD: Tensor) -> Tensor:
        q, k, v = _project(decoder, layer.ar, normed_TD, ropes[layer.kind.rope], ops)
        memory.append((k, v))
        attention = torch.empty_like(q)
        for start, stop in zip(blocks.starts, borders, strict=True):
            one, two, three = (t[start:stop].transpose(0, 1) for t in (q, k, v))
            out = causal_attention(one, two, three, _scores(layer, decoder.config))
            attention[start:stop] = out.transpose(0, 1)
        output_TD: Tensor = layer.ar.o(attention.flatten(1))
        return output_TD

    hidden, delta = decoder.embed(blocks.tokens_T), None
    for layer in decoder.decoder_layers:
        hidden, delta = layer(hidden, delta, partial(causal, layer), ops)
    return FrozenPass(decoder.norm.of_sum(hidden, delta, ops)[1], memory)


def _diffusion_pass(decoder: Decoder, blocks: Blocks, memory: list[tuple[Tensor, Tensor]], ops: Ops) -> Tensor:
    """The diffusion pass over all blocks: normed final hidden states [N, D]."""
    K, config = blocks.block_size, decoder.config
    ids_SK = torch.full((len(blocks.roots_S), K), decoder.mask_token_id, device=decoder.device)
    ids_SK[:, 0] = blocks.tokens_T[blocks.roots_S]
    positions_SK = blocks.offsets_T[blocks.roots_S][:, None] + torch.arange(K, device=decoder.device)
    ropes = [rope.rows(positions_SK.flatten(), int(positions_SK.max()) + 1) for rope in decoder.ropes]

    def in_blocks(layer: DecoderLayer, text: tuple[Tensor, Tensor], normed_ND: Tensor) -> Tensor:
        view = layer.view("diffusion")
        q, k, v = _project(decoder, view, normed_ND, ropes[layer.kind.rope], ops)
        how = _scores(layer, config)
        attention = BlockAttention.apply(q, k, v, text, blocks, ops, how)  # type: ignore[no-untyped-call]
        output_ND: Tensor = view.o(attention.flatten(1))
        return output_ND

    hidden, delta = decoder.embed(ids_SK.flatten()), None
    for layer, text in zip(decoder.decoder_layers, memory, strict=True):
        hidden, delta = layer(hidden, delta, partial(in_blocks, layer, text), ops)
    return decoder.norm.of_sum(hidden, delta, ops)[1]


def _scores(layer: DecoderLayer, config: DecoderConfig) -> Scores:
    return Scores(config.attention_scale, config.attention_soft_cap, layer.kind.window, layer.sinks)


def _project(
    decoder: Decoder, view: View, normed: Tensor, rope: tuple[Tensor, Tensor], ops: Ops
) -> tuple[Tensor, Tensor, Tensor]:
    """q [N, H, E], k and v [N, G, E]; q and k are normed and rotated."""
    config, rotated = decoder.config, partial(ops.rotate, rope=rope)
    qkv = view.project(normed).view(len(normed), -1, config.head_dim)
    q, k, v = qkv.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
    if view.norms is None:
        return rotated(q), rotated(k), v
    q, k = (rotated(q), rotated(k)) if config.qk_norm_last else (q, k)
    q, k = (
        rms_norm(t, weight, config.norm_eps, config.norm_offset) for t, weight in zip((q, k), view.norms, strict=True)
    )
    return (q, k, v) if config.qk_norm_last else (rotated(q), rotated(k), v)
