"""Replay of two-pass cycles with trees of drafts over held-out texts, from the rows of the blocks at all their roots.

A cycle goes from root s to s + 1 + the number of accepted drafts, as in decoding whose targets are the tokens of the
text. The walks of all texts take their steps together.

Shapes: B walks, P candidates of the row before; the rest as in `rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.backends.draft_tree import candidates_after
from orthrus.drafters.growth import grow
from orthrus.drafters.tree import DraftTree
from orthrus.model.decoder import Decoder
from orthrus.training.draft_head import INVERSE_TEMPERATURES, nearest_inverse
from orthrus.training.rows import HeadRows

NODES = 8
"""Drafts of a tree."""


@torch.no_grad()
def accepted_drafts(decoder: Decoder, rows: HeadRows, nodes: int = NODES) -> list[int]:
    """Accepted drafts of every cycle. `rows` are the blocks at all roots of each turn, in order, with the rests at
    `INVERSE_TEMPERATURES`."""
    inverses = [nearest_inverse(1 / temperature) for temperature in decoder.draft_temperatures()]
    walks, accepted = _turns(rows), []
    while walks:
        current = rows[torch.tensor([start for start, _ in walks], device=rows.counts_S.device)]
        candidates, log_p = current.candidates_SMC.tolist(), _log_probabilities(decoder, current, inverses).tolist()
        texts, counts, going = current.text_SL[:, 1:].tolist(), current.counts_S.tolist(), []
        for walk, (start, stop) in enumerate(walks):
            tree = _tree(candidates[walk], log_p[walk], nodes)
            accepted.append(_accepted(tree, texts[walk][: counts[walk]]))
            if start + accepted[-1] + 1 < stop:
                going.append((start + accepted[-1] + 1, stop))
        walks = going
    return accepted


def _turns(rows: HeadRows) -> list[tuple[int, int]]:
    """Per turn, its first root in decoding, which is its first token, and the end of its blocks: the last block of a
    turn is the only one with a single target."""
    ends = ((rows.counts_S == 1).nonzero()[:, 0] + 1).tolist()
    return [(start + 1, end) for start, end in zip([0, *ends], ends, strict=False) if start + 1 < end]


def _log_probabilities(decoder: Decoder, rows: HeadRows, inverses: list[int]) -> Tensor:
    """Calibrated log probabilities of the candidates of every row after each candidate of the row before
    [B, M, P, C]."""
    logits_BMPC = rows.logits_SMC[:, :, None].repeat(1, 1, rows.logits_SMC.shape[2], 1)
    head, embedding = decoder.draft_head, decoder.embedding
    if head is not None:
        context_BMU = head.context(rows.hidden_SMD[:, 1:], rows.hidden_SMD[:, :-1])
        directions_BMPD = head.direction(context_BMU[:, :, None], embedding(rows.candidates_SMC[:, :-1]))
        candidates_BMCD = embedding(rows.candidates_SMC[:, 1:]).float()
        logits_BMPC[:, 1:] += directions_BMPD @ candidates_BMCD.transpose(2, 3)
    chosen_M = torch.tensor(inverses, device=logits_BMPC.device)
    scaled_BMPC = logits_BMPC * torch.tensor(INVERSE_TEMPERATURES, device=chosen_M.device)[chosen_M, None, None]
    rests_BM = rows.rests_SMI[:, torch.arange(len(chosen_M), device=chosen_M.device), chosen_M]
    return scaled_BMPC - scaled_BMPC.logsumexp(-1, keepdim=True).logaddexp(rests_BM[:, :, None, None])


def _tree(candidates: list[list[int]], log_p: list[list[list[float]]], nodes: int) -> DraftTree:
    """The likeliest tree: see `candidates_after`."""
    return grow(lambda path: candidates_after(path, candidates, log_p) if len(path) < len(candidates) else (), nodes)


def _accepted(tree: DraftTree, text: list[int]) -> int:
    """How many drafts of a tree are accepted where `text` follows the root."""
    node, depth = -1, 0
    for index, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if parent == node and depth < len(text) and token == text[depth]:
            node, depth = index, depth + 1
    return depth
