"""The training of a draft head on the rows of blocks, and the calibration of its probabilities.

A head learns from the hidden states and the logits of a view, and changes neither. In training, the token before each
row is that of the text. Its targets are a mixture of the distribution of the AR view and of the tokens of the text,
both over the candidates of the row and the rest of the vocabulary as one more outcome.

Shapes: S roots, K block, M trained rows, N rows, C candidates; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from orthrus.model.decoder import Decoder
from orthrus.model.draft_head import CANDIDATES, typical_inverse_temperature
from orthrus.training.blocks import Blocks
from orthrus.training.vocabulary import Head

TOKEN_SHARE = 0.2
"""The weight of the tokens of the text in the targets; the rest is that of the AR view."""
CHUNK_ROWS = 512
"""Rows per chunk of logits."""
INVERSE_TEMPERATURES = torch.logspace(-1, 1, 25, base=4.0).tolist()
"""Those that the calibration tries: from 1/4 to 4."""


@dataclass(frozen=True)
class States:
    """Blocks and the final hidden states of their rows [S, K, D], and those of the AR view over their text [T, D]."""

    blocks: Blocks
    hidden_SKD: Tensor
    teacher_TD: Tensor


@dataclass(frozen=True)
class HeadRows:
    """Rows of blocks as a head sees them.

    hidden_ND, before_ND: final hidden states of the rows and of the rows before them. tokens_N: the tokens before them.
    candidates_NC, logits_NC: the tokens of the largest logits. rest_N: log of the sum of exp of all other logits.
    targets_NX: the target distribution, X = C + 1. offsets_N: the row of the block.
    """

    hidden_ND: Tensor
    before_ND: Tensor
    tokens_N: Tensor
    candidates_NC: Tensor
    logits_NC: Tensor
    rest_N: Tensor
    targets_NX: Tensor
    offsets_N: Tensor


@torch.no_grad()
def head_rows(decoder: Decoder, states: States) -> HeadRows:
    """The trained rows of blocks, without the first of each block, which knows the token before it."""
    blocks, lm_head = states.blocks, Head(decoder.head.weight, decoder.config.logit_soft_cap)
    blocks_N, offsets_N = (blocks.trained_SM[:, 1:]).nonzero(as_tuple=True)
    offsets_N = offsets_N + 1
    targets_N = blocks.targets_SM[blocks_N, offsets_N]
    hidden_ND, before_ND = (states.hidden_SKD[blocks_N, offsets_N - back] for back in (0, 1))
    parts = []
    for rows in torch.arange(len(offsets_N), device=offsets_N.device).split(CHUNK_ROWS):
        scores_NV = lm_head.logits(hidden_ND[rows]).float()
        top_NC, chosen_NC = scores_NV.topk(CANDIDATES)
        rest_N = scores_NV.scatter_(1, chosen_NC, -torch.inf).logsumexp(-1)
        positions_P, which_N = targets_N[rows].unique(return_inverse=True)
        p_PV = lm_head.logits(states.teacher_TD[positions_P - 1]).float().softmax(-1)
        tokens_NC = (blocks.tokens_T[targets_N[rows], None] == chosen_NC).float()
        mixed_NC = (1 - TOKEN_SHARE) * p_PV[which_N[:, None], chosen_NC] + TOKEN_SHARE * tokens_NC
        other_N1 = (1 - mixed_NC.sum(-1, keepdim=True)).clamp(min=0)
        parts.append((chosen_NC, top_NC, rest_N, torch.cat((mixed_NC, other_N1), dim=-1)))
    candidates, logits, rest, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    tokens_N = blocks.tokens_T[targets_N - 1]
    return HeadRows(hidden_ND, before_ND, tokens_N, candidates, logits, rest, targets, offsets_N)


def head_loss(decoder: Decoder, rows: HeadRows, weights_N: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean of the cross-entropy in nats, and which rows' likeliest outcome is that of their target [N]."""
    log_q = torch.cat((rows.logits_NC + corrections(decoder, rows), rows.rest_N[:, None]), dim=-1).log_softmax(-1)
    losses_N = -(rows.targets_NX * log_q).sum(-1)
    return losses_N @ weights_N / weights_N.sum(), log_q.argmax(-1) == rows.targets_NX.argmax(-1)


