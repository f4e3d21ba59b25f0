"""A plain forward pass of both views, with dense masks, without a cache, in fp32. Tests compare the decoder with it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from orthrus.model.rope import rotate

ACTIVATIONS = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "clamped_swiglu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: x.clamp(min=0) ** 2,
}


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
    hidden = decoder.embedding(torch.tensor(rows)).float() * config.embedding_scale
    for layer in decoder.decoder_layers:
        cos, sin = decoder.ropes[layer.kind.rope].rows(torch.arange(total), total)
        normed = _norm(hidden, layer.attention_norm)
        parts = [_qkv(layer.ar, normed[:n], config)]
        if block:
            parts.append(_qkv(layer.diffusion, normed[n:], config))
        q, k, v = (torch.cat(t) for t in zip(*parts, strict=True))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if config.qk_norm_last:
            norms = [layer.ar.norms] * n + [layer.diffusion.norms if block else None] * (total - n)
            q, k = (
                torch.stack([_rms(t[row], own[which], config) for row, own in enumerate(norms)])
                for which, t in enumerate((q, k))
            )
        repeats = config.heads // config.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        scores = _capped(torch.einsum("rhe,she->hrs", q, k) * scale, config.attention_soft_cap)
        scores = scores.masked_fill(~_attended(total, n, layer.kind.window), float("-inf"))
        if config.attention_sinks:
            scores = torch.cat((scores, layer.sinks.float()[:, None, None].expand(-1, total, 1)), -1)
        weights = scores.softmax(-1)[..., :total]
        attention = torch.einsum("hrs,she->rhe", weights, v).flatten(1)
        out = [_linear(layer.ar.o, attention[:n])] + ([_linear(layer.diffusion.o, attention[n:])] if block else [])
        update = torch.cat(out)
        hidden = hidden + config.residual_scale * _norm(update, layer.post_attention_norm)
        update = _mlp(layer.mlp, normed if config.parallel else _norm(hidden, layer.mlp_norm), config)
        hidden = hidden + config.residual_scale * _norm(update, layer.post_mlp_norm)
    logits = _linear(decoder.head, _norm(hidden, decoder.norm)) * config.logit_scale
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


def _norm(x, norm):
    """The norm of rows; the rows themselves where the model has none there."""
    if norm is None:
        return x
    if not norm.centred:
        return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * (norm.weight.float() + norm.offset)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred * (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return normed * (norm.weight.float() + norm.offset) + (0 if norm.bias is None else norm.bias.float())


def _rms(x, weight, config):
    return F.rms_norm(x, x.shape[-1:], weight.float() + config.norm_offset, config.norm_eps)


def _norm_of_heads(x, weight, config):
    """The norm of q or k [R, heads, E] before the rotary embeddings."""
    if config.qk_norm == "row":
        return _rms(x.flatten(1), weight, config).view(x.shape)
    if config.qk_norm == "head":
        return _rms(x, weight, config)
    weights = weight.float().view(x.shape[1:]) + config.norm_offset
    return torch.stack(
        [F.layer_norm(x[:, h], x.shape[-1:], own, None, config.norm_eps) for h, own in enumerate(weights)], 1
    )


def _capped(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


def _mlp(mlp, x, config):
    """An MLP, or every expert on every row with the weights of those that were not chosen set to zero."""
    activation = ACTIVATIONS[config.activation]
    if not hasattr(mlp, "experts"):
        if not config.gated:
            return _linear(mlp.down, activation(_linear(mlp.gate_up, x)))
        gate, up = _linear(mlp.gate_up, x).chunk(2, -1)
        if config.activation == "clamped_swiglu":
            gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1
        return _linear(mlp.down, activation(gate) * up)
    probabilities = _linear(mlp.router, x).softmax(-1)
    lowest = probabilities.topk(config.experts.active).values[:, -1:]
    weights = probabilities * (probabilities >= lowest)
    if config.experts.normalised:
        weights = weights / weights.sum(-1, keepdim=True)
    y = sum(w[:, None] * _mlp(expert, x, config) for expert, w in zip(mlp.experts, weights.unbind(1), strict=True))
    return y if mlp.shared is None else y + torch.sigmoid(_linear(mlp.shared_gate, x)) * _mlp(mlp.shared, x, config)


def _qkv(view, x, config):
    qkv = _linear(view.qkv, x).view(len(x), -1, config.head_dim)
    q, k, v = qkv.split((config.heads, config.kv_heads, config.kv_heads), 1)
    if config.qk_norm and not config.qk_norm_last:
        q, k = (_norm_of_heads(t, weight, config) for t, weight in ((q, view.q_norm), (k, view.k_norm)))
    return q, k, v


def _linear(linear, x):
    return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
