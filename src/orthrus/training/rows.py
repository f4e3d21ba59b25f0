"""Rows of draft blocks as a draft head sees them: what its loss, its calibration and a replay need, and no more.

A frozen view gives the same rows at every epoch, so they are computed once per text and may be kept on disk.

Shapes: S blocks, M trained rows, N rows, C candidates, I inverse temperatures; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from orthrus.model.decoder import Decoder
from orthrus.model.draft_head import CANDIDATES
from orthrus.training.blocks import Blocks
from orthrus.training.ops import Ops
from orthrus.training.ops import load as load_ops
from orthrus.training.vocabulary import Head

CHUNK_ROWS = 512
"""Rows per chunk of logits."""


@dataclass(frozen=True)
class States:
    """Blocks, the final hidden states of their rows [S, K, D], and those of the AR view over their text [T, D]."""

    blocks: Blocks
    hidden_SKD: Tensor
    teacher_TD: Tensor


@dataclass(frozen=True)
class HeadRows:
    """The trained rows of blocks. Rows without a target are zero.

    text_SL: the root and the M tokens after it: token j stands before row j, token j + 1 is its target. counts_S: rows
    with a target. hidden_SMD: final hidden states. candidates_SMC, logits_SMC: the tokens of the largest logits.
    rests_SMI: for each inverse temperature, the log of the sum of exp(inverse * logit) over all other tokens.
    teacher_SMC: the probabilities of the candidates in the AR view. chosen_SM, chosen_logits_SM: the likeliest token of
    the AR view, and its logit in the diffusion view.
    """

    text_SL: Tensor
    counts_S: Tensor
    hidden_SMD: Tensor
    candidates_SMC: Tensor
    logits_SMC: Tensor
    rests_SMI: Tensor
    teacher_SMC: Tensor
    chosen_SM: Tensor
    chosen_logits_SM: Tensor

    def __len__(self) -> int:
        return len(self.counts_S)

    @property
    def inside_SM(self) -> Tensor:
        """Which rows have a target."""
        return torch.arange(self.chosen_SM.shape[1], device=self.counts_S.device) < self.counts_S[:, None]

    def __getitem__(self, blocks_S: Tensor | slice) -> HeadRows:
        """Some of the blocks."""
        return HeadRows(*(getattr(self, field.name)[blocks_S] for field in fields(self)))

    def to(self, device: torch.device) -> HeadRows:
        """A copy on another device."""
        return HeadRows(*(getattr(self, field.name).to(device) for field in fields(self)))


def joined(parts: Sequence[HeadRows]) -> HeadRows:
    """The blocks of all parts."""
    return HeadRows(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(HeadRows)))


def empty(
    blocks: int, rows: int, hidden_size: int, inverses: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> HeadRows:
    """Zeros of the shapes and types of rows."""
    S, M, C = blocks, rows, CANDIDATES
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((S, M + 1), torch.int32), ((S,), torch.int32), ((S, M, hidden_size), dtype),
        ((S, M, C), torch.int32), ((S, M, C), torch.float32), ((S, M, inverses), torch.float32),
        ((S, M, C), torch.float32), ((S, M), torch.int32), ((S, M), torch.float32),
    ]  # fmt: skip
    return HeadRows(*(torch.zeros(shape, dtype=kind, device=device) for shape, kind in shapes))


@torch.no_grad()
def head_rows(decoder: Decoder, states: States, inverses: Sequence[float] = (1.0,), ops: Ops | None = None) -> HeadRows:
    """The trained rows of blocks whose states are known."""
    ops, blocks = ops or load_ops(decoder.dtype, decoder.device), states.blocks
    S, M, inside_SM = len(blocks.roots_S), blocks.trained_rows, blocks.trained_SM
    rows = empty(S, M, states.hidden_SKD.shape[-1], len(inverses), states.hidden_SKD.dtype, inside_SM.device)
    text_SL = torch.cat((blocks.roots_S[:, None], blocks.targets_SM), dim=1)
    rows.text_SL.copy_(blocks.tokens_T[text_SL.clamp(max=len(blocks.tokens_T) - 1)])
    rows.counts_S.copy_(inside_SM.sum(-1))
    hidden_ND, targets_N = states.hidden_SKD[:, :M][inside_SM].detach(), blocks.targets_SM[inside_SM]
    rows.hidden_SMD[inside_SM] = hidden_ND
    lm_head, parts = Head(decoder.head.weight, decoder.config.logit_soft_cap), []
    order_N = targets_N.argsort(stable=True)  # rows with one target share a row of the AR view
    for chunk in order_N.split(CHUNK_ROWS):
        positions_P, which_N = targets_N[chunk].unique_consecutive(return_inverse=True)
        teacher_PV = lm_head.logits(states.teacher_TD[positions_P - 1])
        best_PC, best_logits_PC, rests_P1 = ops.candidates(teacher_PV, (1.0,))
        totals_P = rests_P1[:, 0].logaddexp(best_logits_PC.logsumexp(-1))
        logits_NV = lm_head.logits(hidden_ND[chunk])
        tokens_NC, top_NC, rests_NI = ops.candidates(logits_NV, inverses)
        shares_NC = (teacher_PV[which_N[:, None], tokens_NC].float() - totals_P[which_N, None]).exp()
        chosen_N = best_PC[which_N, 0]
        parts.append((tokens_NC, top_NC, rests_NI, shares_NC, chosen_N, logits_NV.gather(1, chosen_N[:, None])[:, 0]))
    names = ("candidates_SMC", "logits_SMC", "rests_SMI", "teacher_SMC", "chosen_SM", "chosen_logits_SM")
    for name, values in zip(names, zip(*parts, strict=True), strict=True):
        target, value = getattr(rows, name), torch.cat(values)
        ordered = torch.empty_like(value)
        ordered[order_N] = value
        target[inside_SM] = ordered.to(target.dtype)
    return rows
