"""A plain forward pass of both views, with dense masks, without a cache, in fp32. Tests compare the decoder with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from orthrus.model.rope import rotate


def forward(decoder, tokens, *, root=None, block=0):
    """Logits of an unprepared decoder over `tokens` [R] (AR, causal), or of a block rooted at position `root`.

    With `block`, the tokens before `root` run through the AR view, then [tokens[root], mask, ...] through the diffusion
    view. Each of its rows attends to AR keys strictly before the root and to all rows of its block.
    """
    config = decoder.config
    context = tokens if not block else tokens[:root]
    mask = [decoder.diffusion.mask_token_id] * (block - 1) if block else []
    rows = [*context.tolist(), *([int(tokens[root])] if block else []), *mask]
    ids = torch.tensor(rows)
    n, total = len(context), len(ids)
    hidden = decoder.embedding[ids].float()
    index = torch.arange(total)
    attended = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        for j in range(total):
            attended[i, j] = (j <= i) if i < n else True
    cos, sin = decoder.rope.rows(index, total)
    for layer in decoder.decoder_layers:
        normed = F.rms_norm(hidden, hidden.shape[-1:], layer.attention_norm.float(), config.norm_eps)
        parts = [_qkv(layer.ar, normed[:n], config)]
        if block:
            parts.append(_qkv(layer.diffusion, normed[n:], config))
        q, k, v = (torch.cat(t) for t in zip(*parts, strict=True))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeats = config.heads // config.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = torch.einsum("rhe,she->hrs", q, k) * config.head_dim**-0.5
        weights = scores.masked_fill(~attended, float("-inf")).softmax(-1)
        attention = torch.einsum("hrs,she->rhe", weights, v).flatten(1)
        out = [_linear(layer.ar.o, attention[:n])] + ([_linear(layer.diffusion.o, attention[n:])] if block else [])
        hidden = hidden + torch.cat(out)
        normed = F.rms_norm(hidden, hidden.shape[-1:], layer.mlp_norm.float(), config.norm_eps)
        gate, up = _linear(layer.gate_up, normed).chunk(2, -1)
        hidden = hidden + _linear(layer.down, F.silu(gate) * up)
    hidden = F.rms_norm(hidden, hidden.shape[-1:], decoder.norm.float(), config.norm_eps)
    return _linear(decoder.head, hidden)[n if block else 0 :]


def _qkv(view, x, config):
    qkv = _linear(view.qkv, x).view(len(x), -1, config.head_dim)
    q, k, v = qkv.split((config.heads, config.kv_heads, config.kv_heads), 1)
    if view.norms is not None:
        q, k = (
            F.rms_norm(t, t.shape[-1:], n.float(), config.norm_eps) for t, n in zip((q, k), view.norms, strict=True)
        )
    return q, k, v


def _linear(linear, x):
    return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
