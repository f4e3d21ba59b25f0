"""Rows of draft blocks as a draft head sees them: what its loss, its calibration and a replay need, and no more.

A frozen view gives the same rows at every epoch, so they are computed once per text and may be kept on disk.

Shapes: S blocks, M trained rows, N rows, C candidates, I inverse temperatures; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from orthrus.model.decoder import Decoder
from orthrus.model.draft_head import CANDIDATES
from orthrus.training.blocks import Blocks
from orthrus.training.ops import Ops
from orthrus.training.ops import load as load_ops
from orthrus.training.vocabulary import Head, Logits, logits_in_chunks


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


class Collected:
    """The trained rows of blocks whose states are known, from chunks of logits."""

    def __init__(self, states: States, inverses: Sequence[float], ops: Ops, head: Head) -> None:
        blocks, hidden_SKD = states.blocks, states.hidden_SKD.detach()
        S, M, inside_SM = len(blocks.roots_S), blocks.trained_rows, blocks.trained_SM
        self._inverses, self._ops, self._head = inverses, ops, head
        self.rows = empty(S, M, hidden_SKD.shape[-1], len(inverses), hidden_SKD.dtype, inside_SM.device)
        self._places_N = inside_SM.flatten().nonzero()[:, 0]
        text_SL = torch.cat((blocks.roots_S[:, None], blocks.targets_SM), dim=1)
        self.rows.text_SL.copy_(blocks.tokens_T[text_SL.clamp(max=len(blocks.tokens_T) - 1)])
        self.rows.counts_S.copy_(inside_SM.sum(-1))
        self.rows.hidden_SMD[inside_SM] = hidden_SKD[:, :M][inside_SM]

    def add(self, chunk: Logits) -> None:
        """Take the logits of some rows; those that `rows` lacks are zero in it."""
        which_N, teacher_PV = chunk.which_N, chunk.teacher_PV
        best_PC, best_logits_PC, rests_P1 = self._ops.candidates(teacher_PV, (1.0,))
        totals_P = rests_P1[:, 0].logaddexp(best_logits_PC.logsumexp(-1))
        tokens_NC, top_NC, rests_NI = self._ops.candidates(chunk.student_NV, self._inverses)
        shares_NC = (teacher_PV[which_N[:, None], tokens_NC].float() - totals_P[which_N, None]).exp()
        chosen_N, places_N, rows = best_PC[which_N, 0], self._places_N[chunk.rows_N], self.rows
        chosen_logits_N = chunk.student_NV.gather(1, chosen_N[:, None])[:, 0]
        for target, values in (
            (rows.candidates_SMC, self._head.tokens_at(tokens_NC)), (rows.logits_SMC, top_NC),
            (rows.rests_SMI, rests_NI), (rows.teacher_SMC, shares_NC),
            (rows.chosen_SM, self._head.tokens_at(chosen_N)), (rows.chosen_logits_SM, chosen_logits_N),
        ):  # fmt: skip
            target.flatten(0, 1)[places_N] = values.to(target.dtype)


def linked(rows: HeadRows, states: States, head: Head, weight: float) -> HeadRows:
    """The same rows, of which the hidden states and the logits of the candidates pass `weight` times their gradient on
    to the states. The rest of the vocabulary is taken as a constant."""
    M = rows.chosen_SM.shape[1]
    fresh_SMD = states.hidden_SKD[:, :M]
    hidden_SMD = rows.hidden_SMD + weight * (fresh_SMD - fresh_SMD.detach()) * rows.inside_SM[:, :, None]
    places_SMC = head.places_of(rows.candidates_SMC).clamp(min=0)  # rows without a target have candidates of no meaning
    logits_SMC = (head.weight_VD[places_SMC] @ hidden_SMD[:, :, :, None])[:, :, :, 0].float()
    return replace(rows, hidden_SMD=hidden_SMD, logits_SMC=head.capped(logits_SMC))


@torch.no_grad()
def head_rows(decoder: Decoder, states: States, inverses: Sequence[float] = (1.0,), ops: Ops | None = None) -> HeadRows:
    """The trained rows of blocks whose states are known."""
    blocks, head = states.blocks, Head.of(decoder)
    collected = Collected(states, inverses, ops or load_ops(decoder.dtype, decoder.device), head)
    hidden_ND = states.hidden_SKD[:, : blocks.trained_rows][blocks.trained_SM]
    positions_N = blocks.targets_SM[blocks.trained_SM]
    for chunk in logits_in_chunks(head, hidden_ND, states.teacher_TD, positions_N):
        collected.add(chunk)
    return collected.rows
