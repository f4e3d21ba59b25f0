"""The training of a draft head on the rows of blocks, and the calibration of its probabilities.

A head learns from the hidden states and the logits of a view, and changes neither. In training, the token before each
row is that of the text. Its targets are a mixture of the distribution of the AR view and of the tokens of the text,
both over the candidates of the row and the rest of the vocabulary as one more outcome.

Shapes: as in `rows`, X = C + 1 outcomes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from orthrus.model.decoder import Decoder
from orthrus.model.draft_head import typical_inverse_temperature
from orthrus.training.objectives import Objective
from orthrus.training.rows import HeadRows

INVERSE_TEMPERATURES = tuple(0.6 * 1.13**power for power in range(13))
"""Those that the calibration tries: from 0.6 to 2.6."""


def head_loss(
    decoder: Decoder, rows: HeadRows, objective: Objective, decay: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows [N] that the head corrects, all with a target but the first of each block: the loss of the objective,
    weighted by `decay` per offset; their offsets; and whether the likeliest outcome is that of the target."""
    corrected_SM, share = rows.inside_SM[:, 1:], objective.head_token_share
    blocks_N, offsets_N = corrected_SM.nonzero(as_tuple=True)
    offsets_N = offsets_N + 1
    candidates_NC = rows.candidates_SMC[blocks_N, offsets_N]
    text_N1 = rows.text_SL[blocks_N, offsets_N + 1][:, None]
    mixed_NC = (1 - share) * rows.teacher_SMC[blocks_N, offsets_N] + share * (text_N1 == candidates_NC)
    targets_NX = torch.cat((mixed_NC, (1 - mixed_NC.sum(-1, keepdim=True)).clamp(min=0)), dim=-1)
    corrected_NC = rows.logits_SMC[blocks_N, offsets_N] + corrections(decoder, rows, blocks_N, offsets_N)
    log_q_NX = torch.cat((corrected_NC, rows.rests_SMI[blocks_N, offsets_N, :1]), dim=-1).log_softmax(-1)
    losses_N = objective.outcomes(log_q_NX, targets_NX)
    loss = objective.over_blocks(losses_N, weights_N=decay**offsets_N, inside_SM=corrected_SM)
    return loss, offsets_N, log_q_NX.argmax(-1) == targets_NX.argmax(-1)


def corrections(decoder: Decoder, rows: HeadRows, blocks_N: Tensor, offsets_N: Tensor) -> Tensor:
    """What the head adds to the logits of the candidates of some rows after the tokens of the text [N, C]."""
    head, embedding = decoder.draft_head, decoder.embedding
    assert head is not None
    context_NM = head.context(rows.hidden_SMD[blocks_N, offsets_N], rows.hidden_SMD[blocks_N, offsets_N - 1])
    directions_ND = head.direction(context_NM, embedding(rows.text_SL[blocks_N, offsets_N]))
    candidates_NCD = embedding(rows.candidates_SMC[blocks_N, offsets_N]).float()
    return (candidates_NCD @ directions_ND[:, :, None])[:, :, 0]


@torch.no_grad()
def calibrate(decoder: Decoder, rows: HeadRows) -> None:
    """Set the inverse temperature of every row of a block: the one of `INVERSE_TEMPERATURES`, those of `rows`, at which
    the tokens that the AR view chooses are likeliest.

    The weight of a row is the probability of the tokens before it in its block, since a tree holds likely paths. A row
    without data gets a typical inverse temperature. Without a draft head they are those of the view alone.
    """
    inverses, view = fitted(decoder, rows), decoder.diffusion
    if decoder.draft_head is not None:
        decoder.draft_head.inverse_temperatures.copy_(torch.tensor(inverses))
    elif view is not None:
        decoder.set_view(replace(view, inverse_temperatures=tuple(inverses)))


@torch.no_grad()
def fitted(decoder: Decoder, rows: HeadRows) -> list[float]:
    """The inverse temperature of every row of a block, with the draft head or without one: see `calibrate`."""
    inverses_I = torch.tensor(INVERSE_TEMPERATURES, device=decoder.device)
    found, weights_S = [], torch.ones(len(rows), device=decoder.device)
    for row in range(rows.chosen_SM.shape[1]):
        (blocks_N,) = (rows.counts_S > row).nonzero(as_tuple=True)
        corrected_NC = corrected_logits(decoder, rows, blocks_N, row)
        scaled_NCI = corrected_NC[:, :, None] * inverses_I
        totals_NI = scaled_NCI.logsumexp(1).logaddexp(rows.rests_SMI[blocks_N, row])
        is_chosen_NC = rows.candidates_SMC[blocks_N, row] == rows.chosen_SM[blocks_N, row, None]
        among_N, chosen_NC = is_chosen_NC.any(-1), torch.where(is_chosen_NC, corrected_NC, 0.0)
        logits_N = torch.where(among_N, chosen_NC.sum(-1), rows.chosen_logits_SM[blocks_N, row])
        likelihoods_I = weights_S[blocks_N].double() @ (logits_N[:, None] * inverses_I - totals_NI).double()
        measured = bool(weights_S[blocks_N].any())
        inverse = INVERSE_TEMPERATURES[int(likelihoods_I.argmax())] if measured else typical_inverse_temperature(row)
        found.append(inverse)
        nearest = nearest_inverse(inverse)
        is_text_NC = rows.candidates_SMC[blocks_N, row] == rows.text_SL[blocks_N, row + 1, None]
        log_p_NC = scaled_NCI[:, :, nearest] - totals_NI[:, nearest, None]
        weights_S[blocks_N] *= torch.where(is_text_NC, log_p_NC.exp(), 0.0).sum(-1)
    return found


def corrected_logits(decoder: Decoder, rows: HeadRows, blocks_N: Tensor, row: int) -> Tensor:
    """The logits of the candidates of one row of some blocks, after the tokens of the text [N, C]."""
    logits_NC = rows.logits_SMC[blocks_N, row]
    if decoder.draft_head is None or row == 0:
        return logits_NC
    return logits_NC + corrections(decoder, rows, blocks_N, torch.full_like(blocks_N, row))


def nearest_inverse(inverse: float) -> int:
    """The index of the nearest of `INVERSE_TEMPERATURES`."""
    return min(range(len(INVERSE_TEMPERATURES)), key=lambda index: abs(INVERSE_TEMPERATURES[index] - inverse))
