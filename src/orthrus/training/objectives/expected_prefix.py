"""Expected accepted prefix: a draft counts only where all drafts before it in its block are accepted.

`rejection` accepts the draft of a row with probability a = sum over v of min(p_AR, p_diffusion), given the tokens of
the text before it, so it accepts the first j + 1 drafts of a block with the product of a over rows 0 to j. Their sum
over j is the expected length of the accepted prefix, which is the reward. The draft head leaves row 0 as it is; its
prefix begins at row 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orthrus.training.objectives import shares
from orthrus.training.objectives.total_variation import loss_and_gradient, outcome_losses

__all__ = ["loss_and_gradient", "outcome_losses", "over_blocks"]


def over_blocks(losses_N: Tensor, *, weights_N: Tensor, inside_SM: Tensor) -> Tensor:
    """1 less the weighted mean, over rows, of the probability that the drafts up to a row are accepted; `losses_N` are
    the probabilities 1 - a that a row alone is rejected."""
    rejected_SM = torch.zeros(inside_SM.shape, dtype=losses_N.dtype, device=losses_N.device)
    accepted_SM = 1 - rejected_SM.masked_scatter(inside_SM, losses_N)
    return 1 - accepted_SM.cumprod(1)[inside_SM] @ shares(weights_N)
