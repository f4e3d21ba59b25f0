"""Low-rank diffusion views: projections that are those of the backbone plus the product of two thin factors.

The factors are what an adapter holds and what training trains. Both are merged into plain weights wherever weights are
asked for, so kernels and training see ordinary linear maps.

Shapes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from orthrus.decoder_config import DecoderConfig
from orthrus.model import tensor_names
from orthrus.model.decoder import Decoder
from orthrus.model.layers import View
from orthrus.model.linear import Linear

UP, DOWN = ".up", ".down"
MAPS = ("qkv", "o")
"""The linear maps of a view."""
NOTHING = 1e-6
"""Singular values below this share of the largest one are what rounding in float32 leaves."""


class LowRankLinear(Linear):
    """W = W_base + up [O, R] down [R, I], with a bias of its own where the base has one. Factors and bias are empty
    until they are read from a file or set by `set_rank`."""

    _base: Linear

    def __init__(self, base: Linear, rank: int) -> None:
        nn.Module.__init__(self)
        outputs, inputs = self.shape = base.shape
        self.up, self.down = _empty(base, outputs, rank), _empty(base, rank, inputs)
        self.bias = None if base.bias is None else _empty(base, outputs)
        self.group_quantized, self.quantizable = None, base.quantizable
        self.attach(base)

    def attach(self, base: Linear) -> None:
        """Set the map whose weights are the base."""
        object.__setattr__(self, "_base", base)  # no submodule: it is a map of the backbone

    @property
    def rank(self) -> int:
        """The columns of `up`."""
        return self.up.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """See `Linear`."""
        return self._base.dtype

    @property
    def device(self) -> torch.device:
        """See `Linear`."""
        return self.up.device

    @property
    def change(self) -> Tensor:
        """What is added to the weights of the base [O, I], in float32."""
        return self.up.float() @ self.down.float()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The merged weights [O, I], rounded once to the dtype of the base; differentiable in the factors."""
        return (self._base.weight.float() + self.change).to(self.dtype)


def _empty(base: Linear, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=base.dtype, device=base.device), requires_grad=False)


def rank_of(decoder: Decoder) -> int | None:
    """The rank of the diffusion view of a decoder; None where its weights are full, or where there is no view."""
    return next((made.rank for _, _, _, made in _maps(decoder) if isinstance(made, LowRankLinear)), None)


def merged(decoder: Decoder) -> dict[str, Tensor]:
    """The merged weights of the maps of a low-rank view, under the names that full ones have in the decoder."""
    maps = decoder.linears().items()
    return {f"{name}.weight": made.weight.detach() for name, made in maps if isinstance(made, LowRankLinear)}


def sources(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """The tensors of a low-rank view, as `tensor_names.sources`: q, k and v share their factors, which are under the
    names `...qkv_proj_diff.up` and `.down`."""
    names: dict[str, tuple[str, ...]] = {}
    for ours, theirs in tensor_names.sources(config, "diffusion").items():
        module, _, kind = ours.rpartition(".")
        parent, _, part = module.rpartition(".")
        if part not in MAPS or kind != "weight":
            names[ours] = theirs
            continue
        place = theirs[0].removesuffix(".weight").rpartition(".")[0]
        for factor in (UP, DOWN):
            names[f"{parent}.{part}{factor}"] = (f"{place}.{part}_proj_diff{factor}",)
    return names


def make_empty(decoder: Decoder, rank: int | None) -> None:
    """Give the view of a decoder empty maps of this rank; None for full ones. Norms stay as they are.

    Raises ValueError where the rank exceeds what the maps can have.
    """
    check_rank(decoder.config, rank)
    for view, name, base, _ in _maps(decoder):
        setattr(view, name, _map(base, rank))


def check_rank(config: DecoderConfig, rank: int | None) -> None:
    """Raise ValueError where the rank exceeds what the maps of a model can have. None: full maps."""
    limit = min(config.hidden_size, config.heads * config.head_dim)
    if rank is not None and not 1 <= rank <= limit:
        raise ValueError(f"the rank of a view must lie in 1..{limit}, the rank of its full projections, not {rank}")


def _map(base: Linear, rank: int | None) -> Linear:
    if rank is not None:
        return LowRankLinear(base, rank)
    outputs, inputs = base.shape
    return Linear(inputs, outputs, bias=base.bias is not None, dtype=base.dtype, device=base.device)


def attach(decoder: Decoder) -> None:
    """Let the low-rank maps of a view add to those maps of the backbone that the decoder has now."""
    for _, _, base, made in _maps(decoder):
        if isinstance(made, LowRankLinear):
            made.attach(base)


def set_rank(decoder: Decoder, rank: int | None, seed: int = 0) -> None:
    """Give the view of an unprepared decoder this rank: the nearest weights by a truncated SVD of their difference from
    those of the backbone. None: full weights, with the factors merged.

    Where the difference has a lower rank, as that of a view that is still a copy has, the other columns of `up` are
    zero and the rows of `down` small noise, from which training starts. Raises ValueError as `make_empty` does.
    """
    check_rank(decoder.config, rank)
    if rank == rank_of(decoder):
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for view, name, base, before in _maps(decoder):
            after, weight = _map(base, rank), base.weight.float()
            change = before.change if isinstance(before, LowRankLinear) else before.weight.float() - weight
            if isinstance(after, LowRankLinear):
                for factor, values in zip((after.up, after.down), factors(change, after.rank, generator), strict=True):
                    factor.copy_(values)
            else:
                after.weight.copy_(weight + change)
            if after.bias is not None and before.bias is not None:
                after.bias.copy_(before.bias)
            setattr(view, name, after)


def factors(change_OI: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The factors [O, R] and [R, I], of equal norms, whose product is nearest to a change of weights. Where that has a
    lower rank, see `set_rank`."""
    inputs = change_OI.shape[1]
    noise_RI = torch.randn(rank, inputs, generator=generator) / inputs**0.5
    if not change_OI.any():
        return change_OI.new_zeros(len(change_OI), rank), noise_RI.to(change_OI)
    change = change_OI.double()
    squares, vectors = torch.linalg.eigh(change.T @ change)
    values_R, vectors_IR = squares[-rank:].flip(0).clamp(min=0).sqrt(), vectors[:, -rank:].flip(1)
    present_R, root_R = values_R > NOTHING * values_R[0], values_R.sqrt()
    up = torch.where(present_R, change @ vectors_IR / root_R.clamp(min=1e-30), 0.0)
    down = torch.where(present_R[:, None], (vectors_IR * root_R).T, noise_RI.to(change))
    return up.to(change_OI), down.to(change_OI)


def _maps(decoder: Decoder) -> Iterator[tuple[View, str, Linear, Linear]]:
    """Each map of the view of each layer: the view, its name there, the map of the backbone, and the map itself."""
    for layer in decoder.decoder_layers:
        if layer.diffusion is not None:
            for name in MAPS:
                yield layer.diffusion, name, getattr(layer.ar, name), getattr(layer.diffusion, name)
