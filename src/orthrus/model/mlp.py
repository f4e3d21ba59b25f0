"""The MLP of a layer, and a mixture of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orthrus.decoder_config import DecoderConfig
from orthrus.model.linear import Linear
from orthrus.model.ops import LayerOps, activate, sigmoid


class MLP(nn.Module):
    """down(activation(gate) * up), with gate and up fused; down(activation(up)) in a family without gates."""

    def __init__(self, config: DecoderConfig, size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        D, bias = config.hidden_size, config.mlp_bias
        self.activation, self.gated = config.activation, config.gated
        self.gate_up = Linear(D, 2 * size if config.gated else size, bias=bias, dtype=dtype, device=device)
        self.down = Linear(size, D, bias=bias, dtype=dtype, device=device)

    def forward(self, x_ND: Tensor, ops: LayerOps, copies: tuple[nn.Module, nn.Module] | None = None) -> Tensor:
        """y [N, D]. `copies` replaces gate_up and down (low-precision copies for passes that only draft)."""
        gate_up, down = copies or (self.gate_up, self.down)
        inner_NF = gate_up(x_ND)
        y_ND: Tensor = down(ops.gate(inner_NF, self.activation) if self.gated else activate(inner_NF, self.activation))
        return y_ND


class Experts(nn.Module):
    """A mixture of experts: each row runs through the MLPs that its router ranks highest, A of them, and through one
    that all rows share, where the family has it.

    No bit of a row depends on the other rows: each expert runs the rows that chose it through its own linear maps,
    which keep their bits under their row rules, and the results of a row are added in ascending order of its experts.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        assert config.experts is not None
        self.config = config.experts
        D, shared = config.hidden_size, self.config.shared_size
        self.router = Linear(D, self.config.count, bias=self.config.router_bias, dtype=dtype, device=device)
        self.router.quantizable = False
        self.shared = None if shared is None else MLP(config, shared, dtype, device)
        self.shared_gate = None if shared is None else Linear(D, 1, bias=False, dtype=dtype, device=device)
        if self.shared_gate is not None:
            self.shared_gate.quantizable = False
        size = self.config.intermediate_size
        self.experts = nn.ModuleList(MLP(config, size, dtype, device) for _ in range(self.config.count))

    def forward(self, x_ND: Tensor, ops: LayerOps, copies: None = None) -> Tensor:
        """y [N, D]. There are no low-precision copies of experts."""
        del copies
        weights_NA, chosen_NA = self.route(x_ND)
        order = chosen_NA.flatten().argsort(stable=True)
        counts = chosen_NA.flatten().bincount(minlength=self.config.count).tolist()
        rows_of_each = (order // self.config.active).split(counts)
        pairs = zip(self.experts, rows_of_each, strict=True)
        results = [expert(x_ND[rows], ops) for expert, rows in pairs if len(rows)]
        y_NAD = torch.cat(results)[order.argsort()].unflatten(0, (-1, self.config.active)) * weights_NA[..., None]
        first, *others = y_NAD.unbind(1)
        y_ND: Tensor = sum(others, start=first)
        if self.shared is None or self.shared_gate is None:
            return y_ND
        return y_ND + sigmoid(self.shared_gate(x_ND)) * self.shared(x_ND, ops)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The weights [N, A] of the chosen experts of each row, and which they are [N, A], in ascending order."""
        weights_NA, chosen_NA = self.router(x_ND).float().softmax(-1).topk(self.config.active)
        if self.config.normalised:
            weights_NA = weights_NA / weights_NA.sum(-1, keepdim=True)
        chosen_NA, places_NA = chosen_NA.sort(-1)
        return weights_NA.gather(-1, places_NA).to(x_ND.dtype), chosen_NA
