"""A plain forward pass of both views, with dense masks, without a cache, in fp32. Tests compare the decoder with it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from orthrus.model.rope import rotate


def forward(decoder, tokens, *, root=None, block=0):
    """Logits of an unprepared decoder over `tokens` [R] (AR, causal), or of a block rooted at position `root`.

    With `block`, the tokens before `root` run through the AR view, then [tokens[root], mask, ...] through the diffusion
    view. Each of its rows attends to AR keys strictly before the root and to all rows of its block. In a layer with a
    sliding window an AR row attends to its newest keys, a block to those of them that its root would attend to.
    """
    config = decoder.config
    context = tokens if not block else tokens[:root]
    mask = [decoder.diffusion.mask_token_id] * (block - 1) if block else []
    rows = [*context.tolist(), *([int(tokens[root])] if block else []), *mask]
    n, total = len(context), len(rows)
    hidden = decoder.embedding[torch.tensor(rows)].float() * config.embedding_scale
    for layer in decoder.decoder_layers:
        cos, sin = decoder.ropes[layer.kind.rope].rows(torch.arange(total), total)
        normed = _norm(hidden, layer.attention_norm, config)
        parts = [_qkv(layer.ar, normed[:n], config)]
        if block:
            parts.append(_qkv(layer.diffusion, normed[n:], config))
        q, k, v = (torch.cat(t) for t in zip(*parts, strict=True))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeats = config.heads // config.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        scores = _capped(torch.einsum("rhe,she->hrs", q, k) * scale, config.attention_soft_cap)
        weights = scores.masked_fill(~_attended(total, n, layer.kind.window), float("-inf")).softmax(-1)
        attention = torch.einsum("hrs,she->rhe", weights, v).flatten(1)
        out = [_linear(layer.ar.o, attention[:n])] + ([_linear(layer.diffusion.o, attention[n:])] if block else [])
        update = torch.cat(out)
        hidden = hidden + (_norm(update, layer.post_attention_norm, config) if config.post_norms else update)
        update = _mlp(layer.mlp, _norm(hidden, layer.mlp_norm, config), config)
        hidden = hidden + (_norm(update, layer.post_mlp_norm, config) if config.post_norms else update)
    logits = _linear(decoder.head, _norm(hidden, decoder.norm, config))
    return _capped(logits, config.logit_soft_cap)[n if block else 0 :]


def _attended(total, context, window):
    """Which rows attend to which keys: `context` AR rows, then one block."""
    attended = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        for j in range(total):
            position = min(i, context)  # the rows of a block have the window of their root
            own = i >= context and j >= context
            attended[i, j] = own or (j <= i and (window is None or position - j < window))
    return attended


def _norm(x, weight, config):
    return F.rms_norm(x, x.shape[-1:], weight.float() + config.norm_offset, config.norm_eps)


def _capped(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


def _mlp(mlp, x, config):
    """An MLP, or every expert on every row with the weights of those that were not chosen set to zero."""
    activation = F.silu if config.activation == "silu" else partial(F.gelu, approximate="tanh")
    if not hasattr(mlp, "experts"):
        gate, up = _linear(mlp.gate_up, x).chunk(2, -1)
        return _linear(mlp.down, activation(gate) * up)
    probabilities = _linear(mlp.router, x).softmax(-1)
    lowest = probabilities.topk(config.experts.active).values[:, -1:]
    weights = probabilities * (probabilities >= lowest)
    if config.experts.normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    return sum(w[:, None] * _mlp(expert, x, config) for expert, w in zip(mlp.experts, weights.unbind(1), strict=True))


def _qkv(view, x, config):
    qkv = _linear(view.qkv, x).view(len(x), -1, config.head_dim)
    q, k, v = qkv.split((config.heads, config.kv_heads, config.kv_heads), 1)
    if view.norms is not None:
        q, k = (_norm(t, weight, config) for t, weight in zip((q, k), view.norms, strict=True))
    return q, k, v


def _linear(linear, x):
    return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