def corrections(decoder: Decoder, rows: HeadRows) -> Tensor:
    """What the head adds to the logits of the candidates [N, C]."""
    head, embedding_VD = decoder.draft_head, decoder.embedding
    assert head is not None
    directions_ND = head.direction(head.context(rows.hidden_ND, rows.before_ND), embedding_VD[rows.tokens_N])
    return (embedding_VD[rows.candidates_NC].float() @ directions_ND[:, :, None])[:, :, 0]


@torch.no_grad()
def calibrate(decoder: Decoder, texts: Iterable[States]) -> None:
    """Set the inverse temperature of every row of a block: the likeliest one for the tokens that the AR view chooses.

    The weight of a row is the probability of the tokens before it in its block, since a tree holds likely paths. A row
    without data gets a typical inverse temperature.
    """
    head = decoder.draft_head
    assert head is not None
    rows = len(head.inverse_temperatures)
    likelihoods_MI = torch.zeros(rows, len(INVERSE_TEMPERATURES), dtype=torch.float64, device=decoder.device)
    for states in texts:
        weights_S = torch.ones(len(states.hidden_SKD), device=decoder.device)
        for row in range(rows):
            inside_S = states.blocks.trained_SM[:, row]
            if bool(inside_S.any()):
                scores_SV, targets_S = _corrected_scores(decoder, states, row, inside_S)
                chosen_S = _ar_tokens(decoder, states, targets_S)
                likelihoods_MI[row] += _likelihoods(scores_SV, chosen_S, weights_S[inside_S])
                log_p_SV = scores_SV.log_softmax(-1)
                weights_S[inside_S] *= log_p_SV.gather(1, states.blocks.tokens_T[targets_S, None])[:, 0].exp()
    for row, likelihoods in enumerate(likelihoods_MI.tolist()):
        best = max(likelihoods)
        measured = INVERSE_TEMPERATURES[likelihoods.index(best)] if best < 0 else typical_inverse_temperature(row)
        head.inverse_temperatures[row] = measured


def _corrected_scores(decoder: Decoder, states: States, row: int, inside_S: Tensor) -> tuple[Tensor, Tensor]:
    """The corrected logits [S, V] of one row of the blocks `inside_S`, and the positions of its targets."""
    blocks = states.blocks
    targets_S, hidden_SD = blocks.targets_SM[inside_S, row], states.hidden_SKD[inside_S, row]
    scores_SV = Head(decoder.head.weight, decoder.config.logit_soft_cap).logits(hidden_SD).float()
    if row:
        top_SC, chosen_SC = scores_SV.topk(CANDIDATES)
        before_SD, tokens_S = states.hidden_SKD[inside_S, row - 1], blocks.tokens_T[targets_S - 1]
        empty = hidden_SD.new_empty(0)
        rows = HeadRows(hidden_SD, before_SD, tokens_S, chosen_SC, top_SC, empty, empty, empty)
        scores_SV.scatter_(1, chosen_SC, top_SC + corrections(decoder, rows))
    return scores_SV, targets_S


def _ar_tokens(decoder: Decoder, states: States, targets_S: Tensor) -> Tensor:
    lm_head = Head(decoder.head.weight, decoder.config.logit_soft_cap)
    return lm_head.logits(states.teacher_TD[targets_S - 1]).argmax(-1)


def _likelihoods(scores_SV: Tensor, chosen_S: Tensor, weights_S: Tensor) -> Tensor:
    """The weighted log likelihood of the chosen tokens at each of `INVERSE_TEMPERATURES`, fp64."""
    gold_S = scores_SV.gather(1, chosen_S[:, None])[:, 0]
    sums = [((beta * gold_S - (beta * scores_SV).logsumexp(-1)) * weights_S).sum() for beta in INVERSE_TEMPERATURES]
    return torch.stack(sums).double()
