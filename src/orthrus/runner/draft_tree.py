"""The choice of drafts from the rows of a block, by the kernels of a runner and the draft head of its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from orthrus.backends.draft_tree import HeadInputs
from orthrus.backends.interface import Kernels
from orthrus.backends.torch import TorchKernels
from orthrus.drafters.tree import DraftTree
from orthrus.model.draft_head import CANDIDATES
from orthrus.ngrams import Lookup
from orthrus.runner.runner import Runner


@dataclass(frozen=True)
class BlockRows:
    """The rows of one block, from which drafts are chosen.

    inputs: what the draft head needs; None leaves the head out.
    """

    kernels: Kernels
    inputs: HeadInputs | None = None

    @staticmethod
    def of(runner: Runner, hidden_SD: Tensor | None, first_token: int | None = None) -> BlockRows:
        """The rows with these final hidden states. With the `first_token` before the first row, the hidden state of the
        row before it comes first. None leaves the draft head out."""
        head = runner.decoder.draft_head
        if head is None or hidden_SD is None:
            return BlockRows(runner.kernels)
        return BlockRows(runner.kernels, HeadInputs(head, runner.decoder.embedding, hidden_SD, first_token))

    @staticmethod
    def independent() -> BlockRows:
        """Rows without a draft head, by the reference implementation."""
        return BlockRows(TorchKernels())

    def tree(
        self, scores_RV: Tensor, temperatures: Sequence[float], nodes: int | None, lookup: Lookup | None = None
    ) -> DraftTree:
        """The likeliest tree of at most `nodes` drafts, None for a chain: see `backends.draft_tree`.

        scores_RV: the logits of the rows after the processors that apply to drafts. For sampled targets, noise times
        the sampling temperature may be added: the nodes are then ranked by the noise that their targets will meet.
        temperatures: per row, usually those of `Decoder.draft_temperatures`. lookup: the text whose repetitions tell
        what may follow.
        """
        return self.kernels.draft_tree(scores_RV, temperatures, nodes, self.inputs, lookup)

    def follows(self, path: Sequence[int]) -> bool:
        """Whether the draft head corrects the candidates that follow a path."""
        return self.inputs is not None and (len(path) > 0 or self.inputs.first_token is not None)

    def after(self, path: Sequence[int], scores_1V: Tensor, temperature: float) -> DraftTree:
        """The candidates that follow a path, likeliest first, by the scores of the row that predicts them."""
        inputs, row = None, len(path)
        if self.inputs is not None and self.follows(path):
            known = self.inputs.first_token is not None
            states = self.inputs.hidden_SD[row - 1 + known : row + 1 + known]
            before = path[-1] if path else self.inputs.first_token
            inputs = replace(self.inputs, hidden_SD=states, first_token=before)
        return self.kernels.draft_tree(scores_1V, [temperature], CANDIDATES, inputs)
