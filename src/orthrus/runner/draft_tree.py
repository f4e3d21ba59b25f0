"""A tree of drafts from the rows of a block, by the kernels of a runner and the draft head of its decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from orthrus.backends.draft_tree import DraftTree, HeadInputs
from orthrus.runner.runner import Runner


def draft_tree(
    runner: Runner,
    logits_RV: Tensor,
    hidden_SD: Tensor | None,
    temperatures: Sequence[float],
    nodes: int,
    *,
    first_token: int | None = None,
) -> DraftTree:
    """The likeliest tree of at most `nodes` drafts: see `backends.draft_tree`.

    logits_RV: the logits of the rows after the processors that apply to drafts. For sampled targets, noise times the
    sampling temperature may be added: the nodes are then ranked by the noise that their targets will meet.
    hidden_SD: the final hidden states of these rows, from which the draft head, if there is one, goes on; with the
    `first_token` before the first row, that of the row before it comes first. None leaves the head out.
    temperatures: per row, usually those of `Decoder.draft_temperatures`.
    """
    head, inputs = runner.decoder.draft_head, None
    if head is not None and hidden_SD is not None:
        inputs = HeadInputs(head, runner.decoder.embedding, hidden_SD, first_token)
    return runner.kernels.draft_tree(logits_RV, temperatures, nodes, inputs)
