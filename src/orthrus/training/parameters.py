"""Which parameters of a decoder are trained: the diffusion view, the draft head or both, never the backbone."""

from __future__ import annotations

import torch
from torch import nn

from orthrus.checkpoint.tensors import digest_of
from orthrus.model.decoder import Decoder
from orthrus.model.draft_head import initialise


def prepare_head(decoder: Decoder, units: int, seed: int) -> None:
    """Give the decoder a new draft head, unless it has one of this size."""
    assert decoder.diffusion is not None
    head, rows = decoder.draft_head, decoder.diffusion.trained_rows
    if head is None or head.units != units or len(head.inverse_temperatures) != rows:
        initialise(decoder.set_draft_head(units), torch.Generator().manual_seed(seed))


def of_head(name: str) -> bool:
    """Whether a parameter of a decoder is one of the draft head."""
    return name.startswith("draft_head.")


def trainable(decoder: Decoder, *, view: bool = True, head: bool = False) -> dict[str, nn.Parameter]:
    """Enable gradients for the diffusion view, the draft head or both, and for nothing else; convert these to fp32
    masters, and return their parameters by name. The calibration of a head is not a parameter that gradients train."""
    parameters = {}
    for name, parameter in decoder.named_parameters():
        trained = (
            head and not name.endswith("inverse_temperatures") if of_head(name) else view and ".diffusion." in name
        )
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
            parameters[name] = parameter
    return parameters


def frozen_digest(decoder: Decoder) -> str:
    """The sha256 of every parameter of the backbone, and of a view that is not trained."""
    frozen = {n: p.detach() for n, p in decoder.named_parameters() if not p.requires_grad and not of_head(n)}
    return digest_of(frozen, lambda name: ("", frozen[name].cpu().view(torch.uint8).numpy().reshape(-1).data))
